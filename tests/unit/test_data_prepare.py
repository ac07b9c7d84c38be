"""Preparing published datasets: what is kept, what is left out and why, and that a run reads what was written."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections import Counter
from pathlib import Path

import huggingface_hub.constants
import pyarrow
import pyarrow.parquet as parquet
import pytest
import yaml

from octopus_mcore.config.plugins import load_plugin
from octopus_mcore.config.section import PluginConfig
from octopus_mcore.data.images import content_key, open_image
from octopus_mcore.data.mixture import MixtureSource
from octopus_mcore.data.preparation.dataset import Dataset
from octopus_mcore.data.preparation.prepare import Options, prepare
from octopus_mcore.data.preparation.registry import DATASETS, VIRL39K, find_dataset
from octopus_mcore.data.preparation.tally import band
from octopus_mcore.data.row_reader import Row, RowKeys
from tests.published_sets import (
    LLAVA_ROWS,
    SUFFIX,
    VIRL_ROWS,
    encoded,
    virl_row,
    write_geometry3k,
    write_llava_cot,
    write_ocean,
    write_virl39k,
)


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def rows_of(out: Path, split: str = "rows") -> list[Row]:
    """What a run reads by the block that the command prints."""
    block = yaml.safe_load((out / "source.yaml").read_text(encoding="utf-8"))[split]
    block["options"]["shuffle"] = False
    source = load_plugin(PluginConfig(**block), "data.train")
    source.validate()
    return source.rows(0, len(source), seed=0)


@pytest.fixture(scope="module")
def virl39k(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("virl")
    report = prepare(VIRL39K, str(write_virl39k(folder / "in")), folder / "out")
    return folder / "out", report


def test_every_faulty_row_is_listed_and_no_other(virl39k):
    out, report = virl39k
    faulty = {number: fault for number, (_, fault) in enumerate(VIRL_ROWS, start=1) if fault is not None}
    rejects = lines(out / "rejects.jsonl")
    assert {reject["row"]: reject["kind"] for reject in rejects} == faulty and len(faulty) == 8
    assert {(reject["split"], reject["file"]) for reject in rejects} == {("rows", "39Krelease.parquet")}
    by_kind = {reject["kind"]: (reject["key"], reject["reason"]) for reject in rejects}
    assert by_kind["missing image"] == ("image", "there is no file 'images/nowhere.jpg', nor is it in an archive")
    assert by_kind["answer without box"][0] == "answer" and "found '5'" in by_kind["answer without box"][1]
    assert by_kind["undecodable image"][1].startswith("images/cut.jpg: image (bytes) cannot be decoded: image file is trunc")
    assert by_kind["duplicate uid"] == ("qid", "the uid 'MMK12-0' is that of an earlier row")
    assert by_kind["pass rate"][0] == "PassRate_32BTrained" and "found 1.2" in by_kind["pass rate"][1]
    assert by_kind["markers"] == (
        "question",
        "2 <image> markers for 1 images; give one marker per image, or none to put all images first",
    )
    counts = report["splits"]["rows"]
    assert (counts["read"], counts["kept"], counts["left out"]) == (14, 6, dict(sorted(Counter(faulty.values()).items())))


def test_a_run_reads_the_prepared_folder(virl39k):
    out, _ = virl39k
    rows = rows_of(out)
    kept = [row for row, fault in VIRL_ROWS if fault is None]
    assert [row.metadata["qid"] for row in rows] == [row["qid"] for row in kept]
    assert [row.question for row in rows] == [row["question"] for row in kept]
    assert [row.answer for row in rows] == ["0", "1", "10", "11", "12", "13"], "without their boxes"
    assert dict(rows[1].metadata) == {key: kept[1][key] for key in VIRL39K.keys.metadata}
    assert [len(row.images) for row in rows] == [1, 1, 2, 0, 1, 1]


def test_images_are_stored_once_by_content(virl39k):
    out, report = virl39k
    stored = {path.relative_to(out).as_posix(): path for path in (out / "images").rglob("*.*")}
    # 0 and 1 (twice, and once as a PNG of the same pixels) as they were, 13 from its GIF; 2 to 9 are of rows left out
    assert len(stored) == report["distinct images"] == 3
    for name, path in stored.items():
        key = content_key(open_image(path, name))
        assert name in (f"images/{key[:2]}/{key}.jpg", f"images/{key[:2]}/{key}.png")
    originals = [encoded(0, "JPEG"), encoded(1, "JPEG"), encoded(10, "JPEG")]
    first, second, both, _, same, gif = (row["images"] for row in lines(out / "rows.jsonl"))
    assert [(out / image).read_bytes() for image in both] == originals[:2] and both == first + second
    assert same == second and gif[0].endswith(".png")
    assert content_key(open_image(out / gif[0], "gif")) == content_key(open_image(encoded(13, "GIF"), "gif"))


def test_counts_of_categories_sources_rates_and_images(virl39k):
    _, report = virl39k
    counts = report["splits"]["rows"]
    geometric, spatial = {"read": 13, "kept": 5}, {"read": 1, "kept": 1}
    assert counts["by category"] == {"(GradeSchool) Geometric": geometric, "Spatial Reasoning": spatial}
    assert counts["by source"] == {
        "DeepScaleR": {"read": 1, "kept": 1},
        "M3CoT": {"read": 1, "kept": 1},
        "MMK12": {"read": 12, "kept": 4},
    }

    def table(key: str) -> dict[str, tuple[int, ...]]:
        return {name: tuple(values.values()) for name, values in counts[f"rate {key}"].items() if any(values.values())}

    # read, kept, kept by the documented rule; the row with a rate of 1.2 is in no band
    assert table("PassRate_7BBase") == {"unlabelled": (11, 4, 9), "(0, .3)": (1, 1, 1), "1": (1, 1, 0)}
    assert table("PassRate_32BTrained") == {"0": (1, 1, 0), "[.3, .7)": (11, 4, 10), "1": (1, 1, 0)}
    assert counts["images in a row"] == {"no image": 1, "one": 4, "several": 1} and counts["images of rows"] == 6


def test_bands_of_rates():
    rates = [None, 0, 0.0, 0.125, 0.3, 0.5, 0.7, 0.875, 1.0, 1]
    names = ["unlabelled", "0", "0", "(0, .3)", "[.3, .7)", "[.3, .7)", "[.7, 1)", "[.7, 1)", "1", "1"]
    assert [band(rate) for rate in rates] == names


def test_checksums_are_those_of_all_files(virl39k):
    out, report = virl39k
    done = subprocess.run(["sha256sum", "--check", "--strict", "checksums.sha256"], cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    listed = {line.partition("  ")[2] for line in (out / "checksums.sha256").read_text().splitlines()}
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert there - listed == {"checksums.sha256", "report.json"} and listed <= there
    inputs = subprocess.run(["sha256sum", "--check", "--strict", out / "inputs.sha256"], cwd=out.parent / "in")
    assert inputs.returncode == 0
    assert json.loads((out / "report.json").read_text()) == report


def test_the_documented_rule_and_limit(tmp_path, virl39k):
    source = str(virl39k[0].parent / "in")
    report = prepare(VIRL39K, source, tmp_path / "out", Options(keep_pass_rate=True))
    assert [row.metadata["qid"] for row in rows_of(tmp_path / "out")] == ["MMK12-0", "MMK12-1", "MMK12-10"]
    assert report["splits"]["rows"]["left out"]["filter: pass rate"] == 3
    left_out = [reject for reject in lines(tmp_path / "out/rejects.jsonl") if reject["kind"] == "filter: pass rate"]
    assert [reject["row"] for reject in left_out] == [12, 13, 14]
    report = prepare(VIRL39K, source, tmp_path / "out", Options(limit=3))
    assert [row.metadata["qid"] for row in rows_of(tmp_path / "out")] == ["MMK12-0", "MMK12-1", "MMK12-10"]
    assert report["splits"]["rows"]["read"] == 11 and len(lines(tmp_path / "out/rejects.jsonl")) == 8


def test_nan_is_no_rate(tmp_path):
    write_virl39k(tmp_path / "in")
    rows = [virl_row(0, PassRate_7BBase=float("nan")), virl_row(1, PassRate_7BBase=None, category=None)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in/39Krelease.parquet")
    report = prepare(VIRL39K, str(tmp_path / "in"), tmp_path / "out")
    assert [row.metadata["PassRate_7BBase"] for row in rows_of(tmp_path / "out")] == [None, None]
    assert report["splits"]["rows"]["rate PassRate_7BBase"]["unlabelled"]["read"] == 2
    assert "NaN" not in (tmp_path / "out/rows.jsonl").read_text()


def test_llava_cot(tmp_path):
    dataset = DATASETS["llava-cot-100k"]
    write_llava_cot(tmp_path / "in")
    report = prepare(dataset, str(tmp_path / "in"), tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert [(row.question, row.answer, row.metadata["source"]) for row in rows] == [
        ("What is 0?", "0", "sqa"),  # the first exchange of two
        ("What is 1?", "1", "coco"),
        ("What is 2?", "2", "CLEVR_v1.0"),
        ("What is 4?", "4", "web-celebrity"),
    ]
    # a blank line is no row, but lines are what an editor counts; the fifth is not UTF-8
    faults = {reject["row"]: (reject["kind"], reject["key"]) for reject in lines(tmp_path / "out/rejects.jsonl")}
    talk = "conversations"
    assert faults == {
        5: ("unreadable row", None),
        6: ("question", talk),
        8: ("image", "image"),
        9: ("answer without tag", talk),
    }
    assert report["splits"]["rows"]["read"] == len(LLAVA_ROWS) + 1
    # What is left out of a longer conversation is counted.
    counts = {"1": (1, 0), "2": (5, 3), "4": (1, 1), "unknown": (1, 0)}
    by_turns = {turns: {"read": read, "kept": kept} for turns, (read, kept) in counts.items()}
    assert report["splits"]["rows"]["by turns"] == by_turns
    report = prepare(dataset, str(tmp_path / "in"), tmp_path / "out", Options(sources=dataset.sources))
    assert [row.metadata["source"] for row in rows_of(tmp_path / "out")] == ["sqa", "CLEVR_v1.0", "web-celebrity"]
    reject = lines(tmp_path / "out/rejects.jsonl")[0]
    assert (reject["row"], reject["kind"]) == (2, "filter: source") and "'coco' holds none of ai2d, " in reject["reason"]


def test_geometry3k_has_a_file_for_each_split(tmp_path):
    write_geometry3k(tmp_path / "in")
    report = prepare(DATASETS["geometry3k"], str(tmp_path / "in"), tmp_path / "out")
    answers = {split: [row.answer for row in rows_of(tmp_path / "out", split)] for split in ("train", "validation", "test")}
    halves = [rf"\frac{{{i}}}{{2}}" for i in range(6)]
    assert answers == {"train": [halves[0], halves[1], halves[3]], "validation": halves[1:5], "test": halves[2:6]}
    assert {key: counts["kept"] for key, counts in report["splits"].items()} == {"train": 3, "validation": 4, "test": 4}
    assert report["distinct images"] == 6, "images of several splits are stored once"
    assert (tmp_path / "out" / lines(tmp_path / "out/train.jsonl")[0]["images"][0]).read_bytes() == encoded(0)


def test_splits_that_are_not_there_are_named(tmp_path):
    write_geometry3k(tmp_path / "in", splits=("test",))
    report = prepare(DATASETS["geometry3k"], str(tmp_path / "in"), tmp_path / "out")
    assert report["absent splits"] == ["train", "validation"] and list(report["splits"]) == ["test"]


@pytest.mark.parametrize(
    ("name", "split"), [("ocean-r1-stage1", "train"), ("ocean-r1-stage2", "train"), ("geoqa-test", "test")]
)
def test_ocean(tmp_path, name, split):
    write_ocean(tmp_path / "in", split)
    prepare(DATASETS[name], str(tmp_path / "in"), tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 7 and rows[1].question == f"<image> What is 1?\n{SUFFIX}" and rows[1].answer == "<answer>1</answer>"
    assert rows[1].metadata == {"reward_func": "acc", "data_source": "geoqa", "index": 1}
    assert rows[6].metadata["reward_func"] == "iou" and rows[6].answer == "[1, 2, 30, 40]"
    rejects = {reject["row"]: (reject["key"], reject["reason"]) for reject in lines(tmp_path / "out/rejects.jsonl")}
    assert rejects == {
        8: ("reward_model.ground_truth", "expected a rectangle [x1, y1, x2, y2] with an area, found '[1, 2, 1, 40]'"),
        9: ("extra_info.reward_func", "expected acc or iou, found 'bleu'"),
    }


def test_a_series_with_a_gap_is_an_error(tmp_path):
    write_geometry3k(tmp_path / "in")
    data = tmp_path / "in/data"
    (data / "train-00000-of-00001.parquet").rename(data / "train-00001-of-00002.parquet")
    with pytest.raises(ValueError, match="1 of the 2 files of 'train' are missing, first number 00000"):
        prepare(DATASETS["geometry3k"], str(tmp_path / "in"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_load_dataset_writes_is_found_too(tmp_path):
    """Ocean-R1's `download_data.py` makes one parquet file; LLaVA-CoT's images may lie below `image/`."""
    write_ocean(tmp_path / "in")
    (tmp_path / "in/data/train-00000-of-00001.parquet").rename(tmp_path / "in/Ocean_R1_visual_data_stage1.parquet")
    assert prepare(DATASETS["ocean-r1-stage1"], str(tmp_path / "in"), tmp_path / "out")["splits"]["rows"]["kept"] == 7


def test_what_save_to_disk_writes_is_read(tmp_path):
    """Octopus' download script saves LLaVA-CoT as a `DatasetDict`; images come from the hub's archive."""
    write_llava_cot(tmp_path / "in", parts=2)
    (tmp_path / "in/train.jsonl").unlink()
    rows = [row for row, fault in LLAVA_ROWS if fault is None]
    (tmp_path / "in/train").mkdir()
    for number, part in enumerate((rows[:3], rows[3:])):
        table = pyarrow.Table.from_pylist(part)
        with pyarrow.ipc.new_stream(tmp_path / f"in/train/data-0000{number}-of-00002.arrow", table.schema) as stream:
            stream.write_table(table)
    report = prepare(DATASETS["llava-cot-100k"], str(tmp_path / "in"), tmp_path / "out")
    assert [row.answer for row in rows_of(tmp_path / "out")] == ["0", "1", "2", "4"]
    assert [entry["file"] for entry in report["inputs"]] == [f"train/data-0000{n}-of-00002.arrow" for n in (0, 1)]


def test_the_shares_of_oceans_second_stage(tmp_path):
    """Parts of the repository's mixture (visual_all_data_stage2.yaml), prepared one by one and taken as that file says."""
    takes = {"geoqa_8k": "random:3", "mmpr_v2": "random:10%", "counting_20k": "random:20%", "rec_16k": "all"}
    for name in takes:
        write_ocean(tmp_path / name, count=12)
        (tmp_path / name / "data/train-00000-of-00001.parquet").rename(tmp_path / f"{name}.parquet")
        prepare(DATASETS["ocean-r1-stage2"], str(tmp_path / f"{name}.parquet"), tmp_path / "out" / name)
    parts = []
    for name, take in takes.items():
        block = yaml.safe_load((tmp_path / "out" / name / "source.yaml").read_text())["rows"]
        parts.append({"take": take, **block["options"]})
    mixture = MixtureSource(parts)
    mixture.validate()
    assert len(mixture) == 3 + 2 + 3 + 13  # of 13 rows each: 1.3 and 2.6, the next whole row up
    assert {row.metadata["reward_func"] for row in mixture.rows(0, 21, seed=1)} == {"acc", "iou"}


def test_from_the_hub(tmp_path, monkeypatch):
    """A snapshot in the hub's cache, as its client lays it out, with no network."""
    commit = "c" * 40
    repository = tmp_path / "hub/datasets--hiyouga--geometry3k"
    write_geometry3k(repository / "snapshots" / commit, splits=("train", "test"))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    report = prepare(DATASETS["geometry3k"], "hub:hiyouga/geometry3k", tmp_path / "out")
    assert report["commit"] == commit and report["splits"]["train"]["kept"] == 3 and len(rows_of(tmp_path / "out", "test")) == 4
    with pytest.raises(FileNotFoundError, match="hub:hiyouga/geometry9k"):
        prepare(DATASETS["geometry3k"], "hub:hiyouga/geometry9k", tmp_path / "out9")
    with pytest.raises(ValueError, match=r"expected hub:owner/name\[@revision\]; the dataset knows which files"):
        prepare(DATASETS["geometry3k"], "hub:hiyouga/geometry3k/data", tmp_path / "out9")
    assert not (tmp_path / "out9").exists()


def test_archives_come_from_the_hub_too(tmp_path, monkeypatch):
    commit, repository = "d" * 40, tmp_path / "hub/datasets--TIGER-Lab--ViRL39K"
    write_virl39k(repository / "snapshots" / commit, zipped=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    report = prepare(VIRL39K, f"hub:TIGER-Lab/ViRL39K@{commit}", tmp_path / "out")
    assert (report["commit"], report["splits"]["rows"]["kept"]) == (commit, 6)


MINE = Dataset(
    name="mine",
    hub="me/mine",
    splits={"rows": ("*.jsonl",)},
    columns=("q", "a"),
    keys=RowKeys(question="q", answer="a", images=None, metadata={"topic": "about.topic"}),
    category="topic",
)


def test_a_dataset_of_the_users_own(tmp_path):
    row = {"q": "1 + 1?", "a": 2, "about": {"topic": "sums"}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"about": {}}) + "\n")
    report = prepare(find_dataset(f"{__name__}:MINE"), str(tmp_path), tmp_path / "out")
    assert report["splits"]["rows"]["by topic"] == {"sums": {"read": 1, "kept": 1}, "unknown": {"read": 1, "kept": 0}}
    (row,) = rows_of(tmp_path / "out")
    assert (row.question, row.answer, row.images, row.metadata) == ("1 + 1?", "2", (), {"topic": "sums"})
    assert lines(tmp_path / "out/rejects.jsonl")[0]["key"] == "about.topic"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("virl", "expected one of virl39k, llava-cot-100k, .*, or package.module:NAME"),
        ("nowhere.at.all:X", "'nowhere.at.all' cannot be imported"),
        (f"{__name__}:SUFFIX", "expected a .*Dataset, found str"),
    ],
)
def test_datasets_that_nobody_knows(name, message):
    with pytest.raises(ValueError, match=message):
        find_dataset(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": RowKeys(metadata={"answer": "x"})}, r"metadata cannot be called \['answer'\], which every row has"),
        ({"keys": RowKeys(videos="x")}, "rows with videos or without an answer are not prepared"),
        ({"category": "kind"}, r"\['kind'\] are not among the metadata"),
        ({"sources": ("a",)}, "`sources` needs the name of the metadata"),
    ],
)
def test_datasets_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        Dataset("d", "o/d", {"rows": ("*",)}, (), **changes)


def test_another_layout_is_an_error_that_says_what_was_expected(tmp_path):
    write_geometry3k(tmp_path / "in")
    (tmp_path / "in/data/train-00000-of-00001.parquet").rename(tmp_path / "in/39Krelease.parquet")
    with pytest.raises(
        ValueError, match=r"39Krelease.parquet has not the layout of virl39k: expected the columns question, .*"
    ):
        prepare(VIRL39K, str(tmp_path / "in"), tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="holds no file of llava-cot-100k: expected rows: train.jsonl or .*; found 39K"):
        prepare(DATASETS["llava-cot-100k"], str(tmp_path / "in"), tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="there is no such folder; give one, or hub:TIGER-Lab/ViRL39K"):
        prepare(VIRL39K, str(tmp_path / "nowhere"), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_a_split_of_which_nothing_is_left_is_an_error(tmp_path):
    write_virl39k(tmp_path / "in")
    rows = [virl_row(0, answer="0"), virl_row(1, image=["no.jpg"])]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in/39Krelease.parquet")
    with pytest.raises(ValueError, match=r"no row of 'rows' is left of 2 \(1 answer without box, 1 missing image\); the first"):
        prepare(VIRL39K, str(tmp_path / "in"), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("geometry3k", Options(keep_pass_rate=True), "--keep-pass-rate: geometry3k has no pass rates"),
        ("geometry3k", Options(sources=("a",)), "--sources: rows of geometry3k name no source"),
        ("geometry3k", Options(pixels=(1, None)), "--min-pixels and --max-pixels bound what --resize-for makes"),
        ("geometry3k", Options(resize_for=Path("nowhere")), "preprocessor_config.json is missing"),
        ("geometry3k", Options(image_root=Path("nowhere")), "--image-root: there is no folder nowhere"),
    ],
)
def test_options_that_say_nothing(tmp_path, name, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare(DATASETS[name], str(tmp_path), tmp_path / "out", options)


def test_a_question_of_another_row_is_no_substitute(virl39k):
    """Nothing stands in for a row that is left out: what is kept is a subset of the input, in its order."""
    out, _ = virl39k
    kept = [row["qid"] for row in lines(out / "rows.jsonl")]
    assert len(kept) == len(set(kept)) and kept == [row["qid"] for row, fault in VIRL_ROWS if fault is None]


def page() -> str:
    return (Path(__file__).parents[2] / "docs/datasets.md").read_text(encoding="utf-8")


def test_the_dataset_of_the_documentation(tmp_path, monkeypatch):
    (tmp_path / "my_data.py").write_text(page().partition("```python\n")[2].partition("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in/charts.zip", "w") as archive:
        archive.writestr("a.png", encoded(0))
    metas = [{"id": 1, "unit": "%", "rate": 0.5}, {"id": 2, "unit": "kg", "rate": 0.5}, {"id": 3, "unit": "", "rate": 1}]
    for split in ("train", "test"):
        text = "".join(json.dumps({"query": "How much?", "label": 7, "chart": "a.png", "meta": meta}) + "\n" for meta in metas)
        (tmp_path / f"in/{split}.jsonl").write_text(text)
    report = prepare(find_dataset("my_data:CHARTS"), str(tmp_path / "in"), tmp_path / "out", Options(keep_pass_rate=True))
    assert report["splits"]["test"]["left out"] == {"check": 1, "filter: pass rate": 1}
    (row,) = rows_of(tmp_path / "out", "train")
    assert (row.answer, row.metadata) == ("7", {"id": 1, "unit": "%", "rate": 0.5})


def test_the_documentation_names_datasets_and_reasons():
    text = page()
    assert all(f"`{name}`" in text and dataset.hub.partition("/")[2] in text for name, dataset in DATASETS.items())
    words = {fault for _, fault in VIRL_ROWS if fault} | {
        "unreadable row",
        "derived field",
        "check",
        "metadata",
        "uid",
        "image",
    }
    words |= {fault for _, fault in LLAVA_ROWS if fault} | {"filter: pass rate", "filter: source"}
    assert all(f"`{word}`" in text for word in words)
    parts = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])["options"]["parts"]
    assert [part["take"] for part in parts] == ["random:1000", "random:10%", "random:20%", "all", "all", "random:20%"]
