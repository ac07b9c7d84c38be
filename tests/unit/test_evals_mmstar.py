"""MMStar: the table and the parquet file, options graded by hand."""

import pytest

from octopus_mcore.data.rows import Row
from octopus_mcore.data.tables import RowError
from octopus_mcore.evals.benchmark import Item
from octopus_mcore.evals.grades import by_option as grade
from octopus_mcore.evals.mmstar import BENCHMARKS, REQUEST, inline_options, read
from octopus_mcore.evals.registry import benchmark
from tests.benchmark_files import png, png_base64, write_parquet, write_tsv

INLINE = "Where is the suitcase?\nOptions: A: on the book., B: under the cat, C: under the bed, D: None"


def _row(number: int = 0, **changes) -> dict:
    row = {
        "index": number,
        "question": "<image 1>\nWhere is the suitcase?",
        "A": "on the book",
        "B": "under the cat",
        "C": "NA",
        "D": "None",
        "answer": "D",
        "category": "coarse perception",
        "l2_category": "image scene and topic",
        "image": png_base64(number),
    }
    return {key: value for key, value in (row | changes).items() if value is not ...}


def _parquet_row(index: int = 0, **changes) -> dict:
    row = {
        "index": index,
        "question": INLINE,
        "image": {"bytes": png(index), "path": None},
        "answer": "B",
        "category": "math",
        "l2_category": "geometry",
        "meta_info": {"source": "MMBench", "split": "val", "image_path": "images/0.jpg"},
    }
    return row | changes


def test_reads_the_published_files(tmp_path):
    write_tsv(tmp_path / "MMStar.tsv", [_row(), _row(1, answer="A", image="0")])  # the image of row 0
    items = benchmark("mmstar").read(tmp_path, "val")
    assert items[0].row.question == (
        f"Where is the suitcase?\nOptions:\nA. on the book\nB. under the cat\nC. NA\nD. None\n{REQUEST}"
    )
    assert items[0].choices == ("on the book", "under the cat", "NA", "None") and items[0].truth == "D"
    assert items[0].row.images == items[1].row.images == (png(0),)
    assert items[0].tags == {"category": "coarse perception", "l2_category": "image scene and topic"}
    (item,) = read(write_parquet(tmp_path / "mmstar.parquet", [_parquet_row(7)]), "val")
    assert item.row.uid == "mmstar:7" and item.row.question == f"{INLINE}\n{REQUEST}" and item.row.images == (png(7),)
    assert item.choices == ("on the book.", "under the cat", "under the bed", "None") and item.truth == "B"


@pytest.mark.parametrize(
    ("question", "choices"),
    [
        (INLINE, ("on the book.", "under the cat", "under the bed", "None")),
        ("Which?\nOptions: A: Plan A: go, B: 1, C: 2, D: 3", ()),  # not in order: the letters alone remain
        ("Which?\nOptions: A: 1, B: 2", ()),
        ("Which?\n(A) 1\n(B) 2\n(C) 3\n(D) 4", ()),
        ("Which?\nOptions:\nA: 1\nB: 2\nC: 3\nD: 4", ("1", "2", "3", "4")),
        ("Options: are there?\nOptions: A: x, y, B: z, C: 10,000, D: w", ("x, y", "z", "10,000", "w")),
    ],
)
def test_options_within_questions(question, choices):
    assert inline_options(question) == choices


def test_a_question_whose_options_are_not_found_wants_a_letter(tmp_path):
    row = _parquet_row(question="Which?\n(A) cat\n(B) dog\n(C) cow\n(D) pig", answer="B")
    (item,) = read(write_parquet(tmp_path / "x.parquet", [row]), "val")
    assert item.choices == ("A", "B", "C", "D")
    assert grade("<answer>B</answer>", item).score == 1.0 and grade("<answer>dog</answer>", item).score == 0.0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"question": ""}, "key 'question'"),
        ({"answer": "E"}, "expected one of the options A to D, found 'E'"),
        ({"answer": ""}, "key 'answer'"),
        ({"image": ""}, "expected an image, found none"),
        ({"image": "bm8gcGljdHVyZQ=="}, "cannot be decoded"),
        ({"category": ""}, "key 'category'"),
        ({"index": "0"}, "'mmstar:0' is also row 2"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, changes, told):
    with pytest.raises(RowError, match="1 of 2 rows") as error:
        read(write_tsv(tmp_path / "MMStar.tsv", [_row(), _row(1, **changes)]), "val")
    assert told in str(error.value) and "row 4" in str(error.value)  # its line in the file


def test_a_missing_column_is_named(tmp_path):
    with pytest.raises(RowError, match="2 of 2 rows.*\n.*key 'answer': the key is missing"):
        read(write_tsv(tmp_path / "MMStar.tsv", [_row(answer=...), _row(1, answer=...)]), "val")


ITEM = Item(Row("mmstar:1", "?", "B"), ("4", "14", "a cat", "none of these"))
CASES = [
    # (response, right), the truth is B, 14
    ("<think>…</think>\\boxed{B}", True),
    ("<think>…</think><answer>B</answer>", True),
    ("B", True),
    ("(B)", True),
    ("B. 14", True),
    ("Answer: B", True),
    ("The correct option is B.", True),
    ("14", True),
    ("\\boxed{14}", True),
    ("\\boxed{\\text{b}}", True),
    ("A", False),
    ("4", False),
    ("E", False),  # beyond the options
    ("A or B", False),
    ("a cat", False),
    ("<think>B</think> I cannot tell.", False),
    ("<think>B", False),
    ("", False),
]


@pytest.mark.parametrize(("response", "right"), CASES)
def test_graded_by_hand(response, right):
    assert grade(response, ITEM).score == float(right)


def test_metrics_by_hand():
    tags = [("math", "geometry"), ("math", "statistics"), ("math", "geometry"), ("logic", "code")]
    items = [
        Item(Row(f"mmstar:{number}", "?", "A"), ("a", "b"), {"category": category, "l2_category": l2})
        for number, (category, l2) in enumerate(tags)
    ]
    assert BENCHMARKS["mmstar"].metrics(items, [1.0, 0.5, 0.0, 1.0]) == {
        "accuracy": 0.625,
        "category/logic": 1.0,
        "category/math": 0.5,
        "l2_category/code": 1.0,
        "l2_category/geometry": 0.5,
        "l2_category/statistics": 0.5,
    }
