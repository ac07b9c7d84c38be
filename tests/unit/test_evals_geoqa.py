"""GeoQA: Ocean-R1's two files, and direct answers graded by hand."""

import pickle
from pathlib import Path

import pytest

from octopus_mcore.data.rows import Row
from octopus_mcore.data.tables import RowError
from octopus_mcore.evals.benchmark import Item
from octopus_mcore.evals.geoqa import BENCHMARKS, read
from octopus_mcore.evals.grades import by_quantity as grade
from octopus_mcore.evals.ocean import SUFFIX
from octopus_mcore.evals.registry import benchmark
from tests.benchmark_files import png, write_jsonl, write_parquet

QUESTION = "As shown in the figure, in triangle ABC, DE parallel  BC, then the size of angle CED is ()"


def _row(number: int = 0, **changes) -> dict:
    row = {"image_path": f"./Geo170K/images/test/{number}.png", "question": QUESTION, "ground_truth": "140°"}
    return {key: value for key, value in (row | changes).items() if value is not ...}


def _verl_row(number: int, data: bytes | None, truth: str = "140°") -> dict:
    path = f"/elsewhere/Geo170K/images/test/{number}.png"
    return {
        "data_source": "geoqa_test",
        "prompt": [{"content": f"<image> {QUESTION}\n{SUFFIX}", "role": "user"}],
        "images": [{"bytes": data, "path": path}],
        "ability": "math",
        "reward_model": {"ground_truth": truth, "style": "rule"},
        "extra_info": {
            "answer": truth,
            "image_paths": [path],
            "index": number,
            "question": QUESTION,
            "reward_func": "acc",
        },
    }


def _images(root: Path, *numbers: int) -> Path:
    folder = root / "Geo170K" / "images" / "test"
    folder.mkdir(parents=True)
    for number in numbers:
        (folder / f"{number}.png").write_bytes(png(number))
    return root


def _item(truth: str) -> Item:
    return Item(Row("geoqa:0", "?", truth))


def test_reads_the_published_files(tmp_path):
    root = _images(tmp_path, 0, 7)
    (root / "prompts").mkdir()
    plain = read(
        write_jsonl(root / "prompts" / "geoqa_test_prompts.jsonl", [_row(0), _row(7, ground_truth="√{3}")]).parent, "test"
    )
    assert [item.row.uid for item in plain] == ["geoqa:0", "geoqa:7"]
    assert plain[0].row.question == QUESTION and plain[1].truth == "√{3}"
    assert Path(plain[1].row.images[0]).samefile(root / "Geo170K" / "images" / "test" / "7.png")
    with_paths = read(write_parquet(root / "geoqa_test.parquet", [_verl_row(7, None, "√{3}"), _verl_row(0, None)]), "test")
    assert {item.row.uid: (item.row.question, item.truth) for item in with_paths} == {
        item.row.uid: (item.row.question, item.truth) for item in plain
    }
    assert Path(with_paths[1].row.images[0]).samefile(root / "Geo170K" / "images" / "test" / "0.png")
    (with_bytes,) = read(write_parquet(tmp_path / "x.parquet", [_verl_row(7, png(7))]), "test")
    assert with_bytes.row.images == (png(7),)
    assert benchmark("geoqa") is BENCHMARKS["geoqa"] and BENCHMARKS["geoqa"].suffix == SUFFIX
    assert pickle.loads(pickle.dumps((plain, grade))) == (plain, grade)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (_row(1, question=...), "key 'question': the key is missing"),
        (_row(1, ground_truth=""), "key 'ground_truth': expected a text or a number"),
        (_row(1, image_path=...), "key 'image_path': the key is missing"),
        (_row(9), "9.png' is not an image file"),
        (_row(2), "cannot be decoded"),
        (_row(0), "'geoqa:0' is also row 1"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, row, told):
    root = _images(tmp_path, 0, 1)
    (root / "Geo170K" / "images" / "test" / "2.png").write_bytes(b"no picture")
    with pytest.raises(RowError, match="1 of 2 rows") as error:
        read(write_jsonl(root / "geoqa_test_prompts.jsonl", [_row(0), row]), "test")
    assert told in str(error.value) and "row 2" in str(error.value)


CASES = [
    # (truth, response, right)
    ("140°", "<think>…</think><answer>140°</answer>", True),
    ("140°", "<think>…</think>\n\n<answer>\n140\n</answer>", True),
    ("140°", "<think>…</think>\\boxed{140^\\circ}", True),
    ("140°", "<think>…</think> The answer is 140 degrees.", True),
    ("140°", "In the triangle angle C is 40.\nSo angle CED = 180 - 40 = 140°.", True),  # a baseline without tags
    ("140°", "<think>…</think><answer>40°</answer>", False),
    ("140°", "<think>it is 140", False),  # cut off
    ("140°", "<think>…</think><answer></answer>", False),
    ("√{13}", "<answer>\\sqrt{13}</answer>", True),
    ("√{13}", "<answer>√13</answer>", True),
    ("10√{3}cm", "<answer>10√3 cm</answer>", True),
    ("10√{3}cm", "<answer>10</answer>", False),
    ("16π平方米", "\\boxed{16\\pi}", True),
    ("\\frac{1}{6}π", "<answer>π/6</answer>", True),
    ("8", "<think>8</think><answer>The length of CD is 8.</answer>", True),
    ("8", "<think>8</think><answer>The length of CD is 6.</answer>", False),
    ("2400πcm^{2}", "<answer>$2400\\pi \\text{ cm}^2$</answer>", True),
    ("3.6秒", "<answer>3.6 minutes</answer>", False),
]


@pytest.mark.parametrize(("truth", "response", "right"), CASES)
def test_graded_by_hand(truth, response, right):
    assert grade(response, _item(truth)).score == float(right)


def test_the_thought_is_no_answer():
    assert grade("<think>the angle is 140</think><answer>40</answer>", _item("140°")).score == 0.0
    assert grade("<think>the angle is \\boxed{140}", _item("140°")).answer is None


def test_truths_as_the_file_writes_them():
    for truth, latex in (
        ("√{13}", "\\sqrt{13}"),
        ("\\frac{2√{5}}{5}", "\\frac{2\\sqrt{5}}{5}"),
        ("(√{3}+1)小时", "\\sqrt{3}+1"),
    ):
        assert grade(f"<answer>${latex}$</answer>", _item(truth)).score == 1.0
    assert grade("<answer>10</answer>", _item("10√{3}cm")).score == 0.0


def test_metrics_by_hand():
    assert BENCHMARKS["geoqa"].metrics([_item("1")] * 4, [1.0, 0.0, 0.5, 0.0]) == {"accuracy": 0.375}
