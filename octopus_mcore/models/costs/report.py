"""The costs of a run in words, for the planner."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octopus_mcore.config.schema import ParallelConfig
from octopus_mcore.models.costs.activations import Load, peak_activations
from octopus_mcore.models.costs.flops import Flops, Work, model_flops, stage_flops, tower_flops
from octopus_mcore.models.costs.head import head_workspace
from octopus_mcore.models.costs.layout import Compute, chunks
from octopus_mcore.models.costs.memory import rank_memory
from octopus_mcore.models.costs.parameters import model_elements, tower_elements

if TYPE_CHECKING:
    from octopus_mcore.models.family import ModelShape

_SQUARE = (1, 32, 32)
"""The image whose costs are told: 1024 patches."""


@dataclass(frozen=True)
class Plan:
    """What is planned: the layout with `data` set, the token budget of a micro-batch, the longest row, and whether a reference
    role is kept beside the policy."""

    parallel: ParallelConfig
    compute: Compute
    max_tokens: int
    row: int
    reference: bool


def cost_lines(model: ModelShape, plan: Plan) -> Iterator[str]:
    """Parameters, bytes of a rank of each pipeline stage, and operations of a row and of an image."""
    tower = "" if model.vision is None else f", {_count(sum(tower_elements(model.vision)))} of them in the vision tower"
    yield f"{_count(model_elements(model))} parameters{tower}"
    yield ""
    yield from _memory(model, plan)
    yield ""
    yield from _operations(model, plan)


def _memory(model: ModelShape, plan: Plan) -> Iterator[str]:
    """A table with one line for each stage."""
    stages = [_stage(model, plan, rank) for rank in range(plan.parallel.pipeline)]
    unit, size = ("GiB", 2**30) if max(sum(held.values()) for _, held in stages) >= 2**30 else ("MiB", 2**20)
    lines = [["rank of stage", "layers", "work", "parameters", *stages[0][1], "total"]]
    for names, held in stages:
        lines.append([*names, *(f"{value / size:.2f}" for value in (*held.values(), sum(held.values())))])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    yield from ("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    yield (
        f"{unit} on one rank; activations are an estimate, for micro-batches of {plan.max_tokens} tokens; not counted: "
        "images, the allocator, communication, engines on the same device"
    )


def stage_bytes(model: ModelShape, plan: Plan, rank: int) -> dict[str, int]:
    """What a rank of a pipeline stage holds, in bytes by what it is for. Images, the allocator, communication and engines on
    the same device come on top."""
    memory = rank_memory(model, plan.parallel, plan.compute, rank, reference=plan.reference)
    own = [chunk for chunk in chunks(plan.parallel, model.decoder.layers) if chunk.rank == rank]
    load = Load(plan.max_tokens)
    held = {"weights": memory.weights, "gradients": memory.gradients, "optimizer": memory.optimizer}
    held |= {"reference": memory.reference} if plan.reference else {}
    held["activations"] = peak_activations(model, plan.parallel, plan.compute, rank, load)
    held["head"] = head_workspace(model.decoder, plan.parallel, plan.compute, load) if any(chunk.last for chunk in own) else 0
    return held


def _stage(model: ModelShape, plan: Plan, rank: int) -> tuple[list[str], dict[str, int]]:
    """Stage, layers, share of a text row's operations and parameters; and `stage_bytes`."""
    own = [chunk for chunk in chunks(plan.parallel, model.decoder.layers) if chunk.rank == rank]
    parameters = rank_memory(model, plan.parallel, plan.compute, rank).parameters
    row = Work.of_rows([plan.row], plan.row)
    stages = [stage_flops(model, plan.parallel, row, plan.compute, stage).hardware for stage in range(plan.parallel.pipeline)]
    layers = str(sum(len(chunk.layers) for chunk in own))
    return [str(rank), layers, f"{stages[rank] / sum(stages):.0%}", _count(parameters)], stage_bytes(model, plan, rank)


def _operations(model: ModelShape, plan: Plan) -> Iterator[str]:
    """Forward and backward, every token of the row selected."""
    row = model_flops(model, plan.parallel, Work.of_rows([plan.row], plan.row), plan.compute)
    linear = model_flops(model, plan.parallel, Work(tokens=plan.row, selected=plan.row), plan.compute)
    share = 1 - linear.model / row.model
    linear = Flops(*(count // plan.row for count in (linear.forward, linear.backward, linear.extra)))
    yield f"{_operations_of(linear)} a token in linear layers and head"
    yield f"{_operations_of(row)} a row of {plan.row} tokens, {share:.0%} of it in attention"
    if model.vision is not None:
        image = tower_flops(model.vision, [_SQUARE], training=not plan.compute.freeze_vision)
        yield f"{_operations_of(image)} an image of {_SQUARE[1]} × {_SQUARE[2]} patches in the vision tower"


def _operations_of(flops: Flops) -> str:
    executed = f" ({_amount(flops.hardware)} executed)" if flops.hardware != flops.model else ""
    return f"{_amount(flops.model)}{executed}"


def _amount(operations: float) -> str:
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if operations >= size:
            return f"{operations / size:.3g} {unit}"
    return f"{operations / 1e6:.3g} MFLOP"


def _count(elements: int) -> str:
    return f"{elements / 1e9:.3f} B" if elements >= 1e9 else f"{elements / 1e6:.3f} M"
