"""OCRBench: its published file, Hugging Face's parquet and VLMEvalKit's table; grades by hand; metrics by hand."""

from __future__ import annotations

import pickle

import pytest

from octopus_mcore.data.tables import RowError
from octopus_mcore.evals.ocrbench import CATEGORIES, FORMULAS, grade, metrics, read
from octopus_mcore.evals.registry import benchmark
from tests.benchmark_files import by_id, png, png_base64, write_json, write_parquet, write_tsv


def row(number: int, answers, category: str = "Regular Text Recognition", **changed) -> dict:
    """A row of `OCRBench.json`; ids are unique in their dataset only."""
    found = {"dataset_name": "IIIT5K", "id": number, "image_path": f"IIIT5K/test/{number}.png"}
    return found | {"question": "what is written in the image?", "answers": answers, "type": category} | changed


FORMULA = ["3 2 + 5 = \\boxed { 3 } \\boxed { 7 }\n", "3 2 + 5 = \\boxed3 \\boxed7\n"]

ROWS = [
    row(1, "CENTRE"),
    row(2, ["Airfrance", "Air france"], "Scene Text-centric VQA"),
    row(3, FORMULA, FORMULAS),
    row(4, "$506 million", "Doc-oriented VQA"),
    row(5, "04 APR 2018", "Key Information Extraction"),
    row(1, "5743", "Digit String Recognition", dataset_name="ORAND"),
]


def write(folder, rows=ROWS):
    (folder / "OCRBench").mkdir()
    (folder / "OCRBench_Images/IIIT5K/test").mkdir(parents=True)
    for number in range(1, 6):
        (folder / f"OCRBench_Images/IIIT5K/test/{number}.png").write_bytes(png(number))
    write_json(folder / "OCRBench" / "OCRBench.json", rows)
    return folder


@pytest.fixture
def items(tmp_path):
    return by_id(read(write(tmp_path), "test"))


def test_rows_become_questions(items):
    assert list(items) == ["IIIT5K/1", "IIIT5K/2", "IIIT5K/3", "IIIT5K/4", "IIIT5K/5", "ORAND/1"]
    item = items["IIIT5K/2"]
    assert item.row.question == "what is written in the image?" and item.facts["answers"] == ("Airfrance", "Air france")
    assert str(item.row.images[0]).endswith("OCRBench_Images/IIIT5K/test/2.png")
    assert dict(items["ORAND/1"].tags) == {"component": "Text Recognition", "category": "Digit String Recognition"}


GRADES = [
    ("IIIT5K/1", "CENTRE", 1),
    ("IIIT5K/1", "The text says «Centre».", 1),
    ("IIIT5K/1", "center", 0),
    ("IIIT5K/1", "CEN TRE", 0),
    ("IIIT5K/1", "\\boxed{\\text{CENTRE}}", 1),
    ("IIIT5K/1", "It is CENTRE or CENTER. \\boxed{CENTER}", 0),
    ("IIIT5K/1", "<answer>centre</answer>", 1),
    ("IIIT5K/1", "<think>CENTRE", 0),
    ("IIIT5K/1", "", 0),
    ("IIIT5K/1", "<think>x</think>", 0),
    ("IIIT5K/1", "\\boxed{}", 0),
    ("IIIT5K/2", "Air France", 1),
    ("IIIT5K/2", "AIRFRANCE", 1),
    ("IIIT5K/2", "Air-France", 0),
    ("IIIT5K/3", "$$32+5=\\boxed{3}\\boxed{7}$$", 1),
    ("IIIT5K/3", "32 + 5 = \\boxed3\\boxed7", 1),
    ("IIIT5K/3", "32 + 5 = 37", 0),
    ("IIIT5K/4", "It was $506 MILLION.", 1),
    ("IIIT5K/4", "$506 thousand", 0),
    ("IIIT5K/5", "04\nAPR\n2018", 1),
    ("IIIT5K/5", "2018-04-04", 0),
    ("ORAND/1", "15743", 1),  # as published: the answer is contained
    ("ORAND/1", "5 7 4 3", 0),
]


@pytest.mark.parametrize(("name", "text", "score"), GRADES)
def test_grades(items, name, text, score):
    assert grade(text, pickle.loads(pickle.dumps(items[name]))).score == score


def test_a_thought_is_no_answer(items):
    assert grade("<think>CENTRE? No.</think>CENTER", items["IIIT5K/1"]).score == 0
    assert grade("<think>CENTER? No.</think>CENTRE", items["IIIT5K/1"]).score == 1


def test_parquet(tmp_path):
    (tmp_path / "data").mkdir()
    rows = [
        {"dataset": found["dataset_name"], "question": found["question"], "question_type": found["type"]}
        | {"answer": found["answers"] if isinstance(found["answers"], list) else [found["answers"]]}
        | {"image": {"bytes": png(7), "path": None}}
        for found in ROWS
    ]
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows)
    items = read(tmp_path, "test")
    assert [item.row.uid for item in items[:2]] == ["ocrbench:1", "ocrbench:2"]
    assert items[1].facts["answers"] == ("Airfrance", "Air france") and items[1].row.images == (png(7),)


def test_vlmevalkits_table(tmp_path):
    """Its `answer` is a list as text; nothing of it is evaluated."""
    rows = [
        {"index": 3, "image": png_base64(), "question": "What?", "answer": "['Air', 'air']", "category": CATEGORIES[6]},
        {"index": 4, "image": png_base64(), "question": "What?", "answer": "open('made', 'w')", "category": CATEGORIES[0]},
    ]
    items = read(write_tsv(tmp_path / "OCRBench.tsv", rows), "test")
    assert items[0].row.uid == "ocrbench:3" and items[0].facts["answers"] == ("Air", "air")
    assert items[1].facts["answers"] == ("open('made', 'w')",)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"type": "Poetry"}, "key 'type': expected one of 'Regular Text Recognition'"),
        ({"answers": []}, "key 'answers': expected an answer or a list of answers, none empty"),
        ({"answers": ["a", " "]}, "key 'answers': expected an answer or a list of answers, none empty"),
        ({"answers": None}, "key 'answers': expected an answer"),
        ({"question": ""}, "key 'question': expected a text"),
        ({"image_path": "IIIT5K/none.png"}, "key 'image_path': 'IIIT5K/none.png' is not an image file below"),
    ],
)
def test_wrong_rows_are_told(tmp_path, changed, told):
    with pytest.raises(RowError) as error:
        read(write(tmp_path, [row(1, "CENTRE") | changed]), "test")
    assert "OCRBench.json, row 1" in str(error.value) and told in str(error.value)


def test_missing_columns_broken_pictures_and_double_ids_are_told(tmp_path):
    without = row(1, "CENTRE")
    del without["type"]
    folder = write(tmp_path, [without, row(2, "x"), row(2, "x"), row(5, "x")])
    (folder / "OCRBench_Images/IIIT5K/test/5.png").write_bytes(b"no picture")
    with pytest.raises(RowError, match="(?s)3 of 4.*key 'question_type': the key is missing.*is also row 2.*cannot be decoded"):
        read(folder, "test")


def test_metrics_by_hand(items):
    found = metrics(list(items.values()), [1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    assert next(iter(found)) == "score" and found["score"] == 500 and found["accuracy"] == 0.5
    assert found["component/Text Recognition"] == 0.5 and found["category/Digit String Recognition"] == 0
    assert found[f"component/{FORMULAS}"] == found[f"category/{FORMULAS}"] == 1


def test_it_is_registered():
    assert benchmark("ocrbench").read is read
