"""What a pass does with the log-probs of its selected tokens: measure them, train on a policy loss, or train on given text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from octopus_mcore.config.schema import LossConfig
from octopus_mcore.experience.types import TrainingSignal
from octopus_mcore.models.costs.flops import Work
from octopus_mcore.models.micro_batch import MicroBatch
from octopus_mcore.policy.denominators import Denominators, count_denominators, total_weight
from octopus_mcore.policy.losses import Stats, kl_loss, nll_loss, policy_loss
from octopus_mcore.policy.work import micro_batch_work


@dataclass(frozen=True)
class LossRecord:
    """What a training micro-batch hands back: its shares of the global loss and of its terms by name, which add up over
    micro-batches and ranks, its statistics (`policy.losses`), and how much work it was."""

    losses: dict[str, torch.Tensor]
    stats: Stats
    work: Work


def measure(
    numbers: Sequence[int], batch: MicroBatch, log_probs: torch.Tensor, entropy: torch.Tensor | None
) -> tuple[torch.Tensor, dict[int, np.ndarray]]:
    """Hands the log-probs back, row by row: record {row number: float32 [selected tokens]}."""
    rows = batch.gathered_row.cpu().numpy()
    values = log_probs.detach().float().cpu().numpy()
    return log_probs.sum() * 0.0, {number: values[rows == index] for index, number in enumerate(numbers)}


@dataclass(frozen=True)
class RowSignal:
    """A row's training signal and the log-probs it is compared with, all over its response tokens.

    `old_log_probs` are the policy's own before the step (float32 [response]); `reference_log_probs` are read where the KL mask
    is set and may be None where it is empty. `weights` (float32 [response]) multiply the policy loss of each token; either all
    rows of a mini-batch have them or none.
    """

    signal: TrainingSignal
    old_log_probs: np.ndarray
    reference_log_probs: np.ndarray | None = None
    weights: np.ndarray | None = None


class PolicyObjective:
    """Clipped policy loss plus KL term of one global mini-batch, normalised over all of it."""

    def __init__(self, config: LossConfig, signals: Sequence[RowSignal]) -> None:
        self._config = config
        self._signals = signals
        self._weighted = _all_weighted(signals)
        self.selections = [_selection(row.signal, config) for row in signals]
        """Per row the response tokens whose log-prob the loss reads, bool [response]."""
        self.denominators: Denominators = count_denominators(row.signal.policy_mask for row in signals)

    def __call__(
        self, numbers: Sequence[int], batch: MicroBatch, log_probs: torch.Tensor, entropy: torch.Tensor | None
    ) -> tuple[torch.Tensor, LossRecord]:
        """The micro-batch's share of the loss, and its statistics."""
        device = log_probs.device
        rows = [self._signals[number] for number in numbers]

        def flat(values: list[np.ndarray], dtype: torch.dtype) -> torch.Tensor:
            chosen = [value[self.selections[number]] for value, number in zip(values, numbers, strict=True)]
            return torch.from_numpy(np.concatenate([*chosen, np.zeros(0, dtype=np.float32)])).to(device, dtype)

        common = {"log_probs": log_probs, "row_index": batch.gathered_row, "num_rows": len(rows)}
        loss, stats = policy_loss(
            self._config,
            **common,
            old_log_probs=flat([row.old_log_probs for row in rows], torch.float32),
            advantages=flat([row.signal.advantages for row in rows], torch.float32),
            mask=flat([row.signal.policy_mask for row in rows], torch.bool),
            entropy=entropy,
            weights=flat([row.weights for row in rows], torch.float32) if self._weighted else None,
        )
        loss = loss / self.denominators.policy(self._config)
        losses = {"policy_loss": loss}
        if self._config.kl_coefficient > 0:
            reference = [_or_zeros(row.reference_log_probs, row) for row in rows]
            kl, kl_stats = kl_loss(
                self._config,
                **common,
                reference_log_probs=flat(reference, torch.float32),
                mask=flat([row.signal.kl_mask for row in rows], torch.bool),
            )
            kl = self._config.kl_coefficient * kl / self.denominators.kl
            losses["kl_loss"] = kl
            stats |= kl_stats
            loss = loss + kl
        return loss, _record({**losses, "loss": loss}, stats, batch)


class SupervisedObjective:
    """Weighted negative log-likelihood of one global batch of responses; `weights` per row, float32 [response]."""

    def __init__(self, weights: Sequence[np.ndarray]) -> None:
        self._weights = weights
        self._total = total_weight(weights)

    @property
    def selections(self) -> list[np.ndarray]:
        """Per row the response tokens with a weight."""
        return [row != 0 for row in self._weights]

    def __call__(
        self, numbers: Sequence[int], batch: MicroBatch, log_probs: torch.Tensor, entropy: torch.Tensor | None
    ) -> tuple[torch.Tensor, LossRecord]:
        """The micro-batch's share of the loss, and its statistics."""
        chosen = [self._weights[number][self._weights[number] != 0] for number in numbers]
        weights = torch.from_numpy(np.concatenate([*chosen, np.zeros(0, dtype=np.float32)])).to(log_probs.device)
        loss, stats = nll_loss(log_probs=log_probs, weights=weights)
        loss = loss / self._total
        return loss, _record({"loss": loss}, stats, batch)


def _all_weighted(signals: Sequence[RowSignal]) -> bool:
    weighted = sum(row.weights is not None for row in signals)
    if 0 < weighted < len(signals):
        raise ValueError(f"{weighted} of {len(signals)} rows have weights; a mini-batch is weighted as a whole or not at all")
    return weighted > 0


def _selection(signal: TrainingSignal, config: LossConfig) -> np.ndarray:
    return signal.policy_mask | signal.kl_mask if config.kl_coefficient > 0 else signal.policy_mask


def _record(losses: dict[str, torch.Tensor], stats: Stats, batch: MicroBatch) -> LossRecord:
    return LossRecord(
        {name: value.detach().double().cpu() for name, value in losses.items()},
        {k: v.cpu() for k, v in stats.items()},
        micro_batch_work(batch),
    )


def _or_zeros(values: np.ndarray | None, row: RowSignal) -> np.ndarray:
    if values is None:
        if row.signal.kl_mask.any():
            raise ValueError("a row has KL tokens but no reference log-probs")
        return np.zeros(len(row.signal.kl_mask), dtype=np.float32)
    return values
