"""Static comparison of what octopus_mcore uses of Megatron-Core with given Megatron-Core sources; nothing of either is run."""
