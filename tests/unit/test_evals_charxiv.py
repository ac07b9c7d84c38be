"""CharXiv's reasoning questions: its published file, Hugging Face's parquet and VLMEvalKit's table; grades and metrics by
hand."""

from __future__ import annotations

import pickle

import pytest

from octopus_mcore.data.tables import RowError
from octopus_mcore.evals.charxiv import BENCHMARKS, grade, read, same_terms, same_words
from octopus_mcore.evals.registry import benchmark
from tests.benchmark_files import by_id, png, png_base64, write_json, write_parquet, write_tsv


def row(figure: int, answer: str, kind: int = 1, **changed) -> dict:
    """A row of `reasoning_val.json`."""
    return {"figure_id": figure, "query": "Which one?", "answer": answer, "inst_category": kind, "qa_source": 3} | changed


ROWS = [
    row(0, "Joint-CNN"),
    row(2, "lambda_L = 0.13", qa_source=1),
    row(3, "(b) OPT", qa_source=2),
    row(5, "(c)"),
    row(7, "MomentumLSTM, SRLSTM"),
    row(10, "Decreasing", 2),
    row(11, "Yes", 2),
    row(12, "10^-2", 3),
    row(13, "2006, 2008", 3),
    row(14, "9.17", 4),
    row(15, "4", 4),
]


def write(folder, rows=ROWS):
    (folder / "data").mkdir()
    (folder / "images").mkdir()
    for found in rows:
        (folder / "images" / f"{found.get('figure_id')}.jpg").write_bytes(png())
    write_json(
        folder / "data/reasoning_val.json", {str(found.get("figure_id", number)): found for number, found in enumerate(rows)}
    )
    figures = {str(found.get("figure_id")): {"category": "cs", "year": "20", "title": "…"} for found in rows}
    write_json(folder / "data/image_metadata_val.json", figures)
    return folder


@pytest.fixture
def items(tmp_path):
    return by_id(read(write(tmp_path), "val"))


def test_rows_become_questions(items):
    assert items["0"].row.question.startswith("Which one?\n* Your final answer must be grounded to some text")
    assert items["10"].row.question.startswith("Which one?\n* If there are options in the question")
    assert items["12"].row.question.startswith("Which one?\n* Your final answer must be grounded to a number")
    assert items["14"].row.question == "Which one?\n* Your final answer must be a number with 2 decimal places."
    assert items["15"].row.question == "Which one?\n* Your final answer must be an exact integer."
    assert str(items["0"].row.images[0]).endswith("images/0.jpg")
    assert dict(items["2"].tags) == {"answer_type": "text-in-chart", "source": "GPT-sourced", "subject": "cs", "year": "20"}


GRADES = [
    ("0", "<think>…</think>\\boxed{Joint-CNN}", 1),
    ("0", "\\boxed{\\text{joint-CNN}}", 1),
    ("0", "The answer is Joint-CNN.", 1),
    ("0", "\\boxed{Ft-CNN}", 0),
    ("0", "<think>Joint-CNN", 0),
    ("2", "\\boxed{\\lambda_L = 0.13}", 1),
    ("2", "λ_L=0.13", 1),
    ("2", "\\boxed{\\lambda_L = 0.3}", 0),
    ("3", "\\boxed{OPT}", 1),
    ("3", "\\boxed{(c) OPT}", 0),
    ("5", "\\boxed{c}", 1),
    ("5", "Answer: subplot (c)", 1),
    ("5", "\\boxed{d}", 0),
    ("7", "\\boxed{SRLSTM and MomentumLSTM}", 1),
    ("7", "\\boxed{SRLSTM}", 0),
    ("10", "\\boxed{It decreases.}", 1),
    ("10", "\\boxed{increasing}", 0),
    ("11", "Yes, it does.", 1),
    ("11", "\\boxed{No}", 0),
    ("12", "\\boxed{0.01}", 1),
    ("12", "\\boxed{1\\times 10^{-2}}", 1),
    ("12", "\\boxed{0.012}", 0),
    ("13", "\\boxed{2008 and 2006}", 1),
    ("13", "\\boxed{2006}", 0),
    ("14", "\\boxed{9.170}", 1),
    ("14", "\\boxed{9.2}", 0),
    ("15", "There are 3 red and 1 blue, so 4 in total", 1),
    ("15", "", 0),
]


@pytest.mark.parametrize(("name", "text", "score"), GRADES)
def test_grades(items, name, text, score):
    assert grade(text, pickle.loads(pickle.dumps(items[name]))).score == score


@pytest.mark.parametrize(
    ("answer", "truth", "same"),
    [
        ("$R^2_{t,h,v,m}$", "R^2_t,h,v,m", True),  # the published prompt's own example
        ("ACC+", "ACC", False),
        ("P=101", "P-101", False),
        ("\\mu_{opt} = 0.5", "µ_opt = 0.5", True),
        ("CIFAR-10, IID/ATOMO", "CIFAR-10, IID/ATOMO", True),
        ("(a) X, (b) Y", "Y, X", True),
    ],
)
def test_terms(answer, truth, same):
    assert same_terms(answer, truth) is same


@pytest.mark.parametrize(
    ("answer", "truth", "same"),
    [
        ("increasing then decreasing", "increase then decrease", True),
        ("decreasing then increasing", "increasing then decreasing", False),
        ("[50,100]", "[50, 100]", True),
        ("-2", "2", False),
        ("the blue curve", "Blue curve", True),
    ],
)
def test_words(answer, truth, same):
    assert same_words(answer, truth) is same


def test_parquet_and_vlmevalkits_table(tmp_path):
    rows = [
        {"reasoning_q": found["query"], "reasoning_a": found["answer"], "reasoning_a_type": found["inst_category"]}
        | {"reasoning_q_source": 1, "category": "math", "year": "22", "figure_path": f"images/{found['figure_id']}.jpg"}
        | {"image": {"bytes": png(2), "path": None}}
        for found in ROWS
    ]
    write_parquet(tmp_path / "val.parquet", rows)
    items = read(tmp_path, "val")
    assert items[-1].row.question.endswith("an exact integer.") and items[0].tags["subject"] == "math"
    table = [
        {"index": found["figure_id"], "question": "Which one?\n    * Your …", "answer": found["answer"], "image": png_base64()}
        | {"inst_category": found["inst_category"]}
        for found in ROWS
    ]
    (tmp_path / "kit").mkdir()
    items = read(write_tsv(tmp_path / "kit" / "CharXiv_reasoning_val.tsv", table), "val")
    assert items[0].row.question == "Which one?\n    * Your …" and items[-1].tags["answer_type"] == "number-in-general"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"inst_category": 5}, "key 'inst_category': expected one of '1', '2', '3', '4', found '5'"),
        ({"inst_category": "text"}, "key 'inst_category': expected a whole number, found 'text'"),
        ({"inst_category": 4}, "key 'answer': expected a number for answers of type number-in-general, found 'Joint-CNN'"),
        ({"answer": ""}, "key 'answer': expected a text"),
        ({"qa_source": 9}, "key 'qa_source': expected one of '1', '2', '3', found '9'"),
        ({"query": None}, "key 'query': expected a text"),
    ],
)
def test_wrong_rows_are_told(tmp_path, changed, told):
    with pytest.raises(RowError) as error:
        read(write(tmp_path, [row(0, "Joint-CNN") | changed]), "val")
    assert "reasoning_val.json, row 1" in str(error.value) and told in str(error.value)


def test_missing_columns_broken_pictures_and_double_ids_are_told(tmp_path):
    without = row(1, "x")
    del without["inst_category"]
    folder = write(tmp_path, [row(0, "x"), without, row(2, "x"), row(3, "x")])
    (folder / "images/2.jpg").write_bytes(b"no picture")
    (folder / "images/3.jpg").unlink()
    with pytest.raises(
        RowError, match="(?s)3 of 4.*key 'inst_category': the key is missing.*cannot be decoded.*'3.jpg' is not"
    ):
        read(folder, "val")
    write_json(folder / "data/reasoning_val.json", [row(0, "x"), row(0, "y")])
    with pytest.raises(RowError, match="'charxiv:0' is also row 1"):
        read(folder, "val")


def test_metrics_by_hand(items):
    found = BENCHMARKS["charxiv"].metrics(list(items.values()), [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.5])
    assert next(iter(found)) == "accuracy" and found["accuracy"] == 6.5 / 11
    assert found["answer_type/text-in-chart"] == 3 / 5 and found["answer_type/text-in-general"] == 1
    assert found["answer_type/number-in-chart"] == 0 and found["answer_type/number-in-general"] == 0.75
    assert found["source/GPT-sourced"] == 0 and found["subject/cs"] == found["year/20"] == found["accuracy"]


def test_it_is_registered():
    assert benchmark("charxiv").grade is grade
