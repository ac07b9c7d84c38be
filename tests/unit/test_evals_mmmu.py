"""MMMU: subjects' folders and VLMEvalKit's table, images where they are named, options and open answers graded by hand."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.data.rows import Row
from octopus_mcore.data.tables import RowError
from octopus_mcore.evals.benchmark import Item
from octopus_mcore.evals.mmmu import BENCHMARKS, REQUEST, SUBJECTS, grade, read
from octopus_mcore.evals.openanswers import open_answer_right, same_number
from octopus_mcore.evals.registry import benchmark
from tests.benchmark_files import png, png_base64, write_parquet, write_tsv


def _row(number: int = 1, subject: str = "Accounting", split: str = "validation", images: int = 1, **changes) -> dict:
    row = {
        "id": f"{split}_{subject}_{number}",
        "question": "<image 1> What is the profit per unit?",
        "options": "['$6', \"Smith's\", 'None', '[9]']",
        "explanation": "",
        **{f"image_{k}": {"bytes": png(k), "path": f"{k}.png"} if k <= images else None for k in range(1, 8)},
        "img_type": "['Tables']",
        "answer": "B",
        "topic_difficulty": "Easy",
        "question_type": "multiple-choice",
        "subfield": "Managerial Accounting",
    }
    return {key: value for key, value in (row | changes).items() if value is not ...}


def _open(number: int, answer: str, **changes) -> dict:
    return _row(number, "Math", options="[]", answer=answer, question_type="open", question="<image 1> How much?") | changes


def _subject(root: Path, rows: list[dict], subject: str = "Accounting", split: str = "validation") -> Path:
    (root / subject).mkdir(parents=True, exist_ok=True)
    write_parquet(root / subject / f"{split}-00000-of-00001.parquet", rows)
    return root / subject


def _kit_row(number: int, **changes) -> dict:
    row = {
        "index": number,
        "question": "<image 1> What is the profit per unit?",
        "A": "$6",
        "B": "None",
        "answer": "B",
        "category": "Accounting",
        "l2-category": "Business",
        "split": "validation",
        "image": png_base64(1),
    }
    return row | changes


def test_reads_a_subjects_folder(tmp_path):
    folder = _subject(tmp_path, [_row(1), _row(2, answer="D")])
    _subject(tmp_path, [_row(1, split="dev")], split="dev")
    items = benchmark("mmmu").read(folder, "validation")
    assert [item.row.uid for item in items] == ["mmmu:validation_Accounting_1", "mmmu:validation_Accounting_2"]
    assert items[0].choices == ("$6", "Smith's", "None", "[9]")
    assert items[0].row.question == (
        f"<image> What is the profit per unit?\nOptions:\nA. $6\nB. Smith's\nC. None\nD. [9]\n{REQUEST}"
    )
    assert items[0].truth == "B" and items[1].truth == "D" and items[0].row.images == (png(1),)
    assert items[0].tags == {"discipline": "Business", "subject": "Accounting"}
    assert [item.row.uid for item in read(folder, "dev")] == ["mmmu:dev_Accounting_1"]
    assert len(read(folder / "validation-00000-of-00001.parquet", "validation")) == 2


def test_reads_all_subjects_or_tells_which_are_missing(tmp_path):
    for subject in SUBJECTS:
        _subject(tmp_path, [_row(1, subject)], subject)
    items = read(tmp_path, "validation")
    assert len(SUBJECTS) == 30 and {item.tags["subject"] for item in items} == set(SUBJECTS)
    (tmp_path / "Music" / "validation-00000-of-00001.parquet").unlink()
    with pytest.raises(ValueError, match="of Music; name a subject's folder"):
        read(tmp_path, "validation")
    with pytest.raises(FileNotFoundError, match="MMMU_DEV_VAL.tsv"):
        read(tmp_path, "dev")


def test_reads_all_subjects_in_one_folder(tmp_path):
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "validation-00000-of-00002.parquet", [_row(1)])
    write_parquet(tmp_path / "data" / "validation-00001-of-00002.parquet", [_open(1, "['24/7', '3.429']"), _open(2, "4")])
    items = read(tmp_path, "validation")
    assert [item.tags["subject"] for item in items] == ["Accounting", "Math", "Math"]
    assert items[1].facts["truths"] == ("24/7", "3.429") and items[1].truth == "24/7" and items[1].choices == ()
    assert items[2].facts["truths"] == ("4",) and REQUEST not in items[2].row.question


def test_reads_vlmevalkits_table(tmp_path):
    rows = [
        _kit_row(1),
        _kit_row(2, question="Compare <image 2> with <image 1>.", image=str([png_base64(1), png_base64(2)])),
        _kit_row(3, split="dev"),
        _kit_row(4, A="", B="", answer="['$MgS$', 'MgS']", category="Chemistry"),
    ]
    write_tsv(tmp_path / "MMMU_DEV_VAL.tsv", rows)
    items = read(tmp_path, "validation")
    assert [item.row.uid for item in items] == ["mmmu:validation_1", "mmmu:validation_2", "mmmu:validation_4"]
    assert items[0].choices == ("$6", "None")
    assert items[1].row.question.startswith("Compare <image> with <image>.") and items[1].row.images == (png(2), png(1))
    assert items[2].choices == () and items[2].facts["truths"] == ("$MgS$", "MgS") and items[2].tags["discipline"] == "Science"
    assert [item.row.uid for item in read(tmp_path, "dev")] == ["mmmu:dev_3"]


@pytest.mark.parametrize(
    ("question", "options", "images", "starts", "shown"),
    [
        ("<image 1> or <image 2>?", "['a', 'b']", 2, "<image> or <image>?", (1, 2)),
        ("<image 2> or <image 1>?", "['a', 'b']", 2, "<image> or <image>?", (2, 1)),
        ("<image 1> is <image 1>?", "['a', 'b']", 1, "<image> is <image>?", (1, 1)),
        ("Which?", "['<image 1>', '<image 2>']", 2, "Which?\nOptions:\nA. <image>\nB. <image>", (1, 2)),
        ("Which?", "['a', 'b']", 2, "Which?", (1, 2)),  # named nowhere: all in front
        ("<image 2>?", "['a', 'b']", 3, "<image><image>\n<image>?", (1, 3, 2)),
    ],
)
def test_images_stand_where_they_are_named(tmp_path, question, options, images, starts, shown):
    row = _row(question=question, options=options, images=images, answer="A")
    (item,) = read(_subject(tmp_path, [row]), "validation")
    assert item.row.question.startswith(starts) and item.row.images == tuple(png(number) for number in shown)
    assert item.row.question.count("<image>") in (0, len(shown))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"question": "<image 3>?"}, "<image 3> is named, but the row has no image 3"),
        ({"question": "<image>?"}, "does not say which image"),
        ({"question": None}, "key 'question'"),
        ({"options": "[]"}, "without options"),
        ({"options": "['a', 'b'"}, "expected a list"),
        ({"answer": "E"}, "expected one of the options A to D"),
        ({"answer": "?"}, "expected one of the options A to D"),
        ({"image_1": {"bytes": b"no picture", "path": None}}, "cannot be decoded"),
        ({"id": "validation_Astrology_1"}, "'Astrology' is none of MMMU's subjects"),
        ({"id": "validation_Accounting_1"}, "is also row 1"),
        ({"question_type": "open", "answer": "?"}, "expected an answer or a list"),
        ({"question_type": "open", "answer": "['']"}, "expected an answer or a list"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, changes, told):
    with pytest.raises(RowError, match="1 of 2 rows") as error:
        read(_subject(tmp_path, [_row(1), _row(2, **changes)]), "validation")
    assert told in str(error.value) and "row 2" in str(error.value)


def test_a_missing_column_is_named(tmp_path):
    with pytest.raises(RowError, match="key 'question_type': the key is missing"):
        read(_subject(tmp_path, [_row(1, question_type=...)]), "validation")


def test_options_are_never_run(tmp_path):
    target = tmp_path / "ran"
    row = _row(options=f"[__import__('pathlib').Path({str(target)!r}).touch(), 'b']")
    with pytest.raises(RowError, match="key 'options': expected a list"):
        read(_subject(tmp_path, [row]), "validation")
    assert not target.exists()


CHOICE = Item(Row("mmmu:x", "?", "B"), ("$6", "$7", "$8", "$9"), facts={"truths": ("B",)})


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("<think>…</think>\\boxed{B}", True),
        ("<think>…</think><answer>(B)</answer>", True),
        ("B", True),
        ("B. $7", True),
        ("The answer is B.", True),
        ("$7", True),
        ("\\boxed{\\$7}", True),
        ("Answer: A", False),
        ("I do not know.", False),  # MMMU's program draws an option
        ("", False),
        ("<think>B", False),
        ("<think>(B)</think> (C)", False),
        ("A, B", False),
        ("F", False),
    ],
)
def test_options_graded_by_hand(response, right):
    assert grade(response, CHOICE).score == float(right)


OPEN = [
    # (truths, response, right)
    (("8",), "\\boxed{8}", True),
    (("8",), "The answer is 8 cm.", True),
    (("8",), "<answer>8.00</answer>", True),
    (("8",), "<answer>18</answer>", False),
    (("8",), "<answer>8.4</answer>", False),
    (("8",), "<answer>A</answer>", False),  # VLMEvalKit's option with the truth
    (("4",), "<answer>either 4 or 5</answer>", False),
    (("3.429", "24/7"), "\\boxed{3.43}", True),
    (("3.429", "24/7"), "\\boxed{\\frac{24}{7}}", True),
    (("0.001",), "<answer>0</answer>", False),
    (("0.001",), "<answer>0.001</answer>", True),
    (("0.286",), "<answer>0.29</answer>", True),
    (("2000000",), "<answer>$2,000,000</answer>", True),
    (("-120",), "<answer>120</answer>", False),
    (("-120",), "V = -120 volts", True),
    (("9.20",), "<answer>9.2%</answer>", True),
    (("1/64",), "\\boxed{\\frac{1}{64}}", True),
    (("C",), "The answer is C.", True),
    (("C",), "<answer>(c)</answer>", True),
    (("C",), "Therefore, it is C.", True),
    (("C",), "<answer>Carbon</answer>", False),
    (("embryonic",), "<answer>Embryonic.</answer>", True),
    (("embryonic",), "<answer>the embryonic stage</answer>", True),
    (("embryonic",), "<answer>preembryonic</answer>", False),
    (("embryonic",), "<answer>not embryonic</answer>", False),
    (("embryonic",), "<answer>embryonic or fetal</answer>", False),
    (("embryonic",), "<answer>fetal</answer>", False),
    (("embryonic",), "<think>embryonic", False),
    (("Tampa", "Florida"), "<answer>Tampa, Florida</answer>", True),
    (("Tampa", "Florida"), "<answer>Miami</answer>", False),
    (("$MgS$", "MgS"), "\\boxed{\\text{MgS}}", True),
    (("trans-1-Chloro-4-methylcyclohexane",), "<answer>trans-1-chloro-4-methylcyclohexane</answer>", True),
    (("trans-1-Chloro-4-methylcyclohexane",), "<answer>cis-1-chloro-4-methylcyclohexane</answer>", False),
    (("a or b",), "<answer>a or b</answer>", True),  # the truth's own "or"
]


@pytest.mark.parametrize(("truths", "response", "right"), OPEN)
def test_open_answers_graded_by_hand(truths, response, right):
    assert grade(response, Item(Row("mmmu:x", "?", truths[0]), facts={"truths": truths})).score == float(right)


@settings(deadline=None, max_examples=60)
@given(number=st.decimals(-9999, 9999, places=3), decimals=st.integers(2, 4))
def test_numbers_equal_themselves_at_any_written_precision(number, decimals):
    written = f"{number:.{decimals}f}"
    assert same_number(written, written)
    assert same_number(f"{float(written) + 1:.{decimals}f}", written) is False
    assert same_number(written, str(number)) == same_number(str(number), written)


def test_metrics_by_hand():
    subjects = ["Art", "Music", "Math", "Math"]
    items = [
        Item(Row(f"mmmu:{number}", "?", "A"), ("a", "b"), {"discipline": SUBJECTS[subject], "subject": subject})
        for number, subject in enumerate(subjects)
    ]
    assert BENCHMARKS["mmmu"].metrics(items, [1.0, 0.0, 1.0, 0.5]) == {
        "accuracy": 0.625,
        "discipline/Art and Design": 0.5,
        "discipline/Science": 0.75,
        "subject/Art": 1.0,
        "subject/Math": 0.75,
        "subject/Music": 0.0,
    }


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("1e5", "100,000", True),
        ("1.5e-3", "0.0015", True),
        ("1e-3", "0.002", False),
        ("1e999", "5", False),
        ("not 8", "8", False),
    ],
)
def test_numbers_in_powers_of_ten_and_denied_ones(answer, truth, right):
    assert open_answer_right(answer, truth) is right
