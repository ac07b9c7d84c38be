"""The policy as the training loop sees it: log-probs of rows, one optimizer update, a weight stream.
Every call is collective."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.optimizer import ChainedOptimizer

from octopus_mcore.config.schema import Config, OptimizerConfig
from octopus_mcore.experience.types import ProcessedImage
from octopus_mcore.models.costs.flops import Flops, Work, model_flops
from octopus_mcore.models.costs.layout import Compute
from octopus_mcore.models.exporting import WeightExporter
from octopus_mcore.models.precision_audit import PrecisionReport, PrecisionWatch, audit
from octopus_mcore.models.weight_stream import WeightStream, WeightStreamTarget
from octopus_mcore.policy.losses import add_stats, means
from octopus_mcore.policy.objectives import PolicyObjective, SupervisedObjective, measure
from octopus_mcore.policy.offload import check_offload
from octopus_mcore.policy.optimizer_state import distributed_parts
from octopus_mcore.policy.packing import PlanBalance, plan_balance, plan_micro_batches
from octopus_mcore.policy.prefixes import prefix_order
from octopus_mcore.policy.residence import Part, Residence
from octopus_mcore.policy.role import Role, apply_update, build_optimizer, build_role
from octopus_mcore.policy.rows import Row
from octopus_mcore.policy.step import HeadSettings, Pass, PlannedRows, TokenFunction, run_pass
from octopus_mcore.policy.work import encoded_grids, row_loads
from octopus_mcore.runtime.world import World


@dataclass(frozen=True)
class UpdateReport:
    """One optimizer update of a global mini-batch: `losses` holds `loss` and its terms, `means` the statistics of
    `policy.losses`, then gradient norm and learning rate, and over all replicas the tokens that were computed and the
    operations of its forward and backward passes. `row_tokens` is how many tokens its rows have, each counted whole, and
    `balance` how they were dealt to micro-batches and ranks. `log_probs` are those of the selected tokens before the update,
    float32 [selected tokens], by number of the row, of the rows that the objective measures (`PolicyObjective`)."""

    losses: Mapping[str, float]
    means: Mapping[str, float]
    grad_norm: float
    learning_rate: float
    tokens: int = 0
    flops: Flops = Flops()
    row_tokens: int = 0
    balance: PlanBalance | None = None
    log_probs: Mapping[int, np.ndarray] = field(default_factory=dict)


class Policy:
    """The trained role, its optimizer and, where a phase asks for one, the reference role.

    `version` counts optimizer updates since the run began; engines and spans carry it. `images` is where pixel values are
    looked up, `banned_token_ids` are left out of every softmax (vision special tokens, as in sampling). `hf_folder` holds the
    configuration, tokenizer and processor of the model. `residence` moves its memory to the host and back; a method that needs
    what lies on the host raises `Offloaded`. `precision` is what the first pass's linear layers really ran in; that pass raises
    `PrecisionError` where it is not what the configuration says.
    """

    def __init__(
        self, config: Config, world: World, images: Mapping[str, ProcessedImage], banned_token_ids: tuple[int, ...]
    ) -> None:
        self._config = config
        self._world = world
        self.hf_folder = Path(config.model.folder)
        self._images = images
        self._banned = banned_token_ids
        self.main = build_role("policy", config, world, trained=True)
        for phase in config.phases.values():
            check_offload(phase.optimizer.offload, self.main.megatron.params_dtype)
        self.reference: Role | None = None
        self.optimizer: ChainedOptimizer | None = None
        self.version = 0
        self.precision: PrecisionReport | None = None
        # Half a bucket here and a bucket in the transport leave room for a parameter's tensors within two buckets.
        self._exporter = WeightExporter(self.main.chunks, self.main.entries, config.rollout.sglang.sync_bucket_mb * 2**19)
        self.residence = Residence(
            {
                Part.GRADIENTS: self._gradient_buffers,
                Part.OPTIMIZER: self._optimizer_state,
                Part.PARAMETERS: self._parameters,
            }
        )

    def begin_phase(self, optimizer: OptimizerConfig, with_reference: bool) -> None:
        """A fresh optimizer; the reference, if wanted, is the policy as it is now."""
        self.residence.require(*Part)
        self.optimizer = None  # its memory goes before the new one takes its own
        self.optimizer = build_optimizer(self.main, optimizer)
        self.reference = self._copy_of_main() if with_reference else None

    def log_probs(
        self, rows: Sequence[Row], selections: Sequence[np.ndarray], temperature: float, reference: bool = False
    ) -> list:
        """Log-probs of the selected response tokens of all rows, on every rank: float32 [selected tokens] per row.

        Args:
            rows: the same list on every rank; each replica computes its share.
            selections: per row, bool [response length].
            temperature: divides the logits.
            reference: ask the reference role instead of the policy.
        """
        self.residence.require(Part.PARAMETERS)
        role = self.reference if reference else self.main
        work = self._plan(rows, selections)
        head = HeadSettings(temperature, self._banned)
        records = self._pass(role, work, measure, head, forward_only=True)
        measured: dict[int, np.ndarray] = {}
        for part in self._world.all_gather(records if self._world.leads_stage else []):
            for record in part:
                measured.update(record)
        return [measured[number] for number in range(len(rows))]

    def update(
        self, rows: Sequence[Row], objective: PolicyObjective | SupervisedObjective, temperature: float, learning_rate: float
    ) -> UpdateReport:
        """One optimizer update on a global mini-batch given whole to every rank.

        Raises:
            RuntimeError: no phase has begun.
            ValueError: a row does not fit into a micro-batch.
            NonFiniteGradient: the weights are left as they were.
        """
        if self.optimizer is None:
            raise RuntimeError("Policy.update before Policy.begin_phase: there is no optimizer yet")
        self.residence.require(*Part)
        for chunk in self.main.trained:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        work = self._plan(rows, objective.selections)
        head = HeadSettings(temperature, self._banned, with_entropy=True, entropy_learns=objective.trains_entropy)
        records = self._pass(self.main, work, objective, head, forward_only=False)
        grad_norm = apply_update(self.optimizer, learning_rate)
        self.version += 1
        # One rank of each last stage tells, so that everything is counted once.
        gathered = [record for part in self._world.all_gather(records if self._world.leads_stage else []) for record in part]
        losses = {name: float(sum(record.losses[name] for record in gathered)) for name in gathered[0].losses}
        measured = {number: values for record in gathered for number, values in record.log_probs.items()}
        done = sum((record.work for record in gathered), Work())
        compute = Compute.of(self._config.model)
        # One by one: it depends on a micro-batch's size what its head computes again.
        parts = [*(record.work for record in gathered), Work(grids=work.grids)]
        counts = (model_flops(self.main.shape, self._config.parallel, part, compute) for part in parts)
        return UpdateReport(
            losses,
            objective.over_all_rows(means(add_stats(*(record.stats for record in gathered)))),
            grad_norm,
            learning_rate,
            done.tokens,
            sum(counts, Flops()),
            sum(len(row) for row in rows),
            work.balance,
            measured,
        )

    def weight_stream(self, target: WeightStreamTarget) -> WeightStream:
        """The current weights as Hugging Face tensors (see `WeightExporter.stream`)."""
        self.residence.require(Part.PARAMETERS)
        return self._exporter.stream(target)

    def _pass(self, role: Role, work: Pass, function: TokenFunction, head: HeadSettings, forward_only: bool) -> list[Any]:
        """`run_pass`; the policy's first one that reaches all layers is watched by the precision audit."""
        run = partial(run_pass, role, work, function, head, self._images, self._world, forward_only)
        if self.precision is not None or role is not self.main or not any(chosen.any() for chosen in work.selections):
            return run()
        with PrecisionWatch(self.main.chunks) as watch:
            records = run()
        self.precision = audit(self._world.all_gather(watch.seen()), self._config.model, self.main.shape.decoder.layers)
        return records

    def _plan(self, rows: Sequence[Row], selections: Sequence[np.ndarray]) -> Pass:
        order, share = prefix_order(rows), self._config.batch.share_prefixes
        loads = row_loads(order, rows, selections, self.main.shape, Compute.of(self._config.model), share)
        plan = plan_micro_batches(
            loads,
            self._config.batch.max_tokens_per_micro_batch,
            self._world.data_size,
            multiple_of=self._config.token_multiple,
            names=[rows[number].name for number in order.rows],
            # What the interleaved schedule runs at a time.
            rounds_of=self._world.pipeline_size if len(self.main.chunks) > 1 else 1,
        )
        picked = (order.pick(places) for places in plan[self._world.data_rank])
        planned = [PlannedRows(numbers, shared if share else ()) for numbers, shared in picked]
        balance = plan_balance(plan, loads, self._config.token_multiple)
        grids = encoded_grids([rows[order.rows[place]] for places in replica for place in places] for replica in plan)
        return Pass(rows, selections, planned, self._config.token_multiple, balance, grids)

    def _gradient_buffers(self) -> Iterator[torch.Tensor]:
        for chunk in self.main.trained:
            yield from (buffer.grad_data for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers))

    def _optimizer_state(self) -> Iterator[torch.Tensor]:
        """Moments, and the float32 weights where the model's own are narrower. Step counters stay where they are, and so does
        what `optimizer.offload` keeps on the host."""
        for part in distributed_parts(self.optimizer) if self.optimizer is not None else ():
            for group in part.optimizer.param_groups:
                yield from group["params"]
            for state in part.optimizer.state.values():
                tensors = (value for value in state.values() if isinstance(value, torch.Tensor) and value.dim())
                yield from (tensor for tensor in tensors if tensor.device.type == self._world.device.type)

    def _parameters(self) -> Iterator[torch.Tensor]:
        for role in (self.main, self.reference):
            if role is not None:
                yield from role.parameters()
                yield from role.buffers()

    @torch.no_grad()
    def _copy_of_main(self) -> Role:
        role = self.reference or build_role("reference", self._config, self._world, trained=False)
        for ours, theirs in zip(role.parameters(), self.main.parameters(), strict=True):
            ours.copy_(theirs)
        return role
