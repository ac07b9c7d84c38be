"""HallusionBench: the paper's JSON and VLMEvalKit's table, yes and no graded by hand, figures and pairs counted by hand."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.data.rows import Row
from octopus_mcore.data.tables import RowError
from octopus_mcore.evals.benchmark import Item
from octopus_mcore.evals.hallusionbench import grade, metrics, read
from octopus_mcore.evals.registry import benchmark
from tests.benchmark_files import png, png_base64, write_json, write_parquet, write_tsv


def _row(category="VD", kind="illusion", visual="1", place="0_0_0", truth="1", **changes) -> dict:
    group, figure, question = place.split("_")
    row = {
        "category": category,
        "subcategory": kind,
        "visual_input": visual,
        "set_id": group,
        "figure_id": figure,
        "sample_note": "circle",
        "question_id": question,
        "question": "Is the right circle the same size as the left circle?",
        "gt_answer_details": "The right circle is the same size as the left circle.",
        "gt_answer": truth,
        "filename": None if visual == "0" else f"./{category}/{kind}/{group}_{figure}.png",
    }
    return {key: value for key, value in (row | changes).items() if value is not ...}


ROWS = [
    _row(),  # set 0: one question on the original and on the altered figure
    _row(visual="2", place="0_1_0", truth="0"),
    _row(place="0_0_1"),
    _row(visual="2", place="0_1_1", truth="0"),
    _row("VS", "chart", "0", "0_0_0"),  # without a picture
    _row("VS", "chart", "1", "0_1_0"),
    _row("VS", "chart", "2", "0_2_0", "0"),
]


def _folder(root: Path, rows: list[dict]) -> Path:
    for row in rows:
        if row.get("filename"):
            file = root / "hallusion_bench" / row["filename"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(int(row["figure_id"])))
    root.mkdir(exist_ok=True)
    write_json(root / "HallusionBench.json", rows)
    return root


def _kit_row(place: str, truth: str, image: str = png_base64(), **changes) -> dict:
    category, kind = place.split("_")[:2]
    row = {
        "index": place,
        "question": "Is the right circle the same size as the left circle?",
        "answer": truth,
        "category": category,
        "l2-category": f"{category}_{kind}",
        "image": image,
    }
    return row | changes


def test_reads_the_papers_file(tmp_path):
    folder = _folder(tmp_path, ROWS)
    everything, pictured = read(folder, "all"), benchmark("hallusionbench").read(folder / "HallusionBench.json", "image")
    assert len(everything) == 7 and len(pictured) == 6
    assert [item.row.uid for item in pictured][:2] == ["hallusionbench:VD_illusion_0_0_0", "hallusionbench:VD_illusion_0_1_0"]
    assert [item.truth for item in everything] == ["yes", "no", "yes", "no", "yes", "yes", "no"]
    assert everything[4].row.images == () and everything[4].facts["figure"] is None and not everything[4].facts["pictured"]
    assert Path(everything[1].row.images[0]).read_bytes() == png(1)
    assert everything[0].tags == {"category": "VD", "subcategory": "VD_illusion", "difficulty": "easy"}
    assert [item.tags["difficulty"] for item in everything[4:]] == ["easy", "easy", "hard"]
    assert (everything[0].facts["figure_size"], everything[0].facts["pair_size"]) == (2, 2)
    assert everything[5].facts["pair_size"] == 3 and pictured[4].facts["pair_size"] == 2  # the row without a picture is in it


def test_reads_vlmevalkits_table(tmp_path):
    rows = [
        _kit_row("VD_illusion_1_0_0_0", "Yes"),
        _kit_row("VD_illusion_2_0_1_0", "No", png_base64(3)),
        _kit_row("VD_illusion_2_0_1_1", "No", "VD_illusion_2_0_1_0"),  # its image is that of another row
        _kit_row("VD_illusion_1_0_0_1", "Yes"),
        _kit_row("VS_chart_1_0_1_0", "Yes"),
    ]
    write_tsv(tmp_path / "HallusionBench.tsv", rows)
    items = read(tmp_path, "image")
    assert [item.truth for item in items] == ["yes", "no", "no", "yes", "yes"]
    assert items[2].row.images == (png(3),) and items[4].tags == {"category": "VS", "subcategory": "VS_chart"}
    assert items[1].facts["figure"] == items[2].facts["figure"] == "VD_illusion_0_1"
    assert items[0].facts["pair"] == items[1].facts["pair"] == "VD_illusion_0_0" != items[2].facts["pair"]
    assert read(tmp_path, "all") == items  # VLMEvalKit's file has no rows without a picture


def test_reads_the_parquet_files(tmp_path):
    (tmp_path / "data").mkdir()
    rows = [row | {"image": {"bytes": png(int(row["figure_id"])), "path": None}} for row in ROWS if row["filename"]]
    write_parquet(tmp_path / "data" / "image-00000-of-00001.parquet", rows)
    pictured = read(tmp_path, "image")
    assert pictured[1].row.images == (png(1),) and len(pictured) == 6
    without = [row | {"image": None} for row in ROWS if not row["filename"]]
    write_parquet(tmp_path / "data" / "non_image-00000-of-00001.parquet", without)
    everything = read(tmp_path, "all")
    assert read(tmp_path, "image") == pictured and len(everything) == 7
    official = read(_folder(tmp_path / "official", ROWS), "all")
    assert {item.row.uid: (item.truth, item.tags, item.facts) for item in everything} == {
        item.row.uid: (item.truth, item.tags, item.facts) for item in official
    }


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (_row(question=...), "key 'question': the key is missing"),
        (_row(truth="2"), "key 'gt_answer': expected one of '0', '1', found '2'"),
        (_row(category="XX"), "expected one of 'VD', 'VS'"),
        (_row(visual="5"), "key 'visual_input'"),
        (_row(place="9_0_0", filename="./VD/illusion/no.png"), "no.png' is not an image file"),
        (_row(place="9_0_0", filename=None), "expected an image, found none"),
        (_row(), "is also row 1; ids must be unique"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, row, told):
    folder = _folder(tmp_path, [*ROWS, _row(place="9_0_0")])
    write_json(folder / "HallusionBench.json", [*ROWS, row])
    with pytest.raises(RowError, match="1 of 8 rows") as error:
        read(folder, "all")
    assert told in str(error.value) and "row 8" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"answer": "Maybe"}, "expected one of 'Yes', 'No'"),
        ({"image": "aGVsbG8="}, "cannot be decoded"),
        ({"index": "12"}, "expected six parts"),
    ],
)
def test_table_rows_that_cannot_be_used_are_named(tmp_path, changes, told):
    rows = [_kit_row("VD_illusion_1_0_0_0", "Yes"), _kit_row("VD_illusion_2_0_1_0", "No", **changes)]
    with pytest.raises(RowError) as error:
        read(write_tsv(tmp_path / "HallusionBench.tsv", rows), "image")
    assert told in str(error.value)


@pytest.mark.parametrize("lost", [0, 4])
def test_a_file_that_lacks_first_figures_is_refused(tmp_path, lost):
    without_picture = _row("VS", "chart", "0", "5_0_0")
    rows = [row for number, row in enumerate(ROWS) if number != lost] + [without_picture]
    with pytest.raises(ValueError, match="not whole: 1 question pairs lack their row of figure 0"):
        read(_folder(tmp_path, rows), "image")


def _item(truth: str = "yes", pictured: bool = True) -> Item:
    return Item(Row("hallusionbench:x", "?", truth), facts={"pictured": pictured})


CASES = [
    # (response, item, right)
    ("Yes", _item(), True),
    ("yes.", _item(), True),
    ("**Yes**, they are.", _item(), True),
    ("<think>no, or yes?</think>Yes", _item(), True),
    ("<think>no</think><answer>yes</answer>", _item(), True),
    ("<think>no</think>\\boxed{\\text{Yes}}", _item(), True),
    ("The answer is yes.", _item(), True),
    ("No, the sign says yes.", _item("no"), True),  # begins with it
    ("No, the sign says yes.", _item(), False),
    ("Both circles have the same size, so yes", _item(), True),
    ("no", _item(), False),
    ("Yes", _item("no"), False),
    ("They are the same size.", _item(), False),  # neither word
    ("I see yes and no.", _item(), False),
    ("<think>yes", _item(), False),
    ("<think>yes</think>", _item(), False),
    ("", _item(), False),
    ("I cannot tell without the chart.", _item(), False),  # there is a picture
    ("I cannot tell without the chart.", _item("no", False), True),
    ("It is unclear.", _item("yes", False), True),
    ("No image was provided.", _item("yes", False), True),
    ("No, it is Switzerland.", _item("yes", False), False),
    ("No, it is Switzerland.", _item("no", False), True),
    ("<think>unclear", _item("no", False), False),
]


@pytest.mark.parametrize(("response", "item", "right"), CASES)
def test_graded_by_hand(response, item, right):
    assert grade(response, item).score == float(right)


def test_metrics_by_hand(tmp_path):
    items = read(_folder(tmp_path, ROWS), "all")
    found = metrics(items, [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0])
    assert list(found)[:4] == ["average", "aAcc", "fAcc", "qAcc"]
    # figures VD 0_0 (1, 1), VD 0_1 (1, 0), VS 0_1 (1), VS 0_2 (1): 3 of 4
    # pairs VD 0 (1, 1), VD 1 (1, 0), VS 0 (0, 1, 1): 1 of 3
    assert found == {
        "average": (5 / 7 + 3 / 4 + 1 / 3) / 3,
        "aAcc": 5 / 7,
        "fAcc": 3 / 4,
        "qAcc": 1 / 3,
        "aAcc/VD": 3 / 4,
        "fAcc/VD": 1 / 2,
        "qAcc/VD": 1 / 2,
        "aAcc/VS": 2 / 3,
        "fAcc/VS": 1.0,
        "qAcc/VS": 0.0,
        "aAcc/VD_illusion": 3 / 4,
        "fAcc/VD_illusion": 1 / 2,
        "qAcc/VD_illusion": 1 / 2,
        "aAcc/VS_chart": 2 / 3,
        "fAcc/VS_chart": 1.0,
        "qAcc/VS_chart": 0.0,
        "aAcc/easy": 3 / 4,
        "aAcc/hard": 2 / 3,
    }
    pictured = [item for item in read(tmp_path, "image")]
    assert (
        metrics(pictured, [1.0, 1.0, 1.0, 0.0, 1.0, 1.0])["qAcc"] == 2 / 3
    )  # VS' pair no longer has its row without a picture


def test_groups_evaluated_in_part_do_not_count(tmp_path):
    items = read(_folder(tmp_path, ROWS), "image")
    found = metrics(items[:3], [1.0, 0.0, 1.0])  # figure 0_0 whole, 0_1 in part; pair 0 whole, 1 in part
    assert (found["aAcc"], found["fAcc"], found["qAcc"]) == (2 / 3, 1.0, 0.0)
    assert set(metrics(items[:1], [1.0])) == {"aAcc", "aAcc/VD", "aAcc/VD_illusion", "aAcc/easy"}  # no average


def test_means_over_samples_count_by_all_ways_to_pair_them(tmp_path):
    items = read(_folder(tmp_path, ROWS), "image")
    found = metrics(items, [0.5, 1.0, 0.5, 1.0, 1.0, 1.0])
    assert found["fAcc"] == (0.25 + 1 + 1 + 1) / 4 and found["qAcc"] == (0.5 + 0.5 + 1) / 3


@settings(deadline=None, max_examples=40)
@given(data=st.data(), scores=st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=12, max_size=12))
def test_order_does_not_matter_and_shares_stay_in_range(data, scores):
    items = [
        Item(
            Row(f"x:{number}", "?", "yes"),
            tags={"category": "VD", "subcategory": "VD_ocr", "difficulty": "easy"},
            facts={"figure": number // 2, "figure_size": 2, "pair": number % 6, "pair_size": 2, "pictured": True},
        )
        for number in range(12)
    ]
    found = metrics(items, scores)
    order = data.draw(st.permutations(range(12)))
    assert metrics([items[i] for i in order], [scores[i] for i in order]) == found
    assert all(0 <= share <= 1 for share in found.values())
    assert found["fAcc"] <= found["aAcc"] >= found["qAcc"]
