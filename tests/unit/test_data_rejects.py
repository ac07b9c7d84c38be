"""Rows that cannot be used are left out, counted and listed, the same for everyone who opens the source."""

from __future__ import annotations

import json
import stat
import struct
from concurrent.futures import ThreadPoolExecutor

import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from octopus_mcore.data.mixture import MixtureSource
from octopus_mcore.data.rows import RowSource
from octopus_mcore.data.sft import SFTFileSource
from octopus_mcore.data.tables import RowError
from tests.unit.test_data_layouts import png

GOOD = {"problem": "<image>What?", "answer": "1", "images": ["good.png"], "rate": 0.5}
BAD = {
    "no answer": ({key: value for key, value in GOOD.items() if key != "answer"}, "answer", "the key is missing"),
    "a number": (GOOD | {"problem": 3}, "problem", "expected a non-empty text, found 3"),
    "two markers": (GOOD | {"problem": "<image><image>"}, "problem", "2 <image> markers for 1 images"),
    "no file": (GOOD | {"images": ["absent.png"]}, "images", "does not exist"),
    "cut": (GOOD | {"images": ["cut.jpg"]}, "images", "cannot be decoded: image file is truncated"),
    "no image": (GOOD | {"images": ["text.png"]}, "images", "cannot be decoded: cannot identify image file"),
}


@pytest.fixture
def folder(tmp_path):
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "good.png").write_bytes(png())
    (tmp_path / "text.png").write_text("text")
    return tmp_path


def write(folder, rows, name="rows.jsonl"):
    (folder / name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return folder / name


def listed(folder, name="rejects.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_every_kind_of_bad_row(folder):
    rows = [GOOD, *(row for row, _, _ in BAD.values()), '{"problem": ', GOOD]
    file = write(folder, rows)
    source = RowSource(file, shuffle=False, rejects=folder / "out/rejects.jsonl")
    assert [row.uid for row in source.rows(0, 3, 0)] == ["rows.jsonl:1@0", "rows.jsonl:9@0", "rows.jsonl:1@1"]
    found = listed(folder, "out/rejects.jsonl")
    assert [(entry["file"], entry["row"], entry["key"]) for entry in found] == [
        *((str(file), number, key) for number, (_, key, _) in enumerate(BAD.values(), start=2)),
        (str(file), 8, None),
    ]
    for entry, (_, _, reason) in zip(found, BAD.values(), strict=False):
        assert reason in entry["reason"] and str(file) not in entry["reason"]
    assert source.notes == (
        f"{file}: 7 of 9 rows cannot be used and are left out (answer: 1, images: 3, problem: 2, unreadable: 1; listed in "
        f"{folder / 'out/rejects.jsonl'})",
    )
    source.validate()
    with pytest.raises(RowError, match="6 of 9 rows cannot be used"):  # a header does not show that a file was cut off
        RowSource(file).validate()


@given(bad=st.lists(st.sampled_from([None, *BAD]), min_size=1, max_size=8))
@settings(deadline=None, max_examples=25)
def test_kept_and_rejected_rows_are_all_rows(tmp_path_factory, bad):
    folder = tmp_path_factory.getbasetemp() / "kept"
    if not folder.exists():
        folder.mkdir()
        (folder / "good.png").write_bytes(png())
        (folder / "text.png").write_text("text")
        (folder / "cut.jpg").write_bytes(b"\xff\xd8")
    file = write(folder, [GOOD if kind is None else BAD[kind][0] for kind in bad])
    good = [number for number, kind in enumerate(bad, start=1) if kind is None]
    if not good:
        with pytest.raises(RowError, match=f"{len(bad)} of {len(bad)} rows cannot be used"):
            RowSource(file, rejects=folder / "rejects.jsonl")
        return
    sources = [RowSource(file, rejects=folder / "rejects.jsonl") for _ in range(2)]
    rows = [source.rows(0, len(good), 3) for source in sources]
    assert rows[0] == rows[1] and sorted(row.uid for row in rows[0]) == [f"rows.jsonl:{number}@0" for number in good]
    assert [entry["row"] for entry in listed(folder)] == [number for number, kind in enumerate(bad, start=1) if kind]


def test_pass_rates_that_are_none_are_rejected_too(folder):
    rows = [GOOD, GOOD | {"rate": 7}, GOOD | {"rate": 1.0}, GOOD | {"rate": None}, GOOD | {"images": ["absent.png"]}]
    file = write(folder, rows)
    rules = [{"key": "rate"}]
    source = RowSource(file, shuffle=False, pass_rates=rules, rejects=folder / "rejects.jsonl")
    assert [row.uid for row in source.rows(0, len(source), 0)] == ["rows.jsonl:1@0"]
    assert [(entry["row"], entry["key"]) for entry in listed(folder)] == [(2, "rate"), (4, "rate"), (5, "images")]
    assert source.notes[0] == f"{file}: 2 of 5 rows kept by their pass rates (rate)"
    assert source.notes[1].startswith(f"{file}: 3 of 5 rows cannot be used and are left out (images: 1, rate: 2; listed in")


def test_damaged_row_groups_are_rejected_row_by_row(folder):
    rows = [{"problem": f"q{i}", "answer": str(i)} for i in range(6)]
    file = folder / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=3)
    damaged = bytearray(file.read_bytes())
    damaged[4:40] = b"\xff" * 36
    file.write_bytes(damaged)
    source = RowSource(file, image_key=None, shuffle=False, rejects=folder / "rejects.jsonl")
    assert [row.answer for row in source.rows(0, 3, 0)] == ["3", "4", "5"] and len(source) == 3
    assert [entry["row"] for entry in listed(folder)] == [1, 2, 3]


def test_an_empty_list_replaces_an_older_one(folder):
    write(folder, ["old"], "rejects.jsonl")
    source = RowSource(write(folder, [GOOD]), rejects=folder / "rejects.jsonl")
    assert listed(folder) == [] and source.notes[0].endswith("0 of 1 rows cannot be used and are left out")
    assert stat.S_IMODE((folder / "rejects.jsonl").stat().st_mode) == 0o644
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]


def test_ranks_that_open_a_source_at_once_see_and_write_the_same(folder):
    file = write(folder, [BAD["cut"][0], GOOD] * 40)
    with ThreadPoolExecutor(4) as ranks:
        sources = list(ranks.map(lambda _: RowSource(file, rejects=folder / "rejects.jsonl"), range(8)))
    assert {len(source) for source in sources} == {40} and len({source.notes for source in sources}) == 1
    assert len({tuple(row.uid for row in source.rows(0, 40, 1)) for source in sources}) == 1
    assert [entry["row"] for entry in listed(folder)] == list(range(1, 80, 2))


def test_responses_that_cannot_be_used(folder):
    file = write(folder, [GOOD | {"response": "yes"}, GOOD, GOOD | {"response": [{"text": 3}]}])
    source = SFTFileSource(file, rejects=folder / "rejects.jsonl")
    assert len(source) == 1 and source.rows(0, 1, 0)[0].pieces[0].text == "yes"
    assert [(entry["row"], entry["key"]) for entry in listed(folder)] == [(2, "response"), (3, "response")]
    assert "2 of 3 rows" in source.notes[0]


def test_a_mixture_has_one_list(folder):
    bad = BAD["no answer"][0]
    first, second = write(folder, [bad, GOOD, GOOD], "a.jsonl"), write(folder, [GOOD, bad, bad, GOOD], "b.jsonl")
    parts = [{"path": str(first), "take": "all"}, {"path": str(second), "take": "end:1"}]
    mixture = MixtureSource(parts, shuffle=False, rejects=folder / "rejects.jsonl")
    assert [row.uid for row in mixture.rows(0, 3, 0)] == ["0/a.jsonl:2@0", "0/a.jsonl:3@0", "1/b.jsonl:4@0"]
    assert [(entry["file"], entry["row"]) for entry in listed(folder)] == [(str(first), 1), (str(second), 2), (str(second), 3)]
    assert "1 of 3 rows cannot be used" in mixture.notes[0] and "2 of 4 rows cannot be used" in mixture.notes[1]
    for part in parts:
        part["rejects"] = str(folder / "same.jsonl")
    with pytest.raises(ValueError, match="rejects: '.*same.jsonl' is named more than once"):
        MixtureSource(parts)


@pytest.mark.parametrize(
    ("fields", "options", "key"),
    [
        ({"problem": [{"role": ["user"], "content": "q"}]}, {}, "problem"),
        ({"clip": ["A" * 5000]}, {"video_key": "clip"}, "clip"),
        ({"clip": ["a\0b"]}, {"video_key": "clip"}, "clip"),
    ],
    ids=["speaker", "long name", "null character"],
)
def test_strange_values_are_rows_that_cannot_be_used(tmp_path, fields, options, key):
    row = {"problem": "q", "answer": "1", "images": []}
    rows = [{**row, "clip": []}, {**row, "clip": [], **fields}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = RowSource(tmp_path / "rows.jsonl", rejects=tmp_path / "rejects.jsonl", **options)
    assert len(source) == 1
    assert json.loads((tmp_path / "rejects.jsonl").read_text())["key"] == key


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, struct.error, IndexError, KeyError, TypeError, EOFError])
def test_whatever_a_decoder_raises_is_told_of_its_row(tmp_path, monkeypatch, error):
    """PIL's decoders of AVIF and DDS, for instance, raise RuntimeError and NotImplementedError for damaged files."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {"problem": "q", "answer": "1", "images": ["a.png"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")

    def broken(*_, **__):
        raise error("damaged")

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(RowError, match=r"row 1, key 'images': image .* cannot be decoded"):
        RowSource(tmp_path / "rows.jsonl").validate()


@pytest.mark.parametrize("options", [{"question_key": None}, {"question_key": 5}, {"metadata_keys": "level"}, {"image_key": 3}])
def test_keys_are_names(tmp_path, options):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"problem": "q", "answer": "1", "images": []}) + "\n")
    with pytest.raises(ValueError, match="expected names of keys"):
        RowSource(tmp_path / "rows.jsonl", **options)


def test_a_folder_cannot_be_the_list(folder):
    file = write(folder, [GOOD, BAD["cut"][0]])
    with pytest.raises(ValueError, match="rejects=.* is a folder"):
        RowSource(file, rejects=folder)
