"""The order of hand-overs between trainer and engine on shared devices: one side is empty everywhere before the other fills."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from octopus_mcore.policy.residence import Part
from octopus_mcore.rollout.engine import Phase, ServerFault
from octopus_mcore.training.engine_seat import EngineSeat
from octopus_mcore.training.turns import Shared

FAULT = ServerFault(Phase.SYNC, "server 0", "was killed")


class Recorder:
    """An engine, a trainer's residence and a world of one rank, which write down what they are asked."""

    def __init__(self, failing: Callable[[str], None] = lambda event: None) -> None:
        self.events: list[str] = []
        self.version: int | None = None
        self.away = set(Part)  # a run begins with the engine's turn
        self._failing = failing

    def note(self, event: str) -> None:
        self.events.append(event)
        self._failing(event)

    # engine
    def release_memory(self) -> None:
        self.version = None
        self.note("engine frees")

    def resume_memory(self) -> None:
        self.note("engine takes caches")

    def recover(self) -> None:
        self.note("engine starts what failed")

    def update_weights(self, stream, version: int) -> None:
        self.note(f"engine takes weights while {' and '.join(sorted(self.away))} are away")
        self.version = version

    # residence
    def offload(self, *parts: Part) -> int:
        if set(parts) - self.away:
            self.note(f"trainer frees {', '.join(part for part in parts if part not in self.away)}")
        self.away |= set(parts)
        return 0

    def onload(self, *parts: Part) -> None:
        self.note(f"trainer takes {', '.join(parts)}")
        self.away -= set(parts)

    # world
    def barrier(self) -> None:
        if self.events and self.events[-1] != "all ranks":
            self.note("all ranks")

    def all_gather(self, value: object) -> list[object]:
        return [value]


def seat_of(recorder: Recorder) -> EngineSeat:
    policy = SimpleNamespace(version=1, weight_stream=lambda target: iter([[]]))
    return EngineSeat(recorder, policy, recorder, turns=Shared(recorder, recorder, recorder))


def test_a_step_hands_the_devices_over_and_back():
    recorder = Recorder()
    seat = seat_of(recorder)
    seat.make_room()
    assert recorder.events == ["engine frees", "all ranks", "trainer takes gradients, optimizer, parameters"]
    seat.make_room()
    assert len(recorder.events) == 3, "the second time there is nothing to do"
    recorder.events.clear()
    seat.sync()
    assert recorder.events == [
        "trainer frees gradients, optimizer, parameters",
        "all ranks",
        "engine starts what failed",
        "all ranks",
        "engine frees",
        "all ranks",
        "trainer takes parameters",
        "engine takes weights while gradients and optimizer are away",
        "trainer frees parameters",
        "all ranks",
        "engine takes caches",
    ]
    recorder.events.clear()
    seat.sync()
    assert recorder.events == [], "the engine has the weights"


def test_an_update_that_fails_empties_the_trainer_and_is_repeated():
    left = [FAULT]

    def failing(event: str) -> None:
        if event.startswith("engine takes weights") and left:
            raise left.pop()

    recorder = Recorder(failing)
    seat_of(recorder).sync()
    assert recorder.version == 1
    assert [event for event in recorder.events if "weights" in event or "failed" in event] == [
        "engine starts what failed",
        "engine takes weights while gradients and optimizer are away",
        "engine starts what failed",
        "engine takes weights while gradients and optimizer are away",
    ]
    assert recorder.away == set(Part), "behind a sync the devices are the engine's"


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_whatever_happens_the_trainer_has_its_memory_when_training_begins(error: BaseException):
    def failing(event: str) -> None:
        if event == "engine frees":
            raise error

    recorder = Recorder(failing)
    with pytest.raises(type(error)):
        seat_of(recorder).make_room()
    assert recorder.away == set()


def test_an_error_in_the_stream_leaves_no_parameters_on_the_engines_devices():
    def failing(event: str) -> None:
        if event.startswith("engine takes weights"):
            raise ValueError("a tensor is missing")

    recorder = Recorder(failing)
    with pytest.raises(ValueError, match="missing"):
        seat_of(recorder).sync()
    assert recorder.away == set(Part)
    assert "engine takes caches" not in recorder.events
