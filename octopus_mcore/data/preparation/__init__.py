"""Published datasets made ready for training: every row checked, every image stored once, all that is left out listed with its
reason. `octopus-mcore data prepare` is its door; docs/datasets.md says how to add a dataset."""
