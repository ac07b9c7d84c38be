"""Rows, prompts, images and supervised examples: everything before the first sampled token."""
