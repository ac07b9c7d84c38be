"""What the rank processes run for `test_costs.py`: what a real policy allocates, and what its forward pass saves."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from octopus_mcore.config.schema import RuntimeConfig
from octopus_mcore.experience.types import ImageRef, ProcessedImage
from octopus_mcore.models.micro_batch import MicroBatch
from octopus_mcore.policy.objectives import SupervisedObjective
from octopus_mcore.policy.policy import Policy
from octopus_mcore.policy.rows import Row, pack_rows, pixel_values
from octopus_mcore.runtime.seeds import numpy_generator
from octopus_mcore.runtime.world import World, join_world
from tests.distributed.layout_checks import Layout, config_for
from tests.tiny import BANNED, IMAGE_PAD, PATCH_FEATURES, VOCABULARY, TinyBatch

GRID = (1, 4, 6)
LENGTH = 32


def equal_batch(rows: int, length: int = LENGTH) -> TinyBatch:
    """Rows of `length` tokens with an image of `GRID` each: every way of sharing them out is even."""
    draw = numpy_generator(rows, "equal rows")
    size = int(np.prod(GRID)) // 4
    images, made = {}, []
    for number in range(rows):
        images[f"image {number}"] = ProcessedImage(draw.standard_normal((4 * size, PATCH_FEATURES), dtype=np.float32), GRID)
        tokens = [9, 4, *[IMAGE_PAD] * size, 7]
        tokens += list(draw.integers(8, VOCABULARY, length - len(tokens)))
        made.append(Row(f"row {number}", np.array(tokens), length - 12, (ImageRef(f"image {number}", 2, GRID, size),)))
    return TinyBatch(made, images, [np.arange(12) % 2 == 0 for _ in made])


def allocated(checkpoint: str, layout: Layout, dtype: str, batch: TinyBatch, freeze_vision: bool) -> dict:
    """One update, then this rank's bytes by kind, and the bytes that a forward pass of its part of the model saves."""
    config = config_for(checkpoint, layout, dtype, freeze_vision=freeze_vision)
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, batch.images, BANNED)
        policy.begin_phase(config.optimizer, with_reference=True)
        weights = [np.ones(row.response_length, dtype=np.float32) * chosen for row, chosen in zip(batch.rows, batch.selections)]
        report = policy.update(batch.rows, SupervisedObjective(weights), 1.0, 0.1)
        parameters = list(policy.main.model.parameters())
        own = _storages(parameters)
        return {
            "parameters": sum(parameter.numel() for parameter in parameters),
            "weights": sum(own.values()),
            "gradients": sum(_storages(policy._gradient_buffers()).values()),
            # What the optimizer holds besides the parameters' own memory, which in float32 it works on.
            "optimizer": sum(size for key, size in _storages(policy._optimizer_state()).items() if key not in own),
            "reference": sum(_storages(policy.reference.model.parameters()).values()),
            "saved": _saved(policy, world, batch, layout, own),
            "tokens": report.tokens,
            "flops": report.flops,
        }


def _storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    return {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}


def _saved(policy: Policy, world: World, batch: TinyBatch, layout: Layout, own: dict[int, int]) -> int:
    """Bytes of the storages that autograd keeps after a forward pass of one micro-batch with all rows, without weights."""
    model, multiple = policy.main.model, policy._config.parallel.token_multiple
    packed = pack_rows(batch.rows, batch.selections, 2, multiple)
    pixels = None
    if model.pre_process:
        pixels = pixel_values(packed.images, batch.images)
    else:
        share = len(packed) // layout.context // layout.tensor
        arrived = torch.randn(share, 1, model.config.hidden_size, dtype=model.config.params_dtype, requires_grad=True)
        model.set_input_tensor(arrived)
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(packed, pixels)
    inputs = _storages(_tensors(packed))
    assert output.requires_grad
    return sum(size for key, size in _storages(kept.values()).items() if key not in own and key not in inputs)


def _tensors(batch: MicroBatch) -> list[torch.Tensor]:
    return [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
