"""Context parallelism: which tokens of a MicroBatch a rank computes, and how ranks bring together what belongs to all of them.

A flat sequence of S tokens is cut into 2·C equal pieces, of which rank r of C computes pieces r and 2·C − 1 − r ("zig-zag").
Causal attention costs a late token more than an early one; an early piece with a late one gives every rank the same work.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
)


@dataclass(frozen=True)
class ContextShare:
    """Rank `rank` of the `size` that share the tokens of a sequence; alone, it has all of them in their order."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def here() -> ContextShare:
        """This process's share in Megatron's parallel state."""
        return ContextShare(parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size())

    def stretches(self, length: int) -> tuple[tuple[int, int], ...]:
        """The stretches `[start, end)` of a sequence of `length` tokens that this rank computes, in the order it holds them.

        Raises:
            ValueError: `length` is no multiple of 2·size.
        """
        if self.size == 1:
            return ((0, length),)
        piece, rest = divmod(length, 2 * self.size)
        if rest:
            raise ValueError(f"{length} tokens cannot be cut into {2 * self.size} equal pieces; pad them (`token_multiple`)")
        return tuple((number * piece, (number + 1) * piece) for number in self._pieces)

    def tokens(self, length: int) -> torch.Tensor:
        """The indices of this rank's tokens in the whole sequence, in the order it holds them; int64 [length / size]."""
        return torch.cat([torch.arange(start, end) for start, end in self.stretches(length)])

    def locate(self, tokens: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Where this rank holds tokens of a sequence of `length`.

        Args:
            tokens: int64 [n] indices in the whole sequence.

        Returns:
            Which of them this rank holds, bool [n], and the places of those, int64 [number held].
        """
        if self.size == 1:
            return torch.ones_like(tokens, dtype=torch.bool), tokens
        piece = length // (2 * self.size)
        early, late = self._pieces
        number = tokens // piece
        here = (number == early) | (number == late)
        return here, (tokens % piece + piece * (number == late))[here]

    @property
    def _pieces(self) -> tuple[int, int]:
        return self.rank, 2 * self.size - 1 - self.rank


ALL_TOKENS = ContextShare()
"""The share of a rank that is alone."""


def gathered_places(length: int, size: int) -> torch.Tensor:
    """Where each token of a sequence stands when the shares of ranks 0 … size − 1 are put one behind the other; int64
    [length]."""
    order = torch.cat([ContextShare(rank, size).tokens(length) for rank in range(size)])
    places = torch.empty_like(order)
    places[order] = torch.arange(length)
    return places


def gather_tokens(local: torch.Tensor, group: torch.distributed.ProcessGroup) -> torch.Tensor:
    """The ranks' shares [S / size, ...] one behind the other, [S, ...] in the order of `gathered_places`. What the ranks'
    losses ask of a token adds up in the backward pass, on the rank that holds it."""
    return gather_from_sequence_parallel_region(local, tensor_parallel_output_grad=True, group=group)


def spread_values(local: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
    """One number for each of n tokens on every rank, from the numbers of those that each rank holds.

    All ranks then compute the same loss of the same n numbers. The backward pass hands a rank the gradients of its own tokens
    as they are: nothing is summed over ranks, which would count the one loss several times.

    Args:
        local: [k, number held] this rank's values, k of each token.
        here: bool [n], which tokens this rank holds (`ContextShare.locate`).

    Returns:
        [k, n].
    """
    values = local.new_zeros((local.shape[0], len(here))).index_copy(1, here.nonzero()[:, 0], local)
    return reduce_from_tensor_model_parallel_region(values, group=parallel_state.get_context_parallel_group())
