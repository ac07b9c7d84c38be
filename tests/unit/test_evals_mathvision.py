"""MATH-Vision: its published file, Hugging Face's parquet and VLMEvalKit's table; grades by hand; metrics by hand."""

from __future__ import annotations

import pickle

import pytest

from octopus_mcore.data.tables import RowError
from octopus_mcore.evals.mathvision import BENCHMARKS, grade, read
from octopus_mcore.evals.registry import benchmark
from tests.benchmark_files import by_id, png, png_base64, write_jsonl, write_parquet, write_tsv


def row(name: str, answer: str, *options: str, **changed) -> dict:
    """A row of `test.jsonl`."""
    found = {"id": name, "question": "Which number is it?\n<image1>", "options": list(options), "answer": answer}
    found |= {"solution": None, "level": 2, "subject": "arithmetic", "image": f"images/{name}.jpg"}
    return found | changed


ROWS = [
    row("1", "60"),
    row("2", "A", *"ABCDE", level=1),
    row("3", "B", "$20 \\mathrm{~cm}$", "$21 \\mathrm{~cm}$", "$\\frac{45}{2} \\mathrm{~cm}$", subject="logic"),
    row("4", "$6 \\sqrt{3}+4 \\pi$", level=5),
    row("5", "\frac{36}{13}"),  # as in the published file: a form feed where \f stood
    row("6", "C"),  # open, and the truth is a letter
    row("7", "E", "1 and 3", "1 and 5", "2 and 4", "2 and 4", "3 and 5"),
    row("8", "(3,-4)", subject="analytic geometry"),
    row("9", "1"),
    row("10", "69{degrees}"),
]


@pytest.fixture
def items(tmp_path):
    (tmp_path / "images").mkdir()
    for found in ROWS:
        (tmp_path / found["image"]).write_bytes(png())
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "test.jsonl", ROWS)
    return by_id(read(tmp_path, "test"))


def test_rows_become_questions(items):
    assert items["1"].row.question == "Which number is it?\n<image1>" and items["1"].choices == ()
    assert items["2"].row.question == items["1"].row.question and items["2"].choices == tuple("ABCDE")
    assert items["3"].row.question.endswith(
        "\n(A) $20 \\mathrm{~cm}$\n(B) $21 \\mathrm{~cm}$\n(C) $\\frac{45}{2} \\mathrm{~cm}$"
    )
    assert dict(items["3"].tags) == {"level": "2", "subject": "logic"}
    assert str(items["1"].row.images[0]).endswith("images/1.jpg")


GRADES = [
    ("1", "<think>…</think>\\boxed{60}", 1),
    ("1", "<think>…\\boxed{60}", 0),
    ("1", "The answer is 60.", 1),
    ("1", "\\boxed{6}", 0),
    ("1", "So 6 · 10 = 60", 1),
    ("1", "", 0),
    ("2", "\\boxed{A}", 1),
    ("2", "\\boxed{(a)}", 1),
    ("2", "A bike is shown.", 0),
    ("2", "\\boxed{F}", 0),
    ("3", "\\boxed{B}", 1),
    ("3", "\\boxed{21 \\text{ cm}}", 1),
    ("3", "\\boxed{21}", 1),
    ("3", "\\boxed{22.5}", 0),  # C
    ("3", "\\boxed{20}", 0),
    ("4", "\\boxed{4\\pi + 6\\sqrt{3}}", 1),
    ("4", "\\boxed{6\\sqrt{3}}", 0),
    ("6", "\\boxed{C}", 1),
    ("6", "\\boxed{D}", 0),
    ("7", "\\boxed{3 and 5}", 1),
    ("7", "\\boxed{2 and 4}", 0),
    ("8", "\\boxed{(3, -4)}", 1),
    ("8", "\\boxed{(-3, 4)}", 0),
    ("10", "\\boxed{69^\\circ}", 1),
]


@pytest.mark.parametrize(("name", "text", "score"), GRADES)
def test_grades(items, name, text, score):
    assert grade(text, pickle.loads(pickle.dumps(items[name]))).score == score


def test_numbers_are_not_rounded_to_two_decimals(items):
    assert grade("\\boxed{1.004}", items["9"]).score == 0
    assert grade("\\boxed{1.0}", items["9"]).score == 1


def test_a_broken_truth_is_mended(items):
    assert items["5"].truth == "\\frac{36}{13}" and grade("\\boxed{\\frac{36}{13}}", items["5"]).score == 1


def test_nothing_is_evaluated(items, tmp_path):
    for code in (f"open({str(tmp_path / 'made')!r}, 'w')", "().__class__", "60 if True else 0"):
        assert grade(f"\\boxed{{{code}}}", items["1"]).score == 0
    assert not (tmp_path / "made").exists()


def test_parquet_and_vlmevalkits_table(tmp_path):
    rows = [found | {"decoded_image": {"bytes": png(4), "path": None}} for found in ROWS[:3]]
    write_parquet(tmp_path / "testmini-00000-of-00001.parquet", rows)
    assert [item.truth for item in read(tmp_path, "testmini")] == ["60", "A", "B"]
    table = [
        {"index": found["id"], "question": found["question"], "choices": str(found["options"]), "answer": found["answer"]}
        | {"category": found["subject"], "image": png_base64(4)}
        for found in ROWS[:3]
    ]
    items = read(write_tsv(tmp_path / "MathVision_MINI.tsv", table), "testmini")
    assert [item.truth for item in items] == ["60", "A", "B"] and items[2].tags == {"category": "logic"}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"answer": "F", "options": list("ABCDE")}, "key 'answer': expected one of the options A to E, found 'F'"),
        ({"answer": ""}, "key 'answer': expected a text or a number, found ''"),
        ({"options": "many"}, "key 'options': expected a list, found 'many'"),
        ({"level": 6}, "key 'level': expected one of '1', '2', '3', '4', '5', found '6'"),
        ({"level": "high"}, "key 'level': expected a whole number, found 'high'"),
        ({"image": "images/none.jpg"}, "key 'image': 'images/none.jpg' is not an image file below"),
    ],
)
def test_wrong_rows_are_told(tmp_path, changed, told):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.jpg").write_bytes(png())
    write_jsonl(tmp_path / "test.jsonl", [row("1", "60") | changed])
    with pytest.raises(RowError) as error:
        read(tmp_path, "test")
    assert "test.jsonl, row 1" in str(error.value) and told in str(error.value)


def test_missing_columns_broken_pictures_and_double_ids_are_told(tmp_path):
    (tmp_path / "1.jpg").write_bytes(png())
    (tmp_path / "2.jpg").write_bytes(b"no picture")
    without = row("1", "60", image="1.jpg")
    del without["options"]
    rows = [without, row("2", "60", image="2.jpg"), row("3", "1", image="1.jpg"), row("3", "1", image="1.jpg")]
    write_jsonl(tmp_path / "test.jsonl", rows)
    with pytest.raises(RowError, match="(?s)3 of 4.*key 'choices': the key is missing.*cannot be decoded.*is also row 3"):
        read(tmp_path, "test")


def test_metrics_by_hand(items):
    chosen = [items[name] for name in ("1", "2", "3", "4")]
    found = BENCHMARKS["mathvision"].metrics(chosen, [1.0, 0.0, 0.5, 1.0])
    assert next(iter(found)) == "accuracy" and found["accuracy"] == 0.625
    assert (found["level/1"], found["level/2"], found["level/5"]) == (0, 0.75, 1)
    assert found["subject/arithmetic"] == 2 / 3 and found["subject/logic"] == 0.5


def test_it_is_registered():
    assert benchmark("mathvision").grade is grade
