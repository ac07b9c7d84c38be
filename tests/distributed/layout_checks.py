"""What the rank processes run for `test_layouts.py`:
the real world, model, schedule, loss and exporter on the tiny checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.config.schema import (
    BatchConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    RuntimeConfig,
)
from octopus_mcore.config.section import PluginConfig
from octopus_mcore.experience.types import TrainingSignal
from octopus_mcore.models.micro_batch import MicroBatch
from octopus_mcore.policy.objectives import PolicyObjective, RowSignal
from octopus_mcore.policy.policy import Policy
from octopus_mcore.policy.rows import Row, pack_rows
from octopus_mcore.runtime.seeds import numpy_generator
from octopus_mcore.runtime.world import World, join_world
from tests.tiny import BANNED, TinyBatch, tiny_batch

TEMPERATURE = 0.7


@dataclass(frozen=True)
class Layout:
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    recompute: str = "none"
    max_tokens: int = 64
    context: int = 1
    virtual: int = 1
    stages: tuple[int, ...] | None = None

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline * self.context * self.data

    def __str__(self) -> str:
        sizes = {"TP": self.tensor, "PP": self.pipeline, "VPP": self.virtual, "CP": self.context, "DP": self.data}
        name = "".join(f"{axis}{size}" for axis, size in sizes.items() if size > 1) or "one"
        name += "-" + "-".join(map(str, self.stages)) if self.stages else ""
        return name + {"none": "", "selective": "-selective", "full": "-recomputed"}[self.recompute]


def config_for(checkpoint: str, layout: Layout, dtype: str = "float32", **model: object) -> Config:
    return Config(
        run=RunConfig(name="test"),
        parallel=ParallelConfig(
            tensor=layout.tensor,
            pipeline=layout.pipeline,
            virtual=layout.virtual,
            stages=None if layout.stages is None else list(layout.stages),
            context=layout.context,
            data=layout.data,
        ),
        model=ModelConfig(path=checkpoint, dtype=dtype, recompute=layout.recompute, **model),
        data=DataConfig(train=PluginConfig(target="none:none")),
        batch=BatchConfig(max_tokens_per_micro_batch=layout.max_tokens),
        # eps = 1 makes Adam's first step nearly linear in the gradient, so that weights after it compare gradients
        optimizer=OptimizerConfig(lr=0.1, eps=1.0, weight_decay=0.01, clip_grad=0.0, warmup_steps=0),
        phases={},
    )


def measure_log_probs(
    checkpoint: str, layout: Layout, seed: int, image_counts: tuple[int, ...], dtype: str = "float32"
) -> list[np.ndarray]:
    """Every rank's log-probs of the selected tokens of all rows."""
    batch = tiny_batch(seed, image_counts)
    config = config_for(checkpoint, layout, dtype)
    with join_world(config.parallel, RuntimeConfig()) as world:
        return Policy(config, world, batch.images, BANNED).log_probs(batch.rows, batch.selections, TEMPERATURE)


def policy_objective(batch: TinyBatch, loss: LossConfig) -> PolicyObjective:
    draw = numpy_generator(1, "objective")
    signals = []
    for selection in batch.selections:
        length = len(selection)
        kl = draw.random(length) < 0.3
        signal = TrainingSignal(selection, kl, draw.standard_normal(length).astype(np.float32))
        old, reference = (draw.normal(-4.5, 0.3, length).astype(np.float32) for _ in range(2))
        weights = draw.choice([0.0, 0.5, 1.0, 2.0], length).astype(np.float32)
        signals.append(RowSignal(signal, old, reference, lambda old, weights=weights: weights))
    return PolicyObjective(loss, signals)


GRADIENT_IMAGES = (0, 1, 3, 1, 2)
GRADIENT_LOSS = LossConfig(kind="grpo", clip_low=0.9, clip_high=9.0, kl_coefficient=0.5, dual_clip=None)
ENTROPY_LOSS = GRADIENT_LOSS.model_copy(update={"entropy_coefficient": 0.5})


def gradients_and_update(
    checkpoint: str,
    layout: Layout,
    freeze_vision: bool = False,
    image_counts: tuple[int, ...] = GRADIENT_IMAGES,
    loss: LossConfig = GRADIENT_LOSS,
) -> dict:
    """One real update; gradients (only where no rank has but a share of their sum) and new weights under HF names."""
    batch = tiny_batch(3, image_counts)
    config = config_for(checkpoint, layout, freeze_vision=freeze_vision)
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, batch.images, BANNED)
        policy.begin_phase(config.optimizer, with_reference=False)
        report = policy.update(batch.rows, policy_objective(batch, loss), TEMPERATURE, learning_rate=0.1)
        gradients = streamed_gradients(policy, world) if layout.data * layout.context == 1 else None
        return {
            "losses": dict(report.losses),
            "grad_norm": report.grad_norm,
            "means": dict(report.means),
            "gradients": gradients,
            "weights": streamed_weights(policy, "all"),
        }


def streamed_weights(policy: Policy, target: str) -> dict[str, torch.Tensor]:
    return {item.name: item.tensor.clone() for bucket in policy.weight_stream(target) for item in bucket}


@torch.no_grad()
def streamed_gradients(policy: Policy, world: World) -> dict[str, torch.Tensor]:
    """The gradients through the weight exporter: parameters lend it their place for a moment."""
    parameters = [p for p in policy.main.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in parameters]
    for parameter in parameters:
        parameter.copy_(parameter.main_grad)
    gradients = streamed_weights(policy, "all")
    for parameter, value in zip(parameters, kept, strict=True):
        parameter.copy_(value)
    return gradients


def round_trip(checkpoint: str, layout: Layout, target: str) -> tuple[bool, dict[str, torch.Tensor]]:
    """HF folder → Megatron → weight stream, on every rank, and whether the rank leads its replica."""
    config = config_for(checkpoint, layout)
    with join_world(config.parallel, RuntimeConfig()) as world:
        return world.is_replica_leader, streamed_weights(Policy(config, world, {}, BANNED), target)


def measure_padded(
    checkpoint: str, layout: Layout, seed: int, image_counts: tuple[int, ...], multiple_of: int
) -> list[np.ndarray]:
    """Log-probs of rows that share one micro-batch with a long stretch of padding behind them, on the last stage's ranks."""
    batch = tiny_batch(seed, image_counts)
    config = config_for(checkpoint, layout)
    with (
        join_world(config.parallel, RuntimeConfig()) as world,
        patch("octopus_mcore.policy.step.pack_rows", _padding_to(multiple_of)),
    ):
        return Policy(config, world, batch.images, BANNED).log_probs(batch.rows, batch.selections, TEMPERATURE)


def _padding_to(multiple_of: int) -> Callable[..., MicroBatch]:
    def pack(
        rows: Sequence[Row], selections: Sequence[np.ndarray], merge_size: int, _: int, shared: Sequence[int]
    ) -> MicroBatch:
        batch = pack_rows(rows, selections, merge_size, multiple_of, shared)
        assert len(batch) >= sum(len(row) for row in rows) + multiple_of // 2, "nothing was padded"
        return batch

    return pack
