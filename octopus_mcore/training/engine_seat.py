"""The engine's seat in the run: who gives it weights, who asks it, and what happens when it loses them on the way.

Weights come by a stream that all ranks iterate together, but servers are lost one at a time, on one rank, in the middle of a
generation that the other ranks know nothing of. So every rank takes the same steps here, with an engine or without: generate as
far as it goes, tell the others, bring weights together where one has none, go on. Answers that were there stay; only requests
without an answer are asked again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from octopus_mcore.policy.policy import Policy
from octopus_mcore.rollout.engine import (
    Attendant,
    Generation,
    GenerationRequest,
    Losses,
    Phase,
    RolloutEngine,
    ServerFault,
    StaleGeneration,
)
from octopus_mcore.runtime.world import World
from octopus_mcore.training.turns import Apart, Turns

_log = logging.getLogger(__name__)
T = TypeVar("T")


class EngineSeat:
    """One rank's side of the rollout engines. `engine` is None on ranks that lead no replica.

    All methods are collective: every rank calls them in the same order.
    """

    def __init__(
        self,
        engine: RolloutEngine | None,
        policy: Policy,
        world: World,
        *,
        turns: Turns | None = None,
        check_weights: bool = False,
        max_staleness: int = 0,
        on_activity: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`turns` says how trainer and engine share devices, None that they do not. `check_weights` lets engines prove at the
        first sync that they got every byte. `on_activity` is told how far this rank's engine is, for a live display."""
        self.engine = engine
        self._policy, self._world = policy, world
        self._unproved, self._max_staleness, self._on_activity = check_weights, max_staleness, on_activity
        self._turns = turns or Apart()
        self._reported = Losses()

    def make_room(self) -> None:
        """Hands the devices to the trainer where it shares them; the engine then serves no weights until the next `sync`."""
        self._turns.train()

    def sync(self) -> None:
        """Gives every engine the policy's weights that does not serve them yet; engines that fail on the way are repaired and
        given them again.

        Raises:
            EngineError: an engine cannot be repaired any more; the other ranks are ended by the launcher.
            ValueError: the stream is not what the engine's model needs.
        """
        while any(self._world.all_gather(self._lacks_weights())):
            self._repair()
            with self._turns.sync():
                fault = self._bring_weights()
            if fault is not None:
                _log.warning("weights are sent again: %s", fault)
            if not any(self._world.all_gather(fault is not None)):
                self._unproved = False

    def run(self, name: str, work: Callable[[RolloutEngine], Coroutine[Any, Any, T]]) -> list[T]:
        """Runs `work` with every rank's engine to its end; the results in rank order, the same on every rank. `name` says what
        it is, for the live display.

        Raises:
            What `work` raises. StaleGeneration: an engine answered with other weights than the policy has.
        """
        with asyncio.Runner() as runner:
            job = None
            if self.engine is not None:
                job = _Job(self.engine, work, self._check, partial(self._tell, name))
            while any(self._world.all_gather(job is not None and runner.run(job.goes_on()))):
                self._on_activity(f"{name}: an engine is lost, weights are sent again")
                self.sync()
        parts = self._world.all_gather(() if job is None else (job.result(),))
        return [result for part in parts for result in part]

    def losses(self) -> dict[str, float]:
        """How many servers of all ranks were lost and how many started again since the last call, as metrics."""
        counts = self._world.all_gather(self.engine.losses() if self.engine is not None else Losses())
        now = Losses(sum(count.lost for count in counts), sum(count.restarts for count in counts))
        before, self._reported = self._reported, now
        return {"engine/lost": float(now.lost - before.lost), "engine/restarts": float(now.restarts - before.restarts)}

    def _tell(self, name: str, done: int, total: int) -> None:
        self._on_activity(f"{name} {done}/{total}")

    def _lacks_weights(self) -> bool:
        return self.engine is not None and self.engine.version != self._policy.version

    def _repair(self) -> None:
        """Replaces what has failed; servers that start measure the memory that they find."""
        self._turns.generate()
        if self._lacks_weights():
            self.engine.recover()
        self._world.barrier()  # repairs take minutes, which nobody should spend inside the stream's collectives

    def _bring_weights(self) -> ServerFault | None:
        """One attempt; what failed on this rank in a way that another attempt may repair."""
        engine = self.engine if self._lacks_weights() else None
        fault = None
        for receive in ("expect_weights", "update_weights") if self._unproved else ("update_weights",):
            stream = self._policy.weight_stream("leader")
            if engine is not None and fault is None:
                try:
                    getattr(engine, receive)(stream, self._policy.version)
                except ServerFault as error:
                    fault = error
            for _ in stream:
                pass
        return fault

    def _check(self, generations: Sequence[Generation]) -> None:
        current = self._policy.version
        for generation in generations:
            if not current - self._max_staleness <= generation.version <= current:
                raise StaleGeneration(
                    Phase.GENERATE,
                    f"rollout engine of rank {self._world.rank}",
                    f"a response was generated with weights of version {generation.version}, but the policy is at version "
                    f"{current} (rollout.max_staleness={self._max_staleness})",
                )


class _Job(Attendant):
    """One rank's work with its engine, which stops where the engine has lost its weights and goes on when it is told to.

    It is the engine that `work` sees: what generates passes through it.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        work: Callable[[RolloutEngine], Coroutine[Any, Any, T]],
        check: Callable[[Sequence[Generation]], None],
        tell: Callable[[int, int], None],
    ) -> None:
        self._engine, self._work, self._check, self._tell = engine, work, check, tell
        self._task: asyncio.Task[T] | None = None
        self._lost, self._resumed = asyncio.Event(), asyncio.Event()

    async def goes_on(self) -> bool:
        """Runs to the end or to the next loss of weights; whether there is more to do. Raises what `work` raises."""
        self._resumed.set()
        self._lost, self._resumed = asyncio.Event(), asyncio.Event()
        if self._task is None:
            self._task = asyncio.create_task(self._work(self))
        lost = asyncio.create_task(self._lost.wait())
        await asyncio.wait({self._task, lost}, return_when=asyncio.FIRST_COMPLETED)
        lost.cancel()
        if self._task.done():
            self._task.result()
        return not self._task.done()

    def finished(self, done: int, total: int) -> None:
        """`done` of `total` requests have their answers."""
        self._tell(done, total)

    def result(self) -> T:
        """What `work` returned."""
        return self._task.result()

    async def generate(self, requests: Sequence[GenerationRequest]) -> Sequence[Generation]:
        """The engine's answers, none of them stale."""
        generations = await self._engine.generate(requests, self)
        self._check(generations)
        return generations

    async def weights_lost(self, fault: ServerFault) -> None:
        """Waits until weights have been brought."""
        if not self._lost.is_set():
            _log.warning("rollout waits for weights: %s", fault)
        resumed = self._resumed
        self._lost.set()
        await resumed.wait()
