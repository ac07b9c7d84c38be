"""octopus_mcore: teaches vision-language models to correct themselves.

A Megatron-Core policy is trained by reinforcement learning on rollouts whose self-corrections are recombined from the
responses that the model itself sampled (Octopus, arXiv 2602.08503). `docs/architecture.md` draws the rooms of this package.
"""

import warnings

# What Megatron-Core and torch say here on every rank tells users nothing: Transformer-Engine is a choice of the configuration
# (`model.layer_spec`), CUDA graphs are off, and the deprecated calls are Megatron's.
for _message in (
    r"Transformer Engine and Apex are not installed",
    r"Apex is not installed",
    r"If you are using transformer_engine as the transformer implementation, the core_attn",
    r"The following imports from `dynamic_context",
    r"full scope is deprecated\. Use empty cuda_graph_scope",
    r"The \.grad attribute of a Tensor that is not a leaf Tensor is being accessed",
    r"`torch\.distributed\.(reduce_scatter_tensor|all_gather_into_tensor)` is deprecated",
):
    warnings.filterwarnings("ignore", message=_message)

__version__ = "0.1.0"
