"""Conversion between Hugging Face folders and Megatron's distributed checkpoints, in one process and bounded memory.

Peak memory: twice the largest tensor of the model, and what the process takes without any tensor.
"""
