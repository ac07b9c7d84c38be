"""SuperCLEVR counting: the two files, numbers in answers graded by hand."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.data.rows import Row
from octopus_mcore.data.tables import RowError
from octopus_mcore.evals.benchmark import Item
from octopus_mcore.evals.registry import benchmark
from octopus_mcore.evals.superclevr import counted, grade, metrics, read
from tests.benchmark_files import png, write_jsonl


def _row(**changes) -> dict:
    row = {"image_path": "superCLEVR_new_025432.png", "question": "How many trucks are there?", "ground_truth": 3}
    return {key: value for key, value in (row | changes).items() if value is not ...}


def _picture(folder: Path, data: bytes = png()) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "superCLEVR_new_025432.png").write_bytes(data)


def _item(truth: int = 3) -> Item:
    return Item(Row("superclevr:1-x", "?", str(truth)), tags={"count": str(truth)})


@pytest.mark.parametrize("name", ["super_clevr_test_5k.jsonl", "superclevr_test200_counting_problems.jsonl"])
@pytest.mark.parametrize("prefix", ["", "./images/"])
def test_reads_the_published_files(tmp_path, name, prefix):
    _picture(tmp_path / "images")
    (tmp_path / "prompts").mkdir()
    rows = [_row(image_path=prefix + _row()["image_path"]), _row(image_path=prefix + _row()["image_path"], ground_truth=0)]
    write_jsonl(tmp_path / "prompts" / name, rows)
    items = benchmark("superclevr").read(tmp_path, "test")
    assert [item.row.uid for item in items] == ["superclevr:1-superCLEVR_new_025432", "superclevr:2-superCLEVR_new_025432"]
    assert [item.truth for item in items] == ["3", "0"] and items[0].tags == {"count": "3"}
    assert items[0].row.question == _row()["question"]
    assert Path(items[0].row.images[0]).samefile(tmp_path / "images" / _row()["image_path"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ground_truth": ...}, "key 'ground_truth'"),
        ({"ground_truth": "many"}, "expected a whole number"),
        ({"ground_truth": 2.5}, "expected a whole number"),
        ({"ground_truth": -1}, "expected a number of things"),
        ({"question": " "}, "key 'question'"),
        ({"image_path": "other.png"}, "other.png' is not an image file"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, changes, told):
    _picture(tmp_path)
    with pytest.raises(RowError, match="row 2") as error:
        read(write_jsonl(tmp_path / "x.jsonl", [_row(), _row(**changes)]), "test")
    assert told in str(error.value)


def test_a_broken_picture_is_named(tmp_path):
    _picture(tmp_path, b"no picture")
    with pytest.raises(RowError, match=r"row 1, key 'image_path': image .* cannot be decoded"):
        read(write_jsonl(tmp_path / "x.jsonl", [_row()]), "test")


CASES = [
    # (response, right), the truth is 3
    ("<think>…</think><answer>3</answer>", True),
    ("<think>…</think><answer> 3 </answer>", True),
    ("<think>…</think>\\boxed{3}", True),
    ("3", True),  # a baseline
    ("<answer>3 objects</answer>", True),
    ("<answer>three</answer>", True),
    ("There are three trucks.", True),
    ("The answer is 3.", True),
    ("<answer>3.0</answer>", True),
    ("<think><answer>2</answer></think><answer>3</answer>", True),  # a block in the thought is no answer
    ("I see 2 red ones and 1 blue one. The total is 3.", True),  # the last sentence
    ("There are 2 red trucks.\nThere is 1 blue truck.\nSo there are three trucks.", True),
    ("<answer>4</answer>", False),
    ("<answer>2 or 3</answer>", False),
    ("<answer>13</answer>", False),
    ("<answer>3.5</answer>", False),
    ("<answer>-3</answer>", False),
    ("<think>3</think><answer>4</answer>", False),
    ("<think>there are 3", False),
    ("<answer>none</answer>", False),
    ("I cannot tell.", False),
    ("", False),
]


@pytest.mark.parametrize(("response", "right"), CASES)
def test_graded_by_hand(response, right):
    assert grade(response, _item()).score == float(right)


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("none", "0"),
        ("There are no trucks.", "0"),
        ("No such object", "0"),
        ("zero", "0"),
        ("0", "0"),
        ("one", "1"),
        ("the one on the left, so two", "2"),
        ("No, there are 2.", "2"),
        ("No idea", None),
        ("seven or eight", None),
        ("twelve", "12"),
        ("some", None),
    ],
)
def test_numbers_in_words(answer, number):
    assert counted(answer) == number


def test_a_cut_thought_has_no_answer():
    cut, wrong = grade("<think>one, two, 3", _item()), grade("<answer>4</answer>", _item())
    assert (cut.answer, cut.score) == (None, 0.0) and (wrong.answer, wrong.score) == ("4", 0.0)


def test_metrics_by_hand():
    items = [_item(truth) for truth in (0, 10, 2, 2)]
    found = metrics(items, [1.0, 0.0, 1.0, 0.5])
    assert found == {"accuracy": 0.625, "count/0": 1.0, "count/2": 0.75, "count/10": 0.0}
    assert list(found) == ["accuracy", "count/0", "count/2", "count/10"]


@settings(deadline=None, max_examples=50)
@given(truth=st.integers(0, 30), said=st.integers(0, 30))
def test_a_number_is_right_for_itself_alone(truth, said):
    for form in ("<answer>{}</answer>", "<think>…</think>\\boxed{{{}}}", "There are {} of them."):
        assert grade(form.format(said), _item(truth)).score == float(truth == said)
