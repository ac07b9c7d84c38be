"""What the rank processes run for `test_trees.py`: the real policy on groups, as prefix trees and as rows."""

from __future__ import annotations

from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.config.schema import RuntimeConfig
from octopus_mcore.models.micro_batch import MicroBatch
from octopus_mcore.models.vision import VisionTower
from octopus_mcore.policy.objectives import SupervisedObjective
from octopus_mcore.policy.policy import Policy
from octopus_mcore.policy.rows import pack_rows
from octopus_mcore.runtime.world import join_world
from tests.distributed.layout_checks import TEMPERATURE, Layout, config_for, policy_objective, streamed_gradients
from tests.tiny import BANNED, TinyBatch
from tests.trees import tree_batch


@dataclass(frozen=True)
class Case:
    """A random batch of groups, by the arguments of `tree_batch`, and the loss that it is trained on; None is the
    likelihood."""

    seed: int = 0
    image_counts: tuple[int, ...] = (0, 1, 2)
    loss: LossConfig | None = None
    freeze_vision: bool = False


def train(checkpoint: str, layout: Layout, share: bool, case: Case) -> dict:
    """Log-probs before, and one real update: its report, gradients and new weights under HF names, how many tokens passed
    through the model and how often the tower saw each image."""
    batch = tree_batch(case.seed, case.image_counts)
    config = config_for(checkpoint, layout, freeze_vision=case.freeze_vision)
    config = config.model_copy(update={"batch": config.batch.model_copy(update={"share_prefixes": share})})
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, batch.images, BANNED)
        policy.begin_phase(config.optimizer, with_reference=False)
        log_probs = policy.log_probs(batch.rows, batch.selections, TEMPERATURE)
        with _counting() as seen:
            report = policy.update(batch.rows, _objective(batch, case.loss), TEMPERATURE, learning_rate=0.1)
        return {
            "log_probs": log_probs,
            "losses": dict(report.losses),
            "means": dict(report.means),
            "grad_norm": report.grad_norm,
            "tokens": report.tokens,
            "gradients": streamed_gradients(policy, world) if layout.data * layout.context == 1 else None,
            "weights": {item.name: item.tensor.clone() for bucket in policy.weight_stream("all") for item in bucket},
            "packed": seen.tokens,
            "images": seen.images,
        }


def _objective(batch: TinyBatch, loss: LossConfig | None) -> object:
    if loss is None:
        return SupervisedObjective([chosen * np.float32(0.5) for chosen in batch.selections])
    return policy_objective(batch, loss)


class _counting:
    """Counts the tokens of micro-batches, and the grids of images that go through the tower, on this rank."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.images: list[int] = []

    def __enter__(self) -> _counting:
        self._patches = [
            patch("octopus_mcore.policy.step.pack_rows", self._packed),
            patch.object(VisionTower, "_features", self._seen(VisionTower._features)),
        ]
        for one in self._patches:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._patches:
            one.stop()

    def _packed(self, *args: object) -> MicroBatch:
        batch = pack_rows(*args)
        self.tokens.append(len(batch) - batch.padding)
        return batch

    def _seen(self, original):
        def features(tower: VisionTower, pixels: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
            self.images.append(len(grid_thw))
            return original(tower, pixels, grid_thw)

        return features
