"""What a run will cost, before it starts: needs the checkpoint's configuration, no weights, no ranks and no device."""

from __future__ import annotations

from pathlib import Path

from octopus_mcore.config.layout import data_parallel_size, longest_row
from octopus_mcore.config.model_layout import check_model
from octopus_mcore.config.schema import Config, RLPhaseConfig
from octopus_mcore.models.costs.layout import Compute
from octopus_mcore.models.costs.report import Plan, cost_lines


def cost_text(config: Config, world_size: int | None = None) -> str:
    """Parameters, bytes of each rank and operations of a checked configuration.

    Raises:
        FileNotFoundError, ValueError: the checkpoint's configuration is of another family, or does not fit the layout where
            keys that it leaves out have their default.
    """
    title = "Costs\n-----\n"
    if not Path(config.model.folder).exists():
        return f"{title}not known before the model is made\n"
    from octopus_mcore.models.families import load_shape  # Transformers takes seconds; who only launches does not wait for it

    model = load_shape(config.model.folder)
    if violations := check_model(model.hf.to_dict(), config.parallel):
        raise ValueError("\n".join(violations))
    lines = [*cost_lines(model, plan_of(config, world_size))]
    if config.model.layer_spec != "local":
        lines.append(f"The numbers are those of layer_spec local in {config.model.dtype}; others save and hold other things.")
    if share := max((phase.optimizer.offload for phase in config.phases.values()), default=0.0):
        lines.append(f"With optimizer.offload={share:g} that share of the optimizer's bytes is the host's, not the device's.")
    return title + "\n".join(lines) + "\n"


def plan_of(config: Config, world_size: int | None) -> Plan:
    """What a run's costs are computed from. Rows of supervised phases are not known; they are bounded by a micro-batch."""
    budget = config.batch.max_tokens_per_micro_batch
    phases = [phase for phase in config.phases.values() if isinstance(phase, RLPhaseConfig)]
    return Plan(
        parallel=config.parallel.model_copy(update={"data": data_parallel_size(config, world_size)}),
        compute=Compute.of(config.model),
        max_tokens=budget,
        row=max((longest_row(config, phase) for phase in phases), default=budget),
        reference=any(phase.loss.kl_coefficient > 0 for phase in phases),
    )
