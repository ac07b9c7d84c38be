"""CV-Bench: the published files in three layouts, options graded by hand, the official average."""

from pathlib import Path

import pytest

from octopus_mcore.data.rows import Row
from octopus_mcore.data.tables import RowError
from octopus_mcore.evals.benchmark import Item
from octopus_mcore.evals.cvbench import metrics, read
from octopus_mcore.evals.grades import by_option as grade
from octopus_mcore.evals.ocean import SUFFIX
from octopus_mcore.evals.registry import benchmark
from tests.benchmark_files import png, write_jsonl, write_parquet

COUNT = "How many organs are in the image? Select from the following choices.\n(A) 3\n(B) 2\n(C) 1\n(D) 0"


def _row(number: int = 0, **changes) -> dict:
    row = {
        "idx": number,
        "type": "2D",
        "task": "Count",
        "image": {"bytes": png(number), "path": None},
        "question": "How many organs are in the image?",
        "choices": ["3", "2", "1", "0"],
        "answer": "(C)",
        "prompt": COUNT,
        "filename": f"img/2D/count/ade20k_{number}.png",
        "source": "ADE20K",
    }
    return {key: value for key, value in (row | changes).items() if value is not ...}


def _depth(number: int) -> dict:
    prompt = "Which object is closer to the camera taking this photo, the table or the lamp?\n(A) table\n(B) lamp"
    changes = {"type": "3D", "task": "Depth", "source": "Omni3D", "choices": ["table", "lamp"], "answer": "(B)"}
    return _row(number, prompt=prompt, **changes)


def _verl_row(number: int, question: str = COUNT, truth: str = "(C)", data: bytes | None = None) -> dict:
    path = f"/elsewhere/images/cvbench/{number}.jpg"
    return {
        "data_source": "cvbench_test",
        "prompt": [{"content": f"<image> {question}\n{SUFFIX}", "role": "user"}],
        "images": [{"bytes": data, "path": path}],
        "reward_model": {"ground_truth": truth, "style": "rule"},
        "extra_info": {"answer": truth, "index": number, "question": question, "reward_func": "acc"},
    }


def test_reads_the_published_files(tmp_path):
    write_parquet(tmp_path / "test_2d.parquet", [_row(0), _row(1, answer="(A)")])
    write_parquet(tmp_path / "test_3d.parquet", [_depth(2)])
    items = benchmark("cvbench").read(tmp_path, "test")
    assert [item.row.uid for item in items] == ["cvbench:0", "cvbench:1", "cvbench:2"]
    assert [item.truth for item in items] == ["C", "A", "B"]
    assert items[0].choices == ("3", "2", "1", "0") and items[0].row.question == COUNT
    assert items[0].tags == {"task": "Count", "type": "2D", "source": "ADE20K"}
    assert items[2].row.images == (png(2),)
    assert len(read(tmp_path / "test_3d.parquet", "test")) == 1


def test_reads_jsonl_beside_its_images(tmp_path):
    file = tmp_path / "img" / "2D" / "count" / "ade20k_5.png"
    file.parent.mkdir(parents=True)
    file.write_bytes(png(5))
    (item,) = read(write_jsonl(tmp_path / "test_2d.jsonl", [_row(5, image=...)]), "test")
    assert Path(item.row.images[0]) == file and item.truth == "C"


def test_reads_ocean_r1s_validation_file(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "619.jpg").write_bytes(png(6))
    questions = [
        "Considering the relative positions of the table and the rug in the image, where is the table?\n(A) left\n(B) right",
        "Estimate the real-world distances between objects in this image. Which is closer?\n(A) books\n(B) television",
        "What is this?\n(A) left\n(B) right",
    ]
    rows = [_verl_row(619), *(_verl_row(number, question, "(B)", png()) for number, question in enumerate(questions))]
    items = read(write_parquet(tmp_path / "cvbench_test.parquet", rows), "test")
    assert [item.tags["task"] for item in items] == ["Count", "Relation", "Distance", "other"]
    assert items[0].row.uid == "cvbench:619" and items[0].choices == ("3", "2", "1", "0") and items[0].truth == "C"
    assert Path(items[0].row.images[0]) == tmp_path / "images" / "619.jpg" and items[1].row.images == (png(),)
    assert SUFFIX not in items[0].row.question
    assert list(metrics(items, [1.0, 0.0, 1.0, 1.0])) == [
        "accuracy",
        "task/Count",
        "task/Distance",
        "task/Relation",
        "task/other",
    ]


def test_reads_the_shards_of_a_hub_folder(tmp_path):
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "test-00000-of-00002.parquet", [_verl_row(0, data=png())])
    write_parquet(tmp_path / "data" / "test-00001-of-00002.parquet", [_verl_row(1, data=png(1))])
    assert [item.row.images for item in read(tmp_path, "test")] == [(png(),), (png(1),)]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"answer": "(E)"}, "expected one of the options A to D, found '(E)'"),
        ({"answer": "2"}, "expected one of the options A to D"),
        ({"answer": ...}, "key 'answer'"),
        ({"choices": []}, "the row has no options"),
        ({"task": "Guess"}, "expected one of 'Count', 'Relation'"),
        ({"source": "elsewhere"}, "'ADE20K', 'COCO', 'Omni3D'"),
        ({"image": {"bytes": b"x", "path": ""}}, "cannot be decoded"),
        ({"prompt": None}, "key 'prompt'"),
        ({"idx": 0}, "'cvbench:0' is also row 1"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, changes, told):
    row = _row(1, **changes)
    rows = [_row(0), row] if ... not in changes.values() else [row, row]
    with pytest.raises(RowError) as error:
        read(write_parquet(tmp_path / "test.parquet", rows), "test")
    assert told in str(error.value) and "row 2" in str(error.value)


@pytest.mark.parametrize(
    ("question", "truth", "told"),
    [("How many?\n(A) 1\n(C) 2", "(A)", "expected options"), ("How many?\n(A) 1\n(B) 2", "(C)", "options A to B")],
)
def test_validation_rows_that_cannot_be_used_are_named(tmp_path, question, truth, told):
    with pytest.raises(RowError, match="row 1, key") as error:
        read(write_parquet(tmp_path / "x.parquet", [_verl_row(1, question, truth, png())]), "test")
    assert told in str(error.value)


LAMP = Item(Row("cvbench:1", "?", "B"), ("table", "lamp"))
ONE = Item(Row("cvbench:2", "?", "C"), ("3", "2", "1", "0"))
CASES = [
    # (response, item, right)
    ("<think>…</think><answer>(B)</answer>", LAMP, True),
    ("<think>…</think><answer>B</answer>", LAMP, True),
    ("<think>…</think>\\boxed{\\text{(B)}}", LAMP, True),
    ("<think>…</think><answer>(B) lamp</answer>", LAMP, True),
    ("<think>…</think><answer>lamp</answer>", LAMP, True),
    ("<think>…</think><answer>Lamp.</answer>", LAMP, True),
    ("<think>…</think><answer>The answer\nis (B)</answer>", LAMP, True),
    ("The lamp is closer.", LAMP, True),  # a baseline
    ("It is closer than a lamp, so the answer is B", LAMP, True),
    ("<answer>It is closer than a table</answer>", LAMP, False),
    ("<answer>The table is closer than a lamp.</answer>", LAMP, False),  # names both
    ("<answer>(A)</answer>", LAMP, False),
    ("<answer>(C)</answer>", LAMP, False),  # beyond the options
    ("<answer>A or B</answer>", LAMP, False),
    ("<think>…</think>", LAMP, False),
    ("<answer>1</answer>", ONE, True),
    ("<answer>(C) 1</answer>", ONE, True),
    ("\\boxed{1}", ONE, True),
    ("<answer>(A) 1</answer>", ONE, False),  # the letter counts
    ("<answer>3</answer>", ONE, False),
    ("<answer>c</answer>", ONE, True),
]


@pytest.mark.parametrize(("response", "item", "right"), CASES)
def test_graded_by_hand(response, item, right):
    assert grade(response, item).score == float(right)


def test_the_thought_is_no_answer():
    assert grade("<think>It could be (B)", LAMP).answer is None
    assert grade("<think>It could be (B)</think><answer>(A)</answer>", LAMP).answer == "A"


def _tagged(task: str, kind: str, source: str) -> Item:
    return Item(Row("cvbench:0", "?", "A"), ("a", "b"), {"task": task, "type": kind, "source": source})


def test_metrics_by_hand():
    items = [
        _tagged("Count", "2D", "ADE20K"),
        _tagged("Relation", "2D", "COCO"),
        _tagged("Relation", "2D", "COCO"),
        _tagged("Depth", "3D", "Omni3D"),
        _tagged("Distance", "3D", "Omni3D"),
    ]
    found = metrics(items, [1.0, 0.0, 0.5, 1.0, 0.0])
    assert found == {
        "accuracy": 0.5,
        "official": ((1.0 + 0.25) / 2 + 0.5) / 2,
        "task/Count": 1.0,
        "task/Depth": 1.0,
        "task/Distance": 0.0,
        "task/Relation": 0.25,
        "type/2D": 0.5,
        "type/3D": 0.5,
        "source/ADE20K": 1.0,
        "source/COCO": 0.25,
        "source/Omni3D": 0.5,
    }
    assert "official" not in metrics(items[:3], [1.0, 1.0, 1.0])
