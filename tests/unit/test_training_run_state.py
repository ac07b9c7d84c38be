"""What a run remembers over a restart: the buffer with its groups, and where their images are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.config.buffer import BufferConfig, RecombineConfig, ReplayConfig
from octopus_mcore.data.digits.sources import DigitsSource
from octopus_mcore.data.processor import Processor
from octopus_mcore.experience.buffer import build_buffer
from octopus_mcore.experience.state import groups_in, with_groups, without_groups
from octopus_mcore.experience.types import Group, Prompt
from octopus_mcore.models.checkpoint_folder import write_state
from octopus_mcore.training.run_state import BUFFER_FILE, RunState, read_run_state
from octopus_mcore.training.session import Session
from tests.experience_groups import pair_judgement, same_group
from tests.replay_groups import Steps, rated_group

PERSISTENT = BufferConfig(
    recombine=RecombineConfig(selection="none"), replay=ReplayConfig(mode="persistent", capacity=9, max_age=3)
)


def restarted(state: RunState, folder: Path) -> RunState:
    """The state as another process finds it in a checkpoint."""
    folder.mkdir()
    state.write_groups(folder)
    write_state(folder, {"version": 7, **state.as_json()})
    return read_run_state(folder)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.sampled_from([0.0, 0.0, 0.5, -1.0]), min_size=4, max_size=12), min_size=2, max_size=6), st.data())
def test_a_buffer_goes_on_from_a_checkpoint_as_if_nothing_had_happened(tmp_path_factory, steps, data):
    """Bit by bit, pool and draws, whichever step the checkpoint stands behind."""
    at = data.draw(st.integers(1, len(steps) - 1))
    whole = Steps(PERSISTENT.replay).run(steps)
    before = Steps(PERSISTENT.replay)
    first = before.run(steps[:at])
    state = restarted(RunState("rl", at, buffer=before.state_dict()), tmp_path_factory.mktemp("run") / "step")
    assert (state.phase, state.step) == ("rl", at)
    after = Steps(PERSISTENT.replay, done=at)
    after.load_state_dict(state.buffer)
    for found, expected in zip([*first, *after.run(steps[at:])], whole, strict=True):
        assert found.metrics == expected.metrics
        assert all(same_group(*pair) for pair in zip(found.groups, expected.groups, strict=True))


def test_only_small_things_stand_in_the_json(tmp_path):
    kept = [rated_group("a", [1.0, -1.0], image=True), rated_group("b", [0.5])]
    state = RunState(buffer={"replay": {"pool": [{"born": 1, "group": kept[0]}, {"group": kept[1]}], "steps": 4}})
    assert state.as_json()["buffer"] == {
        "replay": {"pool": [{"born": 1, "group": {"$group": 0}}, {"group": {"$group": 1}}], "steps": 4}
    }
    read = restarted(state, tmp_path / "step")
    assert len((tmp_path / "step" / BUFFER_FILE).read_text().splitlines()) == 2
    assert all(same_group(*pair) for pair in zip(groups_in(read.buffer), kept, strict=True))
    assert read.buffer["replay"]["steps"] == 4


def test_a_run_that_keeps_no_groups_writes_no_file_of_them(tmp_path):
    buffer = build_buffer(BufferConfig(), 100, pair_judgement)
    state = restarted(RunState("rl", 3, 24, {"phases.b.source": 8}, buffer.state_dict(), best=0.5), tmp_path / "step")
    assert not (tmp_path / "step" / BUFFER_FILE).exists()
    assert state == RunState("rl", 3, 24, {"phases.b.source": 8}, buffer.state_dict(), best=0.5)
    buffer.load_state_dict(state.buffer)


def test_a_damaged_file_of_groups_is_named(tmp_path):
    state = RunState(buffer={"pool": [rated_group("a", [1.0]), rated_group("b", [1.0])]})
    restarted(state, tmp_path / "step")
    file = tmp_path / "step" / BUFFER_FILE
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0])
    with pytest.raises(ValueError, match="group 1, but only 1 were kept.*step is damaged"):
        read_run_state(tmp_path / "step")
    file.write_text(lines[0] + lines[1][:50])
    with pytest.raises(ValueError, match=r"buffer\.jsonl, line 2: .*step is damaged"):
        read_run_state(tmp_path / "step")


def test_state_without_groups_stays_what_it_is():
    state = {"a": [1, {"b": None}], "c": "x", "d": {}}
    assert without_groups(state) == with_groups(state, []) == state


# -- images ----------------------------------------


def session_on(folder: Path, state: RunState) -> Session:
    """A session that can draw prompts, with an image store of its own."""
    parts = dict.fromkeys(("world", "policy", "seat", "directory", "log", "progress"))
    config = SimpleNamespace(run=SimpleNamespace(seed=3))
    return Session(config=config, processor=Processor.from_pretrained(folder), evaluation_prompts={}, state=state, **parts)


def pool_of(prompts: Sequence[Prompt]) -> dict:
    return {"replay": {"pool": [{"group": Group(prompt, ())} for prompt in prompts]}}


def test_images_of_prompts_in_the_pool_stay_and_come_back_after_a_restart(digits_checkpoint, tmp_path):
    source, session = DigitsSource(digits=2), session_on(digits_checkpoint, RunState())
    first, _ = session.draw_prompts(source, 4)
    session.state.buffer = pool_of(first[1:3])
    second, _ = session.draw_prompts(source, 4)
    held = {image.key for prompt in (*first[1:3], *second) for image in prompt.images}
    assert set(session.processor.images) == held and len(held) == 6
    session.state.buffer = pool_of([first[1], second[0]])
    assert set(session.state.as_json()["image_rows"].values()) == {1, 4}

    again = session_on(digits_checkpoint, restarted(session.state, tmp_path / "step"))
    third, _ = session.draw_prompts(source, 4)
    assert again.draw_prompts(source, 4)[0] == third
    assert set(again.processor.images) == set(session.processor.images)
    for key, image in session.processor.images.items():
        assert image.pixel_values.tobytes() == again.processor.images[key].pixel_values.tobytes()
    assert again.state.image_rows == session.state.image_rows


def test_data_that_have_changed_since_the_checkpoint_are_told(digits_checkpoint, tmp_path):
    session = session_on(digits_checkpoint, RunState())
    session.state.buffer = pool_of(session.draw_prompts(DigitsSource(digits=2), 2)[0])
    state = restarted(session.state, tmp_path / "step")
    with pytest.raises(ValueError, match=r"2 images .*row [01] no longer holds image [0-9a-f]{32}\): put the data back"):
        session_on(digits_checkpoint, state).draw_prompts(DigitsSource(digits=2, noise=0.5), 2)


def test_a_pool_that_lost_its_prompts_lets_their_images_go(digits_checkpoint):
    source, session = DigitsSource(digits=2), session_on(digits_checkpoint, RunState())
    session.state.buffer = pool_of(session.draw_prompts(source, 2)[0])
    session.state.buffer = {}
    kept, _ = session.draw_prompts(source, 2)
    assert set(session.processor.images) == {image.key for prompt in kept for image in prompt.images}
    assert json.loads(json.dumps(session.state.as_json()))["image_rows"] == {}
