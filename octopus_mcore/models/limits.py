"""Bounds of temporary memory that computation keeps to and the cost model counts with."""

from __future__ import annotations

HEAD_CHUNK_TOKENS = 1024
"""Tokens whose logits the token head makes at a time."""
MAX_MASKED_PAIRS = 2**24
"""No attention mask has more pairs (a byte each, and a number each on the CPU): longer cells of different sizes do not share a
batch."""
MIN_SAVED_TOKENS = 16
"""A common prefix becomes a node of a tree where that saves so many tokens; below, a repetition is cheaper than a node."""
