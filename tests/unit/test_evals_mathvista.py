"""MathVista: its published file, Hugging Face's parquet and VLMEvalKit's table; grades by hand; metrics by hand."""

from __future__ import annotations

import pickle

import pytest

from octopus_mcore.data.tables import RowError
from octopus_mcore.evals.mathvista import grade, metrics, read
from octopus_mcore.evals.registry import benchmark
from tests.benchmark_files import by_id, png, png_base64, write_json, write_parquet, write_tsv


def problem(pid: str, **changed) -> dict:
    """A row of `testmini.json`, an integer question unless changed."""
    metadata = {"split": "testmini", "language": "english", "source": "IQTest", "category": "math-targeted-vqa"}
    metadata |= {"task": "figure question answering", "context": "puzzle test", "grade": "elementary school"}
    row = {"question": "How many?", "image": f"images/{pid}.jpg", "choices": None, "unit": None, "precision": None}
    row |= {"answer": "4", "question_type": "free_form", "answer_type": "integer", "pid": pid}
    return row | {"metadata": metadata | {"skills": ["logical reasoning"]}} | changed


ROWS = [
    problem("1"),
    problem("2", answer="1.2", answer_type="float", precision=1, unit="m"),
    problem("3", answer="145°", question_type="multi_choice", answer_type="text", choices=["135°", "140°", "145°", "150°"]),
    problem("4", answer="[2014, 2016]", answer_type="list"),
    problem("5", answer="18", question_type="multi_choice", answer_type="text", choices=["9", "12", "18", "18"]),
    problem("6", answer="2.50", answer_type="float", precision=2),
    problem("7", answer="-3"),
]


@pytest.fixture
def items(tmp_path):
    (tmp_path / "images").mkdir()
    for row in ROWS:
        (tmp_path / row["image"]).write_bytes(png())
    write_json(tmp_path / "testmini.json", {row["pid"]: row for row in ROWS})
    return by_id(read(tmp_path, "testmini"))


def test_questions_are_the_published_queries(items):
    integer, decimal, choice = (items[pid].row for pid in "123")
    assert integer.question == (
        "Hint: Please answer the question requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end.\n"
        "Question: How many?"
    )
    assert decimal.question.endswith("1.2, 1.3, 1.4, at the end.\nQuestion: How many? (Unit: m)")
    assert choice.question.endswith("\nChoices:\n(A) 135°\n(B) 140°\n(C) 145°\n(D) 150°")
    assert items["3"].truth == "C" and items["3"].choices[2] == "145°"
    assert items["1"].tags["source"] == "IQTest" and items["1"].facts["skills"] == ("logical reasoning",)
    assert str(integer.images[0]).endswith("images/1.jpg")


GRADES = [
    ("1", "<think>3 + 1</think>\n\n\\boxed{4}", 1),
    ("1", "<think>The answer is 4", 0),
    ("1", "The answer is 5.", 0),
    ("1", "There are 3 red ones and one blue, so there are 4.", 1),
    ("1", "\\boxed{4.0}", 1),
    ("1", "\\boxed{4 \\text{ apples}}", 1),
    ("1", "\\boxed{3 + 1 = 4}", 1),
    ("1", "\\boxed{3, 4}", 0),  # two numbers
    ("1", "\\boxed{}", 0),
    ("1", "", 0),
    ("7", "\\boxed{-3}", 1),
    ("7", "\\boxed{3}", 0),
    ("2", "\\boxed{1.2}", 1),
    ("2", "\\boxed{1.23\\text{ m}}", 1),  # rounds to 1.2
    ("2", "\\boxed{1.26}", 0),
    ("2", "\\boxed{\\frac{6}{5}}", 1),
    ("2", "d \\approx 1.2 m, so \\boxed{d \\approx 1.2}", 1),
    ("6", "\\boxed{2.5}", 1),
    ("6", "\\boxed{2.51}", 0),
    ("3", "\\boxed{C}", 1),
    ("3", "\\boxed{\\text{(C)}}", 1),
    ("3", "The answer is (C) 145°.", 1),
    ("3", "\\boxed{145°}", 1),
    ("3", "\\boxed{B}", 0),
    ("3", "It is either B or C.", 0),
    ("3", "I cannot tell.", 0),
    ("4", "\\boxed{[2014, 2016]}", 1),
    ("4", "Answer: [2014,2016]", 1),
    ("4", "between 2014 and 2016", 1),
    ("4", "\\boxed{[2016, 2014]}", 0),
    ("4", "\\boxed{[2014]}", 0),
    ("5", "\\boxed{D}", 1),
]


@pytest.mark.parametrize(("pid", "text", "score"), GRADES)
def test_grades(items, pid, text, score):
    assert grade(text, pickle.loads(pickle.dumps(items[pid]))).score == score


def test_integers_are_not_cut(items):
    assert grade("\\boxed{4.7}", items["1"]).score == 0


def test_what_names_no_option_chooses_none(items):
    assert grade("I'm sorry, I can't help with that.", items["3"]).score == 0
    assert grade("\\boxed{145 or so}", items["5"]).score == 0


def test_options_with_the_same_text_are_all_right(items):
    assert [grade(f"\\boxed{{{answer}}}", items["5"]).score for answer in ("C", "D", "18", "B")] == [1, 1, 1, 0]


def test_parquet_with_pictures_inside(tmp_path):
    rows = [row | {"decoded_image": {"bytes": png(3), "path": None}, "choices": row["choices"] or []} for row in ROWS]
    write_parquet(tmp_path / "testmini-00000-of-00001-725687bf7a18d64b.parquet", rows)
    items = by_id(read(tmp_path, "testmini"))
    assert len(items) == len(ROWS) and items["3"].row.images == (png(3),) and items["3"].choices[0] == "135°"


def test_vlmevalkits_table(tmp_path):
    """It holds the whole query as the question, `answer_option`, and the metadata as columns."""
    row = {"index": 5, "question": "Hint: Please answer …\nQuestion: Which?\nChoices:\n(A) 1\n(B) 2", "answer": "2"}
    row |= {"choices": "['1', '2']", "answer_option": "B", "question_type": "multi_choice", "answer_type": "text"}
    row |= {"task": "math word problem", "skills": "['arithmetic reasoning']", "image": png_base64(), "precision": ""}
    (item,) = read(write_tsv(tmp_path / "MathVista_MINI.tsv", [row]), "testmini")
    assert item.row.uid == "mathvista:5" and item.row.question == row["question"] and item.truth == "B"
    assert item.tags["task"] == "math word problem" and item.facts["skills"] == ("arithmetic reasoning",)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"question_type": "essay"}, "key 'question_type': expected one of 'multi_choice', 'free_form', found 'essay'"),
        ({"answer_type": "text"}, "key 'answer_type': expected one of 'integer', 'float', 'list', found 'text'"),
        ({"answer_type": "float"}, "key 'precision': expected 1 or 2 for an answer of type float, found None"),
        ({"answer": ""}, "key 'answer': expected the truth, found none"),
        ({"answer": "four"}, "key 'answer': expected a number, found 'four'"),
        ({"question_type": "multi_choice", "answer_type": "text"}, "key 'choices': a question of type multi_choice needs"),
        (
            {"question_type": "multi_choice", "answer_type": "text", "choices": ["3", "5"]},
            "key 'answer': expected one of the options",
        ),
        ({"image": "images/none.jpg"}, "key 'image': 'images/none.jpg' is not an image file below"),
        ({"question": None}, "key 'question': expected a text or a number, found None"),
    ],
)
def test_wrong_rows_are_told(tmp_path, changed, told):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.jpg").write_bytes(png())
    write_json(tmp_path / "testmini.json", {"1": problem("1") | changed})
    with pytest.raises(RowError) as error:
        read(tmp_path, "testmini")
    assert "testmini.json, row 1" in str(error.value) and told in str(error.value)


def test_a_missing_column_and_a_broken_picture_are_told(tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"no picture")
    row = problem("1", image="1.jpg")
    del row["question_type"]
    write_json(tmp_path / "testmini.json", [row, problem("2", image="1.jpg"), problem("2", image="1.jpg")])
    with pytest.raises(RowError, match="(?s)3 of 3 rows.*key 'question_type': the key is missing.*cannot be decoded"):
        read(tmp_path, "testmini")


def test_double_ids_are_told(tmp_path):
    (tmp_path / "1.png").write_bytes(png())
    write_json(tmp_path / "testmini.json", [problem("1", image="1.png"), problem("1", image="1.png")])
    with pytest.raises(RowError, match="row 2: 'mathvista:1' is also row 1"):
        read(tmp_path, "testmini")


def test_metrics_by_hand(items):
    chosen = [items[pid] for pid in "123"]
    found = metrics(chosen, [1.0, 0.5, 0.0])
    assert next(iter(found)) == "accuracy" and found["accuracy"] == 0.5
    assert found["question_type/free_form"] == 0.75 and found["question_type/multi_choice"] == 0
    assert found["answer_type/float"] == 0.5 and found["source/IQTest"] == 0.5 and found["skills/logical reasoning"] == 0.5


def test_it_is_registered():
    assert benchmark("mathvista").read is read
