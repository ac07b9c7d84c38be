"""What the rank processes run for `test_turns.py`: the real policy, its stream and its memory, and engines that lose their
weights on command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.config.schema import RuntimeConfig
from octopus_mcore.models.weight_stream import WeightStream
from octopus_mcore.policy.checkpoint import load_checkpoint, save_checkpoint
from octopus_mcore.policy.policy import Policy
from octopus_mcore.policy.residence import Part
from octopus_mcore.rollout.engine import Attendant, Generation, GenerationRequest, SamplingParams
from octopus_mcore.runtime.world import join_world
from octopus_mcore.training.engine_seat import EngineSeat
from octopus_mcore.training.turns import Shared
from tests.distributed.layout_checks import TEMPERATURE, Layout, config_for, policy_objective
from tests.forgetful import Forgetful
from tests.tiny import BANNED, tiny_batch


class Receiving(Forgetful):
    """Keeps the weights that it is given, and answers only where it has its caches."""

    caches = True
    weights: dict[str, torch.Tensor]

    async def generate(self, requests: Sequence[GenerationRequest], attendant: Attendant) -> list[Generation]:
        assert self.caches
        return await super().generate(requests, attendant)

    def update_weights(self, stream: WeightStream, version: int) -> None:
        self.weights = received(stream)
        super().update_weights(stream, version)

    def release_memory(self) -> None:
        self.version, self.caches = None, False

    def resume_memory(self) -> None:
        self.caches = True


def received(stream: WeightStream) -> dict[str, torch.Tensor]:
    return {item.name: item.tensor.clone() for bucket in stream for item in bucket}


@dataclass(frozen=True)
class Report:
    """One rank's view: the results of the generations, how often weights were streamed, what its engine was asked and holds at
    the end, and the policy's weights then."""

    results: list[list[list[int]]]
    streams: int
    answered: list[int] | None
    weights: dict[str, torch.Tensor] | None
    policy: dict[str, torch.Tensor]


def numbers(generation: int, replica: int) -> list[int]:
    """The prompts of a generation's requests to one replica."""
    return [100 * generation + 10 * replica + number for number in range(6)]


def generate_and_train(checkpoint: str, layout: Layout, engines: Sequence[Receiving], shared: bool, folder: str) -> Report:
    """Generation; an update, a checkpoint and generation; a new phase, the checkpoint again and generation. The leader of each
    replica has an engine, on the trainer's devices or apart."""
    batch = tiny_batch(3, (0, 1, 3, 1))
    config = config_for(checkpoint, layout)
    with join_world(config.parallel, RuntimeConfig(timeout_minutes=1)) as world:
        policy = Policy(config, world, batch.images, BANNED)
        if shared:
            policy.residence.offload(*Part)
        engine = engines[world.data_rank] if world.is_replica_leader else None
        turns = Shared(engine, policy.residence, world) if shared else None
        seat = EngineSeat(engine, policy, world, turns=turns, check_weights=True)
        streams, stream = [], policy.weight_stream
        policy.weight_stream = lambda target: streams.append(target) or stream(target)
        results: list[list[list[int]]] = []

        def generate() -> None:
            asked = numbers(len(results), world.data_rank)
            seat.sync()
            results.append(seat.run("rollout", lambda own: _answers(own, asked)))
            seat.make_room()

        seat.make_room()
        policy.begin_phase(config.optimizer, with_reference=True)
        generate()
        policy.update(batch.rows, policy_objective(batch, LossConfig(kl_coefficient=0.5)), TEMPERATURE, 0.1)
        save_checkpoint(Path(folder), policy, {}, world)
        generate()
        policy.begin_phase(config.optimizer, with_reference=True)
        load_checkpoint(Path(folder), policy, with_optimizer=True)
        generate()
        leads = engine is not None
        weights, answered = (engine.weights, engine.answered) if leads else (None, None)
        return Report(results, len(streams), answered, weights, received(stream("all")))


async def _answers(engine: Receiving, asked: Sequence[int]) -> list[int]:
    requests = [GenerationRequest((number,), (), SamplingParams(), seed=number) for number in asked]
    return [generation.token_ids[0] for generation in await engine.generate(requests)]
