"""What the token head takes while it runs (`policy.token_head`), in bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octopus_mcore.config.model_layout import padded_vocabulary
from octopus_mcore.config.schema import ParallelConfig
from octopus_mcore.models.costs.layout import Compute
from octopus_mcore.models.limits import HeadLimits

if TYPE_CHECKING:
    from octopus_mcore.models.costs.activations import Load
    from octopus_mcore.models.family import DecoderShape

_EXACT = 4
"""Bytes of a float32."""
_TOKEN = 64
"""Bytes of one token's numbers: target, peak, sums, results, and what is made from them on the way."""


@dataclass(frozen=True)
class HeadCall:
    """One call: `tokens` selected tokens, `rows` of the output matrix on this rank, its width, and bytes of its elements.

    `entropy`: entropies are made (forward) or have a gradient (backward). `learns`: a backward pass follows. `main_grad`: the
    matrix's gradient is added to a buffer that exists anyway.
    """

    tokens: int
    rows: int
    hidden: int
    size: int = 4
    entropy: bool = False
    learns: bool = True
    main_grad: bool = True
    limits: HeadLimits = HeadLimits()

    @property
    def _tile(self) -> tuple[int, int]:
        return self.limits.tile(self.tokens, self.rows, self.hidden)

    @property
    def kept(self) -> int:
        """Bytes of powers that stay between forward and backward pass, and of what each block of them counts from."""
        if not (self.learns and self.limits.keeps(self.tokens, self.rows)):
            return 0
        blocks = math.ceil(self.rows / self._tile[1])
        return self.tokens * (self.rows + blocks) * _EXACT

    @property
    def forward(self) -> int:
        """The most bytes at one time in the forward pass, beyond the arguments."""
        tokens, rows = self._tile
        buffers = _EXACT * ((not self.kept) + self.entropy) + self.size * (self.size != _EXACT)
        return self.kept + self.tokens * _TOKEN + tokens * rows * buffers

    @property
    def backward(self) -> int:
        """The same of the backward pass, results included."""
        tokens, rows = self._tile
        narrow = self.size != _EXACT
        total = self.kept + self.tokens * (_TOKEN + _EXACT * self.hidden)
        total += tokens * rows * (_EXACT * (1 + self.entropy) + narrow * self.size)
        total += 0 if self.main_grad else self.size * self.rows * self.hidden
        if not narrow:
            return total
        # Products before they are added up in float32, and in the end the rounded gradient of the hidden states.
        several = self.tokens > tokens
        block = rows * self.hidden * (several * (not self.main_grad) * _EXACT + (several or self.main_grad) * self.size)
        return total + max(block, self.size * self.tokens * self.hidden)


def head_workspace(shape: DecoderShape, parallel: ParallelConfig, compute: Compute, load: Load) -> int:
    """Bytes that the head takes where all tokens of a micro-batch are selected and entropies are reported: the fuller of its
    two passes, and the hidden states that it reads, before and after the selection."""
    rows = padded_vocabulary(shape.vocab_size, parallel.tensor) // parallel.tensor
    mine = load.tokens // parallel.context
    call = HeadCall(mine, rows, shape.hidden_size, compute.bytes, entropy=True)
    return max(call.forward, call.backward) + 2 * mine * shape.hidden_size * compute.bytes
