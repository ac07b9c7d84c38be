"""The whole pipeline over a scripted engine: what becomes a row, what is dropped and counted; stopping costs nothing."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from octopus_mcore.cli import app
from octopus_mcore.config.coldstart import ColdStartConfig
from octopus_mcore.config.schema import Config
from octopus_mcore.data.processor import Processor
from octopus_mcore.data.sft import SFTFileSource, sft_example
from octopus_mcore.endpoints.http import EndpointError
from octopus_mcore.experience.spans import SEPARATOR, SpanFinder
from octopus_mcore.training.coldstart import engines
from octopus_mcore.training.coldstart.correctors import PROBE
from octopus_mcore.training.coldstart.folder import OtherConfiguration
from octopus_mcore.training.coldstart.pipeline import make_cold_start
from octopus_mcore.training.coldstart.state import WorkState
from octopus_mcore.training.coldstart.wording import CORRECTION_PROMPT
from tests.cold_starts import ScriptedEngine, attempt, chat_reply, chat_service, cold_start_config, scripted, text_of
from tests.integration.commands import folder_bytes


@pytest.fixture(autouse=True)
def engine(digits_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """Stands in for the engine that the configuration asks for."""
    scripted_engine = ScriptedEngine(digits_checkpoint)
    monkeypatch.setattr(engines, "build_engine", lambda *arguments: scripted_engine)
    return scripted_engine


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def reasons(dropped: Sequence[dict[str, Any]], what: str) -> Counter[str]:
    return Counter(record["reason"] for record in dropped if record["what"] == what)


def test_rows_of_the_policys_own_samples(tmp_path: Path, digits_checkpoint: Path):
    config = cold_start_config(tmp_path, digits_checkpoint)
    report = make_cold_start(config)
    made = tmp_path / "made"
    rows = {row["provenance"]["index"]: row for row in lines(made / "sft.jsonl")}
    # Of the kinds of questions 0 … 4, again and again: all right are 0 and 3 (in the same words: no row), mixed 1.
    assert sorted(rows) == [0, 1, 5, 6, 10, 11, 15, 16, 21]
    assert [rows[number]["kind"] for number in (0, 1)] == ["cc", "wc"]
    first, second = rows[1]["provenance"]["first"], rows[1]["provenance"]["correction"]
    assert first % 2 == 1 and second % 2 == 0, "a wrong sample, and a right one behind it"
    texts = [piece["text"] for piece in rows[1]["response"]]
    assert texts == [scripted(1, first)[0], SEPARATOR, scripted(1, second)[0]]
    assert rows[0]["provenance"]["first"] != rows[0]["provenance"]["correction"] == 0
    assert [piece["weight"] for piece in rows[0]["response"]] == [1.0, 1.0, 1.0]
    assert list(rows) != sorted(rows), "shuffled"
    assert report["quotas"] == {"all_right": {"wanted": 4, "written": 4}, "mixed": {"wanted": 5, "written": 5}}


def test_everything_that_is_in_no_row_is_listed_and_counted(tmp_path: Path, digits_checkpoint: Path):
    report = make_cold_start(cold_start_config(tmp_path, digits_checkpoint, mixed=2))
    dropped = lines(tmp_path / "made" / "dropped.jsonl")
    assert report["inputs"] == {"available": 40, "read": 16, "sampled": 16, "all_right": 7, "mixed": 3} | {
        "all_wrong": 3,
        "unusable": 3,
        "dropped": {"all_wrong": 3, "no_correction": 3, "quota_filled": 1, "unusable": 3},
    }
    assert reasons(dropped, "input") == report["inputs"]["dropped"]
    assert reasons(dropped, "attempt") == {"cut": 3, "malformed": 3, "self_correction": 3} == report["attempts"]["dropped"]
    assert reasons(dropped, "correction") == {"no_other_right": 3} == report["corrections"]["dropped"]
    assert report["attempts"]["sampled"] == 64 == 9 + report["attempts"]["right"] + report["attempts"]["wrong"]
    assert report["rows"] + sum(report["inputs"]["dropped"].values()) == report["inputs"]["read"]
    assert report["corrections"]["asked"] == report["corrections"]["accepted"] + 3
    assert next(record for record in dropped if record["reason"] == "quota_filled")["uid"].endswith(":12@0")


def test_the_file_trains_as_it_stands_and_splits_as_rollouts_do(tmp_path: Path, digits_checkpoint: Path):
    config = cold_start_config(tmp_path, digits_checkpoint, right_first_weight=0.25, wrong_first_weight=0.5)
    make_cold_start(config)
    source = SFTFileSource(**config.phases["cold"].source.options, shuffle=False)
    source.validate()
    processor = Processor.configured(digits_checkpoint, config.data)
    finder = SpanFinder(processor.tokenizer)
    kinds = [record["kind"] for record in lines(tmp_path / "made" / "sft.jsonl")]
    assert set(kinds) == {"cc", "wc"}
    for row, kind in zip(source.rows(0, len(source), 0), kinds, strict=True):
        example = sft_example(processor, row)
        spans = finder.find(example.token_ids, 0)
        assert [str(span.kind) for span in spans] == ["first", "separator", "correction"]
        taught = spans[1].start - 1  # the blank line belongs to the first span, and to the separator's text
        first = 0.25 if kind == "cc" else 0.5
        assert set(example.weights[:taught]) == {first} and set(example.weights[taught:]) == {1.0}


def test_a_quota_that_the_source_cannot_fill_is_reported(tmp_path: Path, digits_checkpoint: Path, capsys):
    config = cold_start_config(tmp_path, digits_checkpoint, count=12)
    report = make_cold_start(config)
    assert report["quotas"]["mixed"] == {"wanted": 5, "written": 3} and report["inputs"]["read"] == 12
    assert "quota not filled: the source ended" in capsys.readouterr().out


def test_rows_without_use_are_dropped_by_reason(tmp_path: Path, digits_checkpoint: Path):
    config = cold_start_config(tmp_path, digits_checkpoint, count=10)
    file = tmp_path / "questions.jsonl"
    rows = lines(file)
    rows[0]["problem"] = "q0: " + "long " * 400
    rows[5]["problem"] = "q5: " + "x" * 150
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = make_cold_start(config.model_copy(update={"data": config.data.model_copy(update={"prompt_suffix": "y" * 150})}))
    assert report["inputs"]["dropped"]["prompt_too_long"] == 1
    assert report["corrections"]["dropped"]["prompt_too_long"] == 1, "with the instruction of training"


# --- a corrector behind an address ---


def corrected(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """A service that is right, wrong, leaking, cut, refusing …, by question and seed: the second try of most is right."""
    if text_of(body) == PROBE.text:
        return 200, chat_reply("yes")
    number = int(text_of(body).split(":")[0][1:])
    assert f"The right answer: {number}\n" in text_of(body) and "=== The attempt ===\n<think>" in text_of(body)
    good = chat_reply(attempt(number, "a better way"))
    bad = [
        good,
        chat_reply(attempt(f"{number}7")),
        chat_reply(attempt(number, "as the reference answer says")),
        chat_reply(attempt(number), "length"),
        chat_reply("\\boxed{1}"),
        chat_reply(attempt(number) + " \\boxed{2}"),
        chat_reply(attempt(number) + SEPARATOR + attempt(number)),
        chat_reply(None, "length"),
        chat_reply(attempt(number) + "<|im_end|>"),
        chat_reply(attempt(number, "half a pair: \ud800")),
    ]
    kind = int(hashlib.sha256(f"{number} {body['seed']}".encode()).hexdigest(), 16) % 14
    if kind == 13:
        return 500, {"error": "busy"}
    return 200, bad[kind] if kind < len(bad) else good


@pytest.fixture
def service() -> Iterator[str]:
    with chat_service(corrected) as url:
        yield url


def asking(url: str, tries: int = 2, **endpoint: Any) -> dict[str, Any]:
    settings = {"url": url, "model": "stronger", "temperature": 0.7, "retries": 0, "concurrency": 4} | endpoint
    return {"kind": "endpoint", "endpoint": settings, "tries": tries}


def test_corrections_of_a_stronger_model_are_filtered_counted_and_tried_again(
    tmp_path: Path, digits_checkpoint: Path, service: str
):
    sizes = {"count": 200, "all_right": 30, "mixed": 20}
    report = make_cold_start(cold_start_config(tmp_path, digits_checkpoint, **sizes, corrector=asking(service)))
    dropped = report["corrections"]["dropped"]
    assert set(dropped) == {
        "cut", "malformed", "mentions_material", "no_answer", "self_correction", "several_boxes", "special_token",
        "unreadable", "wrong",
    }  # fmt: skip
    assert report["rows"] == 50
    rows = lines(tmp_path / "made" / "sft.jsonl")
    assert {row["provenance"]["corrector"] for row in rows} == {"endpoint:stronger"}
    assert {row["provenance"]["tries"] for row in rows} == {1, 2}
    for row in rows:
        assert row["response"][2]["text"] == attempt(row["answer"], "a better way")
        assert row["provenance"]["correction"] is None
    failed = reasons(lines(tmp_path / "made" / "dropped.jsonl"), "input").get("no_correction", 0)
    assert sum(dropped.values()) == sum(row["provenance"]["tries"] - 1 for row in rows) + 2 * failed
    assert report["tokens"]["corrections"] > 0


def test_first_attempts_are_the_same_whoever_corrects(tmp_path: Path, digits_checkpoint: Path, service: str):
    by = {}
    for name, corrector in {"policy": {}, "endpoint": asking(service, tries=9)}.items():
        folder = tmp_path / name
        folder.mkdir()
        make_cold_start(cold_start_config(folder, digits_checkpoint, corrector=corrector))
        by[name] = {row["answer"]: row["response"][0]["text"] for row in lines(folder / "made" / "sft.jsonl")}
    both = by["policy"].keys() & by["endpoint"].keys()
    assert len(both) > 5 and all(by["policy"][key] == by["endpoint"][key] for key in both)


def test_an_endpoint_that_is_gone_is_an_error_and_loses_nothing(tmp_path: Path, digits_checkpoint: Path):
    """It dies under way; what it had answered is kept, and going on gives what would have come without the interruption."""
    answered: list[int] = []
    alive = threading.Event()

    def dying(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if not alive.is_set() and len(answered) >= 10:
            return 503, {"error": "away"}
        status, reply = corrected(body)
        if status == 200 and "seed" in body:
            answered.append(body["seed"])
        return status, reply

    sizes = {"count": 100, "all_right": 10, "mixed": 10}
    with chat_service(dying) as url:
        config = cold_start_config(tmp_path, digits_checkpoint, **sizes, corrector=asking(url, concurrency=1))
        with pytest.raises(EndpointError, match="the last . requests were not answered, nor was a plain question: .*503"):
            make_cold_start(config)
        kept = lines(tmp_path / "made" / "corrections.jsonl")
        assert len(kept) >= 10 and len(kept) % 4, "it died inside a batch"
        alive.set()
        resumed = make_cold_start(config)
        assert len(set(answered)) == len(answered), "what was answered is not asked again"
    with chat_service(corrected) as url:
        whole = tmp_path / "whole"
        whole.mkdir()
        config = cold_start_config(whole, digits_checkpoint, **sizes, corrector=asking(url))
        uninterrupted = make_cold_start(config)
    assert resumed == uninterrupted
    assert (tmp_path / "made" / "sft.jsonl").read_bytes() == (whole / "made" / "sft.jsonl").read_bytes()


def test_an_input_that_is_never_answered_is_dropped_even_if_it_is_the_last_one(tmp_path: Path, digits_checkpoint: Path):
    def stubborn(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        text = text_of(body)
        return (500, {}) if text.startswith("q11:") else (200, chat_reply(attempt(text.split(":")[0][1:], "well")))

    with chat_service(stubborn) as url:
        config = cold_start_config(tmp_path, digits_checkpoint, count=12, all_right=0, mixed=9, corrector=asking(url))
        report = make_cold_start(config)
    assert report["rows"] == 2 and report["corrections"]["dropped"] == {"no_answer": 2}
    assert report["inputs"]["dropped"]["no_correction"] == 1


def test_an_address_where_nobody_listens(tmp_path: Path, digits_checkpoint: Path):
    config = cold_start_config(tmp_path, digits_checkpoint, corrector=asking("http://127.0.0.1:9/v1"))
    with pytest.raises(EndpointError, match="http://127.0.0.1:9/v1"):
        make_cold_start(config)
    assert len(lines(tmp_path / "made" / "attempts.jsonl")) == 24 and not lines(tmp_path / "made" / "corrections.jsonl")


# --- stopping and going on ---


class Stopped(BaseException):
    """Nothing catches it, as nothing catches a kill."""


@pytest.mark.parametrize("corrector", ["policy", "endpoint"])
def test_stopped_before_or_behind_any_write_it_ends_with_the_same_bytes(
    tmp_path: Path, digits_checkpoint: Path, service: str, monkeypatch: pytest.MonkeyPatch, corrector: str
):
    section = {"corrector": asking(service)} if corrector == "endpoint" else {}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    make_cold_start(cold_start_config(whole, digits_checkpoint, **section))
    writes = {name: getattr(WorkState, name) for name in ("add_attempts", "add_corrections")}
    calls = 0

    def stopping(name: str, at: int, behind: bool):
        def write(state: WorkState, records: list[dict[str, Any]]) -> None:
            nonlocal calls
            calls += 1
            if calls == at and not behind:
                raise Stopped
            writes[name](state, records)
            if calls == at:
                raise Stopped

        return write

    stops = 0
    while True:
        calls = 0
        for name in writes:
            monkeypatch.setattr(WorkState, name, stopping(name, at=2, behind=stops % 2 == 1))
        try:
            make_cold_start(cold_start_config(cut, digits_checkpoint, **section))
            break
        except Stopped:
            stops += 1
    assert stops >= 3
    expected, found = folder_bytes(whole / "made"), folder_bytes(cut / "made")
    for settings in (expected, found):  # which names the file of questions
        settings.pop("settings.json")
    if corrector == "endpoint":  # answers come in the order of the batches
        journals = [settings.pop("corrections.jsonl") for settings in (expected, found)]
        assert sorted(journals[0].replace(b', "more": true', b"").split(b"\n")) == sorted(
            journals[1].replace(b', "more": true', b"").split(b"\n")
        )
    assert found == expected


def test_a_finished_folder_is_read_and_nothing_asked(tmp_path: Path, digits_checkpoint: Path, engine: ScriptedEngine):
    config = cold_start_config(tmp_path, digits_checkpoint)
    first = make_cold_start(config)
    asked, before = engine.asked, folder_bytes(tmp_path / "made")
    assert make_cold_start(config) == first and engine.asked == asked
    assert folder_bytes(tmp_path / "made") == before


def test_a_folder_of_another_configuration_is_refused_by_key(tmp_path: Path, digits_checkpoint: Path, service: str):
    def changed(*overrides: str) -> Config:
        return cold_start_config(tmp_path, digits_checkpoint, *overrides, corrector=asking(service))

    make_cold_start(changed())
    before = folder_bytes(tmp_path / "made")
    with pytest.raises(OtherConfiguration) as error:
        make_cold_start(changed("coldstart.n=5", "run.seed=3", "rewards.judge=number", "coldstart.corrector.endpoint.model=x"))
    said = [line.strip() for line in str(error.value).splitlines()[1:-1]]
    assert said == [
        "run.seed: 0 there, 3 now",
        'rewards.judge: "exact" there, "number" now',
        "coldstart.n: 4 there, 5 now",
        'coldstart.corrector.endpoint.model: "stronger" there, "x" now',
    ]
    assert folder_bytes(tmp_path / "made") == before
    elsewhere = ("coldstart.corrector.endpoint.url=http://127.0.0.1:9/v1", "coldstart.corrector.endpoint.concurrency=1")
    make_cold_start(changed(*elsewhere, "rewards.workers=1"))


def test_a_source_that_has_changed_is_noticed(tmp_path: Path, digits_checkpoint: Path):
    config = cold_start_config(tmp_path, digits_checkpoint, corrector=asking("http://127.0.0.1:9/v1"))
    with pytest.raises(EndpointError):
        make_cold_start(config)
    file = tmp_path / "questions.jsonl"
    file.write_text(file.read_text().replace("q1: how much?", "q1: how many?"))
    with pytest.raises(ValueError, match="row 1 of the sequence .* the source has changed since"):
        make_cold_start(config)


def test_a_source_without_end_needs_a_bound(tmp_path: Path, digits_checkpoint: Path):
    source = {"target": "octopus_mcore.data.digits.sources:DigitsSource", "options": {}}
    with pytest.raises(ValueError, match="coldstart.source has no end: say in coldstart.max_inputs"):
        make_cold_start(cold_start_config(tmp_path, digits_checkpoint, source=source))


def test_the_section_is_needed(tmp_path: Path, digits_checkpoint: Path):
    config = cold_start_config(tmp_path, digits_checkpoint, "coldstart=null")
    with pytest.raises(ValueError, match="no section coldstart"):
        make_cold_start(config)


def test_the_command_says_what_is_wrong_in_words(tmp_path: Path, digits_checkpoint: Path):
    cold_start_config(tmp_path, digits_checkpoint, corrector=asking("http://127.0.0.1:9/v1"))

    def called(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["coldstart", str(tmp_path / "cold.yaml"), *arguments])

    planned = called("--dry-run")
    assert planned.exit_code == 0 and "stronger at http://127.0.0.1:9/v1, 2 tries an input" in planned.stdout
    assert f"output: {tmp_path / 'made'} (new)" in planned.stdout and not (tmp_path / "made").exists()
    failed = called()
    assert failed.exit_code == 1 and "nobody answers there" in failed.stderr and "what was done is kept" in failed.stderr
    assert "goes on behind 24 inputs" in called("--dry-run").stdout
    other = called("coldstart.mixed=3")
    assert other.exit_code == 2 and "coldstart.mixed: 5 there, 3 now" in other.stderr
    assert "which differs in coldstart.mixed" in called("--dry-run", "coldstart.mixed=3").stdout
    nothing = called("--dry-run", "coldstart=null")
    assert nothing.exit_code == 2 and "no section coldstart" in nothing.stdout
    wrong = called("--dry-run", "coldstart.mixxed=3")
    assert wrong.exit_code == 2 and "did you mean `coldstart.mixed`?" in wrong.stdout


def test_our_wording_would_not_pass_our_own_filter():
    """The words that a corrector may repeat from its prompt are those that the filter looks for."""
    import re

    leak = "The right answer is 3, as shown in the provided answer. The first attempt went astray."
    patterns = ColdStartConfig(output="x").forbidden
    assert any(re.search(pattern, leak, re.IGNORECASE) for pattern in patterns)
    assert "{truth}" in CORRECTION_PROMPT
