"""What a pass does with the log-probs of its selected tokens: measure them, train on a policy loss, or train on given text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.experience.types import TrainingSignal
from octopus_mcore.models.costs.flops import Work
from octopus_mcore.models.micro_batch import MicroBatch
from octopus_mcore.policy.denominators import Denominators, count_denominators, total_weight
from octopus_mcore.policy.losses import Stats, entropy_loss, kl_loss, nll_loss, policy_loss
from octopus_mcore.policy.work import micro_batch_work

Weigh = Callable[[np.ndarray], np.ndarray]
"""From a row's old log-probs (float32 [response], NaN where the loss reads none) to the weights of its tokens' policy loss,
float32 [response]."""

Flat = Callable[[list[np.ndarray], torch.dtype], torch.Tensor]
"""From one array [response] per row of a micro-batch to the values of its selected tokens, row by row."""

_NEEDS_ADVANTAGE = ("clip_low", "clip_high", "dual_clip")


@dataclass(frozen=True)
class LossRecord:
    """What a training micro-batch hands back: its shares of the global loss and of its terms by name, which add up over
    micro-batches and ranks, its statistics (`policy.losses`), how much work it was, and the log-probs of its rows' selected
    tokens by row number where the objective measures them."""

    losses: dict[str, torch.Tensor]
    stats: Stats
    work: Work
    log_probs: Mapping[int, np.ndarray] = field(default_factory=dict)


def measure(
    numbers: Sequence[int], batch: MicroBatch, log_probs: torch.Tensor, entropy: torch.Tensor | None
) -> tuple[torch.Tensor, dict[int, np.ndarray]]:
    """Hands the log-probs back, row by row: record {row number: float32 [selected tokens]}."""
    return log_probs.sum() * 0.0, _by_row(numbers, batch, log_probs, numbers)


def _by_row(numbers: Sequence[int], batch: MicroBatch, log_probs: torch.Tensor, wanted: Sequence[int]) -> dict[int, np.ndarray]:
    rows = batch.gathered_row.cpu().numpy()
    values = log_probs.detach().float().cpu().numpy()
    return {number: values[rows == index] for index, number in enumerate(numbers) if number in wanted}


@dataclass(frozen=True)
class RowSignal:
    """A row's training signal and the log-probs it is compared with, all over its response tokens.

    `old_log_probs` are the policy's before the step, or of the policy that generated a replayed row (float32 [response], read
    where `policy_mask` is set), or None where the update itself measures them, being the first to run on these weights.
    `reference_log_probs` are read where the KL mask is set and may be None where it is empty. `weigh` makes the weights that
    multiply the policy loss of each token; either all rows of a mini-batch have it or none. `weight` multiplies the policy loss
    of the whole row besides.
    """

    signal: TrainingSignal
    old_log_probs: np.ndarray | None
    reference_log_probs: np.ndarray | None = None
    weigh: Weigh | None = None
    weight: float = 1.0


class PolicyObjective:
    """Policy loss, entropy bonus, KL term and NLL term of one global mini-batch, normalised over all of it.

    Args:
        config: the loss.
        signals: of the rows that are computed.
        denominators: counts of all rows of the mini-batch, where some that cannot change anything are not computed.

    A row without old log-probs is measured by the update's own forward pass: its log-probs, detached, are the old ones. Its
    ratios are then exactly 1 with the gradient of the log-prob, weights are made from the same numbers, and the records hand
    them back. Rows of both kinds may share a mini-batch.
    """

    def __init__(self, config: LossConfig, signals: Sequence[RowSignal], denominators: Denominators | None = None) -> None:
        self.config = config
        self.signals = signals
        self._weighted = _all_or_none([row.weigh for row in signals], "weights") or any(row.weight != 1 for row in signals)
        self.selections = [read_tokens(row.signal, config) for row in signals]
        """Per row the response tokens whose log-prob the loss reads, bool [response]."""
        computed = signal_denominators(row.signal for row in signals)
        self.denominators: Denominators = computed if denominators is None else denominators
        self._divisor = self.denominators.policy(config)
        self._computed = computed.trained_tokens

    def __call__(
        self, numbers: Sequence[int], batch: MicroBatch, log_probs: torch.Tensor, entropy: torch.Tensor | None
    ) -> tuple[torch.Tensor, LossRecord]:
        """The micro-batch's share of the loss, and its statistics."""
        device = log_probs.device
        rows = [self.signals[number] for number in numbers]
        own = [number for number, row in zip(numbers, rows, strict=True) if row.old_log_probs is None]
        measured = _by_row(numbers, batch, log_probs, own) if own else {}

        def flat(values: list[np.ndarray], dtype: torch.dtype) -> torch.Tensor:
            chosen = [value[self.selections[number]] for value, number in zip(values, numbers, strict=True)]
            return torch.from_numpy(np.concatenate([*chosen, np.zeros(0, dtype=np.float32)])).to(device, dtype)

        common = {"log_probs": log_probs, "row_index": batch.gathered_row, "num_rows": len(rows)}
        mask = flat([row.signal.policy_mask for row in rows], torch.bool)
        loss, stats = policy_loss(
            self.config,
            **common,
            old_log_probs=self._old(numbers, batch, log_probs, flat),
            advantages=flat([row.signal.advantages for row in rows], torch.float32),
            mask=mask,
            entropy=entropy,
            weights=flat(self._weights(numbers, measured), torch.float32) if self._weighted else None,
        )
        losses = {"policy_loss": loss / self._divisor}
        if self.trains_entropy:
            bonus = entropy_loss(self.config, entropy=entropy, mask=mask, row_index=batch.gathered_row, num_rows=len(rows))
            losses["entropy_loss"] = self.config.entropy_coefficient * bonus / self._divisor
        if self.config.kl_coefficient > 0:
            reference = flat([_or_zeros(row.reference_log_probs, row) for row in rows], torch.float32)
            held = flat([row.signal.kl_mask for row in rows], torch.bool)
            kl, kl_stats = kl_loss(self.config, **common, reference_log_probs=reference, mask=held)
            losses["kl_loss"] = self.config.kl_coefficient * kl / self.denominators.kl
            stats |= kl_stats
        if self.config.nll_coefficient > 0:
            nll, nll_stats = nll_loss(log_probs=log_probs, weights=flat([_nll_mask(row.signal) for row in rows], torch.float32))
            losses["nll_loss"] = self.config.nll_coefficient * nll / self.denominators.nll
            stats |= nll_stats
        loss = sum(losses.values())
        return loss, _record({**losses, "loss": loss}, stats, batch, measured)

    @property
    def trains_entropy(self) -> bool:
        """Whether the entropies that it is called with need a gradient."""
        return self.config.entropy_coefficient > 0

    def over_all_rows(self, means: Mapping[str, float]) -> dict[str, float]:
        """Means of the mini-batch's statistics, over all trained tokens where those that are not computed are known: no bound
        ever stops a token without advantage."""
        trained = self.denominators.trained_tokens
        known = {name: means.get(name, 0.0) * self._computed / trained for name in _NEEDS_ADVANTAGE} if trained else {}
        return {**means, **known}

    def _old(self, numbers: Sequence[int], batch: MicroBatch, log_probs: torch.Tensor, flat: Flat) -> torch.Tensor:
        """What each token's log-prob is compared with: the row's own where the update measures it."""
        known = [self.signals[number].old_log_probs for number in numbers]
        measures = [values is None for values in known]
        if all(measures):
            return log_probs
        none = [np.zeros(len(self.selections[number]), dtype=np.float32) for number in numbers]
        stored = flat([rest if values is None else values for values, rest in zip(known, none, strict=True)], torch.float32)
        if not any(measures):
            return stored
        return torch.where(torch.tensor(measures, device=log_probs.device)[batch.gathered_row], log_probs, stored)

    def _weights(self, numbers: Sequence[int], measured: Mapping[int, np.ndarray]) -> list[np.ndarray]:
        """Per row, float32 [response]."""
        weights = []
        for number in numbers:
            row, old = self.signals[number], self.signals[number].old_log_probs
            if row.weigh is None:
                weights.append(np.full(len(self.selections[number]), row.weight, dtype=np.float32))
                continue
            if old is None:
                old = np.full(len(self.selections[number]), np.nan, dtype=np.float32)
                old[self.selections[number]] = measured[number]
            weights.append(row.weigh(old) * np.float32(row.weight))
        return weights


class SupervisedObjective:
    """Weighted negative log-likelihood of one global batch of responses; `weights` per row, float32 [response]."""

    def __init__(self, weights: Sequence[np.ndarray]) -> None:
        self._weights = weights
        self._total = total_weight(weights)

    @property
    def selections(self) -> list[np.ndarray]:
        """Per row the response tokens with a weight."""
        return [row != 0 for row in self._weights]

    trains_entropy = False

    def over_all_rows(self, means: Mapping[str, float]) -> dict[str, float]:
        """All rows are computed."""
        return dict(means)

    def __call__(
        self, numbers: Sequence[int], batch: MicroBatch, log_probs: torch.Tensor, entropy: torch.Tensor | None
    ) -> tuple[torch.Tensor, LossRecord]:
        """The micro-batch's share of the loss, and its statistics."""
        chosen = [self._weights[number][self._weights[number] != 0] for number in numbers]
        weights = torch.from_numpy(np.concatenate([*chosen, np.zeros(0, dtype=np.float32)])).to(log_probs.device)
        loss, stats = nll_loss(log_probs=log_probs, weights=weights)
        loss = loss / self._total
        return loss, _record({"loss": loss}, stats, batch)


def _all_or_none(values: Sequence[object | None], what: str) -> bool:
    having = sum(value is not None for value in values)
    if 0 < having < len(values):
        raise ValueError(f"{having} of {len(values)} rows have {what}; all rows of a mini-batch have them or none")
    return having > 0


def read_tokens(signal: TrainingSignal, config: LossConfig) -> np.ndarray:
    """The tokens whose log-prob the loss reads, bool like the masks: those of KL and NLL term where they have a coefficient."""
    read = signal.policy_mask
    if config.kl_coefficient > 0:
        read = read | signal.kl_mask
    return read | _nll_mask(signal) if config.nll_coefficient > 0 else read


def signal_denominators(signals: Iterable[TrainingSignal]) -> Denominators:
    """Counts of a (part of a) mini-batch that has these signals."""
    listed = list(signals)
    return count_denominators((signal.policy_mask for signal in listed), (signal.nll_mask for signal in listed))


def _nll_mask(signal: TrainingSignal) -> np.ndarray:
    return np.zeros_like(signal.policy_mask) if signal.nll_mask is None else signal.nll_mask


def _record(
    losses: dict[str, torch.Tensor], stats: Stats, batch: MicroBatch, log_probs: Mapping[int, np.ndarray] | None = None
) -> LossRecord:
    return LossRecord(
        {name: value.detach().double().cpu() for name, value in losses.items()},
        {k: v.cpu() for k, v in stats.items()},
        micro_batch_work(batch),
        log_probs or {},
    )


def _or_zeros(values: np.ndarray | None, row: RowSignal) -> np.ndarray:
    if values is None:
        if row.signal.kl_mask.any():
            raise ValueError("a row has KL tokens but no reference log-probs")
        return np.zeros(len(row.signal.kl_mask), dtype=np.float32)
    return values
