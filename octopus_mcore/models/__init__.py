"""Megatron-Core model families, their weights in both directions, and the tokens that enter them."""
