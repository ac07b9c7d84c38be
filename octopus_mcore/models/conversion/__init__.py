"""Conversion between Hugging Face folders and Megatron's distributed checkpoints, in one process and bounded memory.

Peak memory on top of the idle process: twice the largest parameter of the model, and 4 MiB. (The C library may keep some 32 MiB
more of what is freed; MALLOC_MMAP_THRESHOLD_ bounds that.)
"""
