"""A journal holds whole batches, whenever its writer was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from octopus_mcore.training.coldstart.journal import Journal, JournalDamaged

BATCHES = [[{"n": 0}, {"n": 1, "text": "ü\n"}], [{"n": 2}], [{"n": 3}, {"n": 4}, {"n": 5}]]


def numbers(journal: Journal) -> list[int]:
    return [record["n"] for record in journal]


def written(file: Path) -> list[int]:
    """Writes the batches; the file's length behind each."""
    journal, ends = Journal(file), [0]
    for batch in BATCHES:
        journal.append(batch)
        ends.append(file.stat().st_size)
    return ends


def test_a_file_cut_anywhere_gives_the_batches_that_were_complete(tmp_path: Path):
    file = tmp_path / "journal.jsonl"
    ends = written(file)
    content = file.read_bytes()
    for size in range(len(content) + 1):
        file.write_bytes(content[:size])
        journal = Journal(file)
        complete = sum(end <= size for end in ends) - 1
        expected = [record["n"] for batch in BATCHES[:complete] for record in batch]
        assert numbers(journal) == expected and len(journal) == len(expected)
        assert file.read_bytes() == content[: ends[complete]], "what is appended next must not stand behind a torn line"


def test_going_on_writes_the_same_bytes(tmp_path: Path):
    file = tmp_path / "journal.jsonl"
    ends = written(file)
    content = file.read_bytes()
    file.write_bytes(content[: ends[1] + 3])
    journal = Journal(file)
    for batch in BATCHES[1:]:
        journal.append(batch)
    assert file.read_bytes() == content
    assert journal[1]["text"] == "ü\n" and journal[5]["n"] == 5


def test_a_line_that_is_no_record_is_named(tmp_path: Path):
    file = tmp_path / "journal.jsonl"
    written(file)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + b"[1]\n" + lines[2])
    with pytest.raises(JournalDamaged, match=r"journal.jsonl, line 2: expected a JSON object, found list"):
        Journal(file)
