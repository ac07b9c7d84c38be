"""Weights of rows that turn one divisor for the whole mini-batch into other trainers' means of micro-batch means.

Trainers without a global divisor average within a micro-batch first. With C chunks of M consecutive trained rows, T_c the
trained tokens and R_c the rows of chunk c, T and R those of the mini-batch, and ℓ the loss of a token:

- `token_mean` (OpenRLHF, verl; so VL-Rethinker with M = 4 and Ocean-R1 with M = 8): (1/C) Σ_c Σ_{t∈c} ℓ_t / T_c;
- `sequence_mean` (EasyR1, so Octopus): Σ_c (T_c / T) · (1/R_c) Σ_{i∈c} (mean of ℓ over row i).

A token in a chunk of short responses weighs more in the first than in a mean over all tokens, a row in a chunk of long ones
more in the second than in a mean over all rows. Both are the ordinary losses, divided by T or by R, with a constant weight on
every row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octopus_mcore.config.loss import LossConfig


def chunk_weights(tokens: Sequence[int], config: LossConfig) -> np.ndarray:
    """The weight of each row's policy loss, float64 [rows], from the numbers of trained tokens of all rows of a mini-batch, in
    order. Rows without any are in no chunk and have weight 1; so has every row where `loss.micro_batch_rows` is null or the
    aggregation is `constant`."""
    weights = np.ones(len(tokens))
    trained = np.flatnonzero(tokens)
    if config.micro_batch_rows is None or config.aggregation == "constant" or not len(trained):
        return weights
    counts = np.asarray(tokens, dtype=np.float64)
    chunks = np.split(trained, list(range(config.micro_batch_rows, len(trained), config.micro_batch_rows)))
    for chunk in chunks:
        if config.aggregation == "token_mean":
            weights[chunk] = counts.sum() / (len(chunks) * counts[chunk].sum())
        else:
            weights[chunk] = len(trained) * counts[chunk].sum() / (counts.sum() * len(chunk))
    return weights
