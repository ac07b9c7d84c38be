"""One pass of a planned mini-batch through Megatron's pipeline schedule, forward only or with backward.

Every rank of a replica calls with the same rows and plan. What is done with the log-probs of the selected tokens is the
caller's `TokenFunction`; it runs on the last stage, and its records come back there in micro-batch order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.utils import get_attr_wrapped_model

from octopus_mcore.experience.types import ProcessedImage
from octopus_mcore.models.context import ContextShare, spread_values
from octopus_mcore.models.costs.images import Grid
from octopus_mcore.models.micro_batch import MicroBatch
from octopus_mcore.policy.interleaved import interleaved_arguments
from octopus_mcore.policy.packing import PlanBalance
from octopus_mcore.policy.role import Role
from octopus_mcore.policy.rows import Row, pack_rows, to_device
from octopus_mcore.policy.token_head import selected_log_probs
from octopus_mcore.policy.visual import PassFeatures
from octopus_mcore.runtime.world import World

TokenFunction = Callable[[Sequence[int], MicroBatch, torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, Any]]
"""(row numbers of the micro-batch, the micro-batch, log-probs [U] row by row, entropies [U] or None) → (summed loss already
divided by its global denominator, a record to hand back)."""


@dataclass(frozen=True)
class HeadSettings:
    """How log-probs are measured: temperature, tokens outside the softmax, whether entropies are wanted, and whether with a
    gradient: the head's backward pass then needs a second tile and more arithmetic."""

    temperature: float
    banned_token_ids: tuple[int, ...]
    with_entropy: bool = False
    entropy_learns: bool = False


@dataclass(frozen=True)
class PlannedRows:
    """A micro-batch to be: row numbers in the order of their prefix tree, and how many leading tokens each has in common with
    the one before it (`PrefixOrder.pick`)."""

    numbers: tuple[int, ...]
    shared: tuple[int, ...]


@dataclass(frozen=True)
class Pass:
    """A mini-batch: all rows of the step, which response tokens matter in each, this replica's micro-batches, what their
    lengths are padded to a multiple of (`Config.token_multiple`); and of all replicas how evenly micro-batches are filled, and
    the grids of the images that they encode."""

    rows: Sequence[Row]
    selections: Sequence[np.ndarray]
    micro_batches: Sequence[PlannedRows]
    multiple_of: int
    balance: PlanBalance
    grids: tuple[Grid, ...]


def run_pass(
    role: Role,
    work: Pass,
    function: TokenFunction,
    head: HeadSettings,
    images: Mapping[str, ProcessedImage],
    world: World,
    forward_only: bool,
) -> list[Any]:
    """Runs all micro-batches; returns the records on the last stage, an empty list elsewhere.
    Gradients are left in the role's DDP."""
    schedule = get_forward_backward_func()
    iterators = [_batches(work, role.shape.merge_size, world) for _ in role.chunks]
    interleaved = len(role.chunks) > 1
    features = _features(role, work, images, world)
    # The schedules call it behind their last backward pass.
    role.megatron.finalize_model_grads_func = partial(_finalize, features)
    try:
        with torch.set_grad_enabled(not forward_only):
            return schedule(
                forward_step_func=partial(_forward_step, role, head, function, features),
                data_iterator=iterators if interleaved else iterators[0],
                model=role.scheduled,
                num_microbatches=len(work.micro_batches),
                seq_length=1,  # shapes travel with the tensors (variable_seq_lengths)
                micro_batch_size=1,
                forward_only=forward_only,
                **(interleaved_arguments(role.megatron) if interleaved else {}),
            )
    finally:
        role.megatron.finalize_model_grads_func = None  # it holds features, after an error with their graphs


def _batches(work: Pass, merge_size: int, world: World) -> Iterator[tuple[Sequence[int], MicroBatch]]:
    for planned in work.micro_batches:
        rows, selections = [work.rows[i] for i in planned.numbers], [work.selections[i] for i in planned.numbers]
        batch = pack_rows(rows, selections, merge_size, work.multiple_of, planned.shared)
        yield planned.numbers, to_device(batch, world.device)


def _features(role: Role, work: Pass, images: Mapping[str, ProcessedImage], world: World) -> PassFeatures | None:
    """On ranks that hold the vision tower."""
    first = role.chunks[0]
    if not first.pre_process or role.shape.vision is None:
        return None
    rows = [[work.rows[i] for i in planned.numbers] for planned in work.micro_batches]
    return PassFeatures(first.vision, rows, images, world.device)


def _finalize(features: PassFeatures | None, *arguments: Any, **named: Any) -> None:
    """What the images of several micro-batches still owe the tower, then Megatron's sums over ranks."""
    if features is not None:
        features.backward()
    finalize_model_grads(*arguments, **named)


def _forward_step(
    role: Role,
    head: HeadSettings,
    function: TokenFunction,
    features: PassFeatures | None,
    iterator: Iterator[tuple[Sequence[int], MicroBatch]],
    chunk: torch.nn.Module,
) -> tuple[torch.Tensor, Callable]:
    numbers, batch = next(iterator)
    visual = None
    if batch.images is not None and get_attr_wrapped_model(chunk, "pre_process"):
        visual = features.of(batch.images)
    return chunk(batch, visual), partial(_finish, role, head, function, numbers, batch)


def _finish(
    role: Role, head: HeadSettings, function: TokenFunction, numbers: Sequence[int], batch: MicroBatch, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """The schedule's loss function: the row view of the log-probs goes to the token function. With `calculate_per_token_loss`
    and a token count of 0, neither the schedule nor DDP nor the final gradient scaling divides by anything: the loss is already
    normalised."""
    log_probs, entropy = _selected(role, head, batch, hidden.squeeze(1))
    entropy = None if entropy is None else entropy[batch.gathered]
    loss, record = function(numbers, batch, log_probs[batch.gathered], entropy)
    return loss, torch.zeros((), dtype=torch.int, device=hidden.device), record


def _selected(
    role: Role, head: HeadSettings, batch: MicroBatch, flat: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probs [T] and, if wanted, entropies [T] of the selected tokens, on every rank of the stage, from this rank's hidden
    states [S / (context · tensor size), hidden]. Each context-parallel rank computes those of its own tokens."""
    if role.megatron.sequence_parallel:
        # The head's gradient on each rank stems from its vocabulary shard only; this gather's backward pass adds the shares.
        flat = gather_from_sequence_parallel_region(flat, tensor_parallel_output_grad=True)
    here, places = ContextShare.here().locate(batch.selected, len(batch))
    weight = role.chunks[-1].head_weight()
    log_probs, entropy = selected_log_probs(
        flat.index_select(0, places),
        weight,
        batch.targets[here],
        temperature=head.temperature,
        vocab_size=role.shape.decoder.vocab_size,
        banned=torch.tensor(head.banned_token_ids, dtype=torch.int64, device=flat.device),
        tp_group=parallel_state.get_tensor_model_parallel_group(),
        with_entropy=head.with_entropy,
        main_grad=getattr(weight, "main_grad", None),  # of a trained role; DDP's hook adds to it what autograd brings besides
    )
    if entropy is not None and not head.entropy_learns:
        entropy = entropy.detach()
    if role.megatron.context_parallel_size == 1:
        return log_probs, entropy
    values = spread_values(torch.stack((log_probs,) if entropy is None else (log_probs, entropy)), here)
    return values[0], values[1] if head.with_entropy else None
