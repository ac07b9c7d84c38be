"""What the rank processes run for `test_costs.py`: what a real policy allocates, what its forward passes save, what an update
computes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from megatron.core import parallel_state
from torch.utils.flop_counter import FlopCounterMode

from octopus_mcore.config.schema import RuntimeConfig
from octopus_mcore.experience.types import ImageRef, ProcessedImage
from octopus_mcore.models.model import PolicyModel
from octopus_mcore.policy.objectives import SupervisedObjective
from octopus_mcore.policy.policy import Policy, UpdateReport
from octopus_mcore.policy.rows import Row, pack_rows, pixel_values
from octopus_mcore.runtime.seeds import numpy_generator
from octopus_mcore.runtime.world import join_world
from tests.distributed.layout_checks import Layout, config_for
from tests.tiny import BANNED, IMAGE_PAD, PATCH_FEATURES, VOCABULARY, TinyBatch

GRID = (1, 4, 6)
RESPONSE = 12


def equal_batch(rows: int, length: int) -> TinyBatch:
    """Rows of `length` tokens with an image of `GRID` each: every way of sharing them out is even."""
    draw = numpy_generator(rows, "equal rows")
    patches = int(np.prod(GRID))
    images, made = {}, []
    for number in range(rows):
        images[f"image {number}"] = ProcessedImage(draw.standard_normal((patches, PATCH_FEATURES), dtype=np.float32), GRID)
        tokens = [9, 4, *[IMAGE_PAD] * (patches // 4), 7]
        tokens += list(draw.integers(8, VOCABULARY, length - len(tokens)))
        reference = ImageRef(f"image {number}", 2, GRID, patches // 4)
        made.append(Row(f"row {number}", np.array(tokens), length - RESPONSE, (reference,)))
    return TinyBatch(made, images, [np.arange(RESPONSE) % 2 == 0 for _ in made])


def allocated(checkpoint: str, layout: Layout, dtype: str, batch: TinyBatch, freeze_vision: bool) -> dict:
    """One update, then this rank's place, its bytes by kind, and the bytes that a forward pass of each of its chunks saves."""
    config = config_for(checkpoint, layout, dtype, freeze_vision=freeze_vision)
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, batch.images, BANNED)
        policy.begin_phase(config.optimizer, with_reference=True)
        report = _update(policy, batch)
        own = _storages(policy.main.parameters())
        return {
            "pipeline_rank": world.pipeline_rank,
            "replica": parallel_state.get_data_parallel_rank(with_context_parallel=True),
            "parameters": sum(parameter.numel() for parameter in policy.main.parameters()),
            "weights": sum(own.values()),
            "gradients": sum(_storages(policy._gradient_buffers()).values()),
            # What the optimizer holds besides the parameters' own memory, which in float32 it works on.
            "optimizer": sum(size for key, size in _storages(policy._optimizer_state()).items() if key not in own),
            "reference": sum(_storages(policy.reference.parameters()).values()),
            "saved": [_saved(chunk, batch, layout, config.parallel.token_multiple, own) for chunk in policy.main.chunks],
            "report": report,
        }


def computed(checkpoint: str, layout: Layout, batch: TinyBatch) -> tuple[UpdateReport, int]:
    """An update's report, and the operations that torch counts while it runs; it does not know attention on the CPU."""
    config = config_for(checkpoint, layout)
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, batch.images, BANNED)
        policy.begin_phase(config.optimizer, with_reference=False)
        with FlopCounterMode(display=False) as counter:
            report = _update(policy, batch)
        return report, counter.get_total_flops()


def _update(policy: Policy, batch: TinyBatch) -> UpdateReport:
    weights = [chosen.astype(np.float32) for chosen in batch.selections]
    return policy.update(batch.rows, SupervisedObjective(weights), temperature=1.0, learning_rate=0.1)


def _storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    return {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}


def _saved(chunk: PolicyModel, batch: TinyBatch, layout: Layout, multiple: int, own: dict[int, int]) -> int:
    """Bytes of the storages that autograd keeps after one micro-batch of all rows, besides weights and what came in."""
    packed = pack_rows(batch.rows, batch.selections, 2, multiple)
    pixels = None
    if chunk.pre_process:
        pixels = pixel_values(packed.images.keys, packed.images.grid_thw, batch.images)
    else:
        share = len(packed) // layout.context // layout.tensor
        size = (share, 1, chunk.config.hidden_size)
        chunk.set_input_tensor(torch.randn(size, dtype=chunk.config.params_dtype, requires_grad=True))
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # held, so that no other storage takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = chunk(packed, None if pixels is None else chunk.vision(pixels, packed.images.grid_thw))
    assert output.requires_grad
    known = own.keys() | _storages(value for value in vars(packed).values() if isinstance(value, torch.Tensor)).keys()
    return sum(size for key, size in _storages(kept.values()).items() if key not in known)
