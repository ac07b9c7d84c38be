"""octopus_mcore: teaches vision-language models to correct themselves.

A Megatron-Core policy is trained by reinforcement learning on rollouts whose self-corrections are recombined from the
responses that the model itself sampled (Octopus, arXiv 2602.08503). `docs/architecture.md` draws the rooms of this package.
"""

import warnings

# Megatron-Core says at import, once per module and rank, that Transformer-Engine and Apex are absent. The layer spec is a
# choice of the configuration here (`model.layer_spec`), so the message tells users nothing.
for _message in (
    r"Transformer Engine and Apex are not installed",
    r"Apex is not installed",
    r"The following imports from `dynamic_context",
):
    warnings.filterwarnings("ignore", message=_message)

__version__ = "0.1.0"
