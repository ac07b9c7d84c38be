"""The typed configuration tree: schema, loading with overrides, layout arithmetic, dry run and reference."""
