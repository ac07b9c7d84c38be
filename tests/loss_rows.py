"""Made-up rows for tests of losses, and the losses of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.policy.losses import Stats, entropy_loss, kl_loss, policy_loss
from octopus_mcore.runtime.seeds import torch_generator

KINDS = ["grpo", "gspo", "gspo_token", "cispo", "reinforce"]
CLIPPED = KINDS[:3]
AGGREGATIONS = ["sequence_mean", "token_mean", "constant"]
LENGTH = 12
"""`length_constant` of these tests."""
WIDE = {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": 3.0}


@dataclass(frozen=True)
class Row:
    """One row of a made-up mini-batch, all float64 or bool [length]."""

    new: torch.Tensor
    old: torch.Tensor
    reference: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor
    kl_mask: torch.Tensor


def make_rows(seed: int, lengths: list[int], spread: float = 0.5, constant: bool = True) -> list[Row]:
    """Random rows; `spread` is how far the log-probs are from the old ones, `constant` gives a row one advantage."""
    generator = torch_generator("losses", seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = []
    for length in lengths:
        old = -normal(length).abs()
        rows.append(
            Row(
                new=old + spread * normal(length),
                old=old,
                reference=old + spread * normal(length),
                advantages=normal(1).expand(length) if constant else normal(length),
                mask=torch.rand(length, generator=generator) < 0.7,
                kl_mask=torch.rand(length, generator=generator) < 0.5,
            )
        )
    return rows


def flat(rows: list[Row], name: str) -> torch.Tensor:
    """A field of all rows, one behind the other."""
    return torch.cat([getattr(row, name) for row in rows])


def row_index(rows: list[Row]) -> torch.Tensor:
    """For each token its row."""
    return torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(row.new) for row in rows]))


def run_policy(
    config: LossConfig, rows: list[Row], new: torch.Tensor, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, Stats]:
    """The policy loss of the rows with these log-probs."""
    return policy_loss(
        config,
        log_probs=new,
        old_log_probs=flat(rows, "old"),
        advantages=flat(rows, "advantages"),
        mask=flat(rows, "mask"),
        row_index=row_index(rows),
        num_rows=len(rows),
        weights=weights,
    )


def run_entropy(config: LossConfig, rows: list[Row], entropy: torch.Tensor) -> torch.Tensor:
    """The entropy loss of the rows with these entropies."""
    return entropy_loss(config, entropy=entropy, mask=flat(rows, "mask"), row_index=row_index(rows), num_rows=len(rows))


def run_kl(config: LossConfig, rows: list[Row], new: torch.Tensor) -> tuple[torch.Tensor, Stats]:
    """The KL loss of the rows with these log-probs."""
    return kl_loss(
        config,
        log_probs=new,
        reference_log_probs=flat(rows, "reference"),
        mask=flat(rows, "kl_mask"),
        row_index=row_index(rows),
        num_rows=len(rows),
    )
