"""Parts of a cold start on their own: images, engines that lose their servers, a corrector in an engine, wording, progress."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from octopus_mcore.data.images import open_image
from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.rollout.engine import Attendant, EngineError, Generation, GenerationRequest, Phase, ServerFault
from octopus_mcore.training.coldstart import engines
from octopus_mcore.training.coldstart.engines import FolderEngine
from octopus_mcore.training.coldstart.folder import FolderInUse, OtherConfiguration, OutputFolder, made_with
from octopus_mcore.training.coldstart.pictures import keep_only, portable, store
from octopus_mcore.training.coldstart.pipeline import make_cold_start
from octopus_mcore.training.coldstart.plan import plan_text
from octopus_mcore.training.coldstart.progress import ColdStartProgress
from octopus_mcore.training.coldstart.state import WorkState
from octopus_mcore.training.coldstart.wording import CORRECTION_PROMPT, correction_request
from tests.cold_starts import ScriptedEngine, attempt, cold_start_config


def picture(kind: str, orientation: int = 1) -> bytes:
    """Noise of 24 × 16 pixels as a file of this kind."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(buffer, kind, **({"exif": exif} if orientation != 1 else {}))
    return buffer.getvalue()


def test_images_are_stored_once_as_they_are_and_read_back_alike(tmp_path: Path):
    lying = picture("JPEG", orientation=6)
    file = tmp_path / "lying.jpeg"
    file.write_bytes(lying)
    names = {store(tmp_path, lying), store(tmp_path, str(file))}
    assert len(names) == 1 and (tmp_path / names.copy().pop()).read_bytes() == lying
    png, pil = store(tmp_path, picture("PNG")), store(tmp_path, open_image(picture("PNG"), "x"))
    for name, source in ((names.copy().pop(), lying), (png, picture("PNG")), (pil, picture("PNG"))):
        assert np.array_equal(open_image(tmp_path / name, "stored"), open_image(source, "source"))
    (tmp_path / "images" / "torn.partial").write_bytes(b"x")
    keep_only(tmp_path, {png})
    assert [f"images/{found.name}" for found in (tmp_path / "images").iterdir()] == [png]


def test_a_chat_model_gets_upright_files_of_kinds_that_everybody_reads():
    for content in (picture("PNG"), picture("JPEG")):
        assert portable(content, "x") == content
    for content in (picture("JPEG", orientation=6), picture("WEBP"), picture("BMP")):
        sent = portable(content, "x")
        assert sent.startswith(b"\x89PNG") and np.array_equal(open_image(sent, "sent"), open_image(content, "source"))


class FailingEngine(ScriptedEngine):
    """Loses its only server in the first generation, and its first weight updates fail."""

    def __init__(self, folder: Path, faults: int) -> None:
        super().__init__(folder)
        self.faults, self.recoveries = faults, 0

    async def generate(self, requests: Sequence[GenerationRequest], attendant: Attendant) -> list[Generation]:
        if self.asked == 0:
            self.version = None
            fault = ServerFault(Phase.GENERATE, "server", "gone")
            await asyncio.gather(*(attendant.weights_lost(fault) for _ in requests))
        assert self.version == 0
        return await super().generate(requests)

    def recover(self) -> None:
        self.recoveries += 1
        if self.recoveries > 4:
            raise EngineError(Phase.START, "server", "no server is left")

    def update_weights(self, stream: Any, version: int) -> None:
        super().update_weights(stream, version)
        if self.recoveries > 1 and self.faults:
            self.faults -= 1
            self.version = None
            raise ServerFault(Phase.SYNC, "server", "failed again")


@pytest.mark.parametrize("faults", [0, 2])
def test_a_lost_server_gets_its_weights_again_once(
    tmp_path: Path, digits_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, faults: int
):
    engine = FailingEngine(digits_checkpoint, faults)
    monkeypatch.setattr(engines, "build_engine", lambda *arguments: engine)
    report = make_cold_start(cold_start_config(tmp_path, digits_checkpoint))
    assert report["rows"] == 9 and engine.recoveries == 2 + faults


def test_when_no_server_comes_back_the_error_says_so(digits_checkpoint: Path):
    engine = FolderEngine(FailingEngine(digits_checkpoint, faults=9), HFFolder(digits_checkpoint))
    with pytest.raises(EngineError, match="no server is left"):
        asyncio.run(engine.generate([None]))


def test_a_checkpoint_of_its_own_corrects_in_turns_with_the_policy(
    tmp_path: Path, digits_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    stronger = tmp_path / "stronger"
    shutil.copytree(digits_checkpoint, stronger)
    opened: list[str] = []

    def script(number: int, sample: int) -> tuple[str, bool]:
        return attempt(number if number != 6 else 7, "from scratch"), number != 0

    def build(config: Any, folder: Path, *arguments: Any) -> ScriptedEngine:
        opened.append(folder.name)
        return ScriptedEngine(folder, *([script] if folder == stronger else []))

    monkeypatch.setattr(engines, "build_engine", build)
    corrector = {"kind": "engine", "folder": str(stronger), "tries": 1}
    report = make_cold_start(cold_start_config(tmp_path, digits_checkpoint, corrector=corrector))
    rows = [json.loads(line) for line in (tmp_path / "made" / "sft.jsonl").read_text().splitlines()]
    assert len(rows) == 9 and report["corrections"]["dropped"] == {"cut": 1, "wrong": 1}
    assert {row["provenance"]["corrector"] for row in rows} == {f"engine:{stronger}"}
    assert {row["response"][2]["text"] for row in rows} == {attempt(row["answer"], "from scratch") for row in rows}
    assert opened == [digits_checkpoint.name, "stronger"] * (len(opened) // 2) and len(opened) > 2


def test_texts_that_are_put_into_the_prompt_stay_as_they_are():
    asked = correction_request(None, "Is <image> {truth}?", r"<think>{first} <image></think> \boxed{1}", "{question}")
    assert asked.startswith("Is <image> {truth}?\n") and asked.count("<image>") == 1
    assert r"<think>{first} (image)</think> \boxed{1}" in asked and "The right answer: {question}\n" in asked
    assert r"\boxed{}" in CORRECTION_PROMPT and correction_request("{truth}{question}", "q", "f", "t") == "tq"


def test_where_services_are_decides_no_rows(tmp_path: Path, digits_checkpoint: Path):
    def settings(*overrides: str) -> str:
        judge = ("rewards.judge=llm", "rewards.llm={url: 'http://a:1', model: m}")
        return json.dumps(made_with(cold_start_config(tmp_path, digits_checkpoint, *judge, *overrides)))

    same = ("rewards.llm.url=http://b:2", "rewards.llm.retries=1", "rewards.workers=3", "data.workers=2")
    assert settings(*same) == settings()
    for other in ("rewards.llm.model=n", "rewards.style=answer_tags", "data.max_prompt_tokens=9", "model.path=x"):
        assert settings(other) != settings()


def test_two_processes_do_not_work_in_one_folder(tmp_path: Path):
    folder = OutputFolder(tmp_path / "made")
    with folder.claimed({"a": 1}):
        with pytest.raises(FolderInUse, match="another process works in"), folder.claimed({"a": 1}):
            pass
    with folder.claimed({"a": 1}):
        pass
    folder.settings.unlink()
    folder.attempts.write_text("{}\n")
    with pytest.raises(ValueError, match="holds a journal, but not settings.json"), folder.claimed({"a": 1}):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is no folder"), OutputFolder(tmp_path / "file").claimed({}):
        pass


def test_a_folder_where_nothing_was_sampled_is_held_to_no_settings(tmp_path: Path, digits_checkpoint: Path):
    """A configuration that was wrong stops before the first input; the right one takes the folder, and a dry run says so."""
    config = cold_start_config(tmp_path, digits_checkpoint)
    folder = OutputFolder(Path(config.coldstart.output))
    with folder.claimed({"a": 1}):
        pass
    assert "(new)" in plan_text(config)
    with folder.claimed({"a": 2}):
        folder.attempts.write_text("{}\n")
    with pytest.raises(OtherConfiguration, match="a: 2 there, 1 now"), folder.claimed({"a": 1}):
        pass


@pytest.mark.parametrize("terminal", [True, False])
def test_progress(tmp_path: Path, digits_checkpoint: Path, terminal: bool):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120, color_system=None)
    config = cold_start_config(tmp_path, digits_checkpoint)
    state = WorkState(OutputFolder(tmp_path / "made"), config.coldstart)
    now = 0.0
    with ColdStartProgress(40, console=console, clock=lambda: now) as progress:
        progress.show(state, "sampling")
        state.add_attempts([{"index": 0, "uid": "u", "excluded": "prompt_too_long", "detail": ""}])
        progress.show(state, "correcting")  # too early for another plain line
        now = 6.0
        progress.show(state, "correcting")
        progress.show(state, "writing", last=True)
    shown = [line for line in file.getvalue().splitlines() if line.strip()]
    if terminal:
        assert any("inputs sampled" in line and "1/40" in line for line in shown)
        assert any("rows mixed" in line and "0/5" in line for line in shown)
    else:
        parts = "rows all right 0/4 · rows mixed 0/5"
        assert shown == [
            f"inputs sampled 0/40 · {parts} · sampling",
            f"inputs sampled 1/40 · {parts} · correcting",
            f"inputs sampled 1/40 · {parts} · writing",
        ]
