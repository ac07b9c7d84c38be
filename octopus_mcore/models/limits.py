"""Bounds of temporary memory that computation keeps to and the cost model counts with."""

from __future__ import annotations

HEAD_CHUNK_TOKENS = 1024
"""Tokens whose logits the token head makes at a time."""
MAX_MASKED_PAIRS = 2**24
"""No attention mask has more pairs (a byte a pair, in every layer): longer nodes of different sizes do not share a batch. Nodes
of one size need no mask of ours; torch makes one on the CPU all the same."""
MIN_SAVED_TOKENS = 16
"""A common prefix becomes a node of a tree where that saves so many tokens; below, a repetition is cheaper than a node."""
