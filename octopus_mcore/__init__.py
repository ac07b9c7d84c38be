"""octopus_mcore: teaches vision-language models to correct themselves.

A Megatron-Core policy is trained by reinforcement learning on rollouts whose self-corrections are recombined from the
responses that the model itself sampled (Octopus, arXiv 2602.08503). `docs/architecture.md` draws the rooms of this package.
"""

__version__ = "0.1.0"
