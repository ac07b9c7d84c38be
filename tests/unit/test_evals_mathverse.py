"""MathVerse: its published files, Hugging Face's parquet and VLMEvalKit's table; grades by hand; metrics by hand."""

from __future__ import annotations

import math
import pickle

import pytest

from octopus_mcore.data.tables import RowError
from octopus_mcore.evals.mathverse import VERSIONS, grade, metrics, read
from octopus_mcore.evals.registry import benchmark
from tests.benchmark_files import by_id, png, png_base64, write_json, write_parquet, write_tsv

CHOICES = "Choices:\nA:2\nB:2√3\nC:√3\nD:2√2"


def row(index: int, problem: int = 1, **changed) -> dict:
    """A row of `testmini.json`, of a choice question in the version Text Dominant unless changed."""
    found = {"sample_index": str(index), "problem_index": str(problem), "problem_version": "Text Dominant"}
    found |= {"question": f"The length of BC is ()\n{CHOICES}", "image": "images_version_1-4/image_1.png", "answer": "C"}
    found |= {"question_type": "multi-choice", "query_wo": "Please directly answer …", "query_cot": "Please first conduct …"}
    found["metadata"] = {"split": "testmini", "source": "GeoQA", "subject": "Plane Geometry", "subfield": "Length"}
    return found | changed


def open_row(index: int, answer: str, **changed) -> dict:
    return row(index, 100 + index, question="Find L.", question_type="free-form", answer=answer, **changed)


TRUE_FALSE = "True or false?\nChoice:\nA. True\nB. False"

ROWS = [
    row(1),
    row(2, problem_version="Vision Only", question="", image="images_version_6/image_1.png"),
    row(3, 3, problem_version="Vision Only", question="", answer="E"),  # no version tells its options
    row(4, 4, answer="(B)"),
    row(5, 5, answer="False", question=TRUE_FALSE),
    row(6, 6, answer="C\nD"),
    row(7, 7, answer="090^\\circ T", question="Bearing?\nChoices:\nA:090^\\circ T\nB:180^\\circ T"),
    open_row(8, "Volume $=33.51 \\mathrm{~cm}^{3}$"),
    open_row(9, "14", problem_version="Vision Dominant"),
    open_row(10, "domain: [-4, 0) and range: (-3, 1]", problem_version="Vision Intensive"),
]


def write(folder, rows=ROWS, name="testmini.json"):
    for name_, colour in (("images_version_1-4", 0), ("images_version_6", 9)):
        (folder / "images" / name_).mkdir(parents=True)
        (folder / "images" / name_ / "image_1.png").write_bytes(png(colour))
    write_json(folder / name, rows)
    return folder


@pytest.fixture
def items(tmp_path):
    return by_id(read(write(tmp_path), "testmini"))


def test_rows_become_questions(items):
    first, vision = items["1"], items["2"]
    assert first.row.question == "Please first conduct …" and first.choices == ("2", "2√3", "√3", "2√2")
    assert vision.choices == first.choices  # told by another version of the problem
    assert str(vision.row.images[0]).endswith("images/images_version_6/image_1.png")
    assert items["3"].choices == ()
    assert dict(items["8"].tags) == {
        "problem_version": "Text Dominant",
        "subject": "Plane Geometry",
        "subfield": "Length",
        "question_type": "free-form",
    }


def test_truths_become_letters(items):
    assert [items[str(index)].truth for index in (4, 5, 6, 7)] == ["B", "B", "CD", "A"]
    assert grade("\\boxed{B}", items["4"]).score == grade("\\boxed{False}", items["5"]).score == 1


GRADES = [
    ("1", "<think>…</think>\\boxed{C}", 1),
    ("1", "<think>…\\boxed{C}", 0),
    ("1", "\\boxed{\\sqrt{3}}", 1),
    ("1", "\\boxed{√3}", 1),
    ("1", "\\boxed{2}", 0),
    ("1", "C:√3", 1),
    ("1", "The correct option is (C).", 1),
    ("1", "B or C", 0),
    ("2", "The answer is C.", 1),
    ("3", "\\boxed{E}", 1),
    ("3", "\\boxed{e}", 1),
    ("3", "\\boxed{D}", 0),
    ("3", "\\boxed{12}", 0),
    ("5", "\\boxed{False}", 1),
    ("5", "\\boxed{True}", 0),
    ("6", "\\boxed{C, D}", 1),
    ("6", "\\boxed{\\text{D and C}}", 1),
    ("6", "\\boxed{C}", 0),
    ("7", "\\boxed{090^\\circ T}", 1),
    ("8", "\\boxed{33.51}", 1),
    ("8", "\\boxed{33.51 \\text{ cm}^3}", 1),
    ("8", "\\boxed{33.5}", 0),
    ("9", "L ≈ 14.3, rounded down it is 14 cm.", 1),
    ("9", "\\boxed{14.3}", 0),
    ("9", "", 0),
    ("10", "\\boxed{\\text{domain: } [-4,0) \\text{ and range: } (-3,1]}", 1),
    ("10", "\\boxed{(-4, 1]}", 0),
]


@pytest.mark.parametrize(("index", "text", "score"), GRADES)
def test_grades(items, index, text, score):
    assert grade(text, pickle.loads(pickle.dumps(items[index]))).score == score


def test_text_only(tmp_path):
    rows = [row(1, problem_version="Text Only", image=""), open_row(2, "7", problem_version="Text Only", image="")]
    items = read(write(tmp_path, rows, "testmini_text_only.json"), "testmini_text_only")
    assert [item.row.images for item in items] == [(), ()]
    found = metrics(items, [1.0, 0.0])
    assert found["accuracy"] == 0.5 and "vision_mean" not in found


def test_parquet_and_vlmevalkits_table(tmp_path):
    rows = [changed | {"image": {"bytes": png(4), "path": "image_1.png"}} for changed in ROWS]
    write_parquet(tmp_path / "testmini.parquet", rows)
    assert by_id(read(tmp_path, "testmini"))["5"].truth == "B"
    table = [
        changed | {"index": number, "image": png_base64(4), "metadata": str(changed["metadata"])}
        for number, changed in enumerate(ROWS)
    ]
    (tmp_path / "kit").mkdir()
    items = read(write_tsv(tmp_path / "kit" / "MathVerse_MINIV.tsv", table), "testmini")
    assert len(items) == len(ROWS) and items[0].row.images == (png(4),) and items[0].tags["subject"] == "Plane Geometry"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"problem_version": "Vision"}, "key 'problem_version': expected one of 'Text Dominant'"),
        ({"question_type": "essay"}, "key 'question_type': expected one of 'multi-choice', 'free-form', found 'essay'"),
        ({"answer": "E"}, "key 'answer': expected letters of options (A to D), found 'E'"),
        ({"answer": "seven"}, "key 'answer': expected letters of options"),
        ({"metadata": "none"}, "key 'metadata': expected an object with subject and subfield, found 'none'"),
        ({"image": "nowhere.png"}, "key 'image': 'nowhere.png' is not an image file below"),
        ({"query_cot": ""}, "key 'query_cot': expected a text"),
    ],
)
def test_wrong_rows_are_told(tmp_path, changed, told):
    with pytest.raises(RowError) as error:
        read(write(tmp_path, [row(1, **changed)]), "testmini")
    assert "testmini.json, row 1" in str(error.value) and told in str(error.value)


def test_missing_columns_broken_pictures_and_double_ids_are_told(tmp_path):
    without = row(1)
    del without["problem_version"]
    folder = write(tmp_path, [without, row(2), row(2), row(3, image="broken.png")])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(
        RowError, match="(?s)3 of 4.*key 'problem_version': the key is missing.*is also row 2.*cannot be decoded"
    ):
        read(folder, "testmini")


def test_metrics_by_hand(tmp_path):
    """Two problems in five versions each; the mean over the vision versions is (1/2 + 2/2 + 0/2) / 3."""
    rows = [
        row(2 * place + problem, problem, problem_version=version)
        for place, version in enumerate(VERSIONS)
        for problem in (0, 1)
    ]
    items = read(write(tmp_path, rows), "testmini")
    scores = [0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    found = metrics(items, scores)
    assert next(iter(found)) == "vision_mean" and found["vision_mean"] == 0.5
    assert found["accuracy"] == 0.6 and found["problem_version/Text Dominant"] == 0.5
    assert found["problem_version/Vision Intensive"] == 0.5 and found["problem_version/Vision Only"] == 0
    assert found["subject/Plane Geometry"] == 0.6
    assert math.isnan(metrics(items[:8], scores[:8])["vision_mean"])  # Vision Only is missing


def test_it_is_registered():
    assert benchmark("mathverse").metrics is metrics
