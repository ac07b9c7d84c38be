"""RefCOCO/+/g: VLM-R1's files, boxes in three coordinate systems, answers graded by hand."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from octopus_mcore.data.rows import Row
from octopus_mcore.data.tables import RowError
from octopus_mcore.evals.benchmark import Item
from octopus_mcore.evals.refcoco import BENCHMARKS, found_box, grade, metrics
from octopus_mcore.evals.registry import benchmark
from octopus_mcore.rewards.rectangles import intersection_over_union
from tests.benchmark_files import write_json

PIXELS = BENCHMARKS["refcoco"]
IMAGE = "train2014/COCO_train2014_000000000001.jpg"


def _row(**changes) -> dict:
    row = {
        "image": IMAGE,
        "problem": "Please provide the bounding box coordinate of the region this sentence describes: left zebra.",
        "normal_caption": "left zebra",
        "solution": [100, 100, 300, 200],
        "normalized_solution": [156, 214, 469, 427],
        "width": 640,
        "height": 468,
    }
    return {key: value for key, value in (row | changes).items() if value is not ...}


def _folder(root: Path, rows: list[dict], name: str = "refcoco_val") -> Path:
    """The layout in which Ocean-R1 unpacks the files: images beside the folder of JSON files."""
    image = root / IMAGE
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (640, 468)).save(image)
    folder = root / "rec_jsons_processed"
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{name}.json", rows)
    return folder


def _item(scale: tuple[float, float] = (1.0, 1.0)) -> Item:
    return Item(Row("refcoco:x-1", "?", "[]"), facts={"box": (100.0, 100.0, 300.0, 200.0), "scale": scale})


def test_reads_the_published_files(tmp_path):
    folder = _folder(tmp_path, [_row(), _row(solution=[0, 0, 640, 468])])
    _folder(tmp_path, [_row(problem=...)], "refcocop_val")
    _folder(tmp_path, [_row(width=..., height=..., normalized_solution=...)], "refcocog_val")
    _folder(tmp_path, [_row()], "refcocog_test")
    items = PIXELS.read(folder, "val")
    assert [item.row.uid for item in items] == [
        "refcoco:refcoco_val-1",
        "refcoco:refcoco_val-2",
        "refcoco:refcocop_val-1",
        "refcoco:refcocog_val-1",
    ]
    assert items[0].row.question == _row()["problem"] == items[2].row.question  # no instruction in it: that is the suffix
    assert items[0].truth == "[100.0, 100.0, 300.0, 200.0]"
    assert items[0].facts["scale"] == (1.0, 1.0)
    assert Path(items[0].row.images[0]).samefile(tmp_path / IMAGE)
    assert [item.tags["set"] for item in items] == ["refcoco", "refcoco", "refcoco+", "refcocog"]
    assert [item.row.uid for item in PIXELS.read(folder, "testA")] == ["refcoco:refcocog_test-1"]
    assert len(PIXELS.read(folder / "refcocop_val.json", "val")) == 1
    assert pickle.loads(pickle.dumps(items)) == items and pickle.loads(pickle.dumps(PIXELS.grade)) is grade
    assert benchmark("refcoco_thousandths") is BENCHMARKS["refcoco_thousandths"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image": ...}, "key 'image': the key is missing"),
        ({"image": "train2014/no.jpg"}, "no.jpg' is not an image file"),
        ({"solution": ...}, "key 'solution': the key is missing"),
        ({"solution": "<answer>[1, 2, 3, 4]</answer>"}, "expected a box"),
        ({"solution": [1, 2, 3]}, "expected a box"),
        ({"solution": [300, 100, 100, 200]}, "no box within the image of 640×468"),
        ({"solution": [100, 100, 300, 900]}, "no box within the image of 640×468"),
        ({"solution": [100, 100, 900, 200]}, "no box within the image of 640×468"),
        ({"width": 320}, "the image's width is 640, found 320"),
        ({"problem": "", "normal_caption": ...}, "normal_caption"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, changes, told):
    folder = _folder(tmp_path, [_row(), _row(**changes)])
    with pytest.raises(RowError, match="row 2") as error:
        PIXELS.read(folder, "val")
    assert told in str(error.value) and "1 of 2 rows" in str(error.value)


def test_files_that_are_not_the_splits_are_refused(tmp_path):
    folder = _folder(tmp_path, [_row()])
    with pytest.raises(FileNotFoundError, match="refcoco_testB.json"):
        PIXELS.read(folder, "testB")
    with pytest.raises(ValueError, match="expected testA's refcoco_testA.json"):
        PIXELS.read(folder / "refcoco_val.json", "testA")
    (tmp_path / IMAGE).write_bytes(b"no image")
    with pytest.raises(RowError, match="cannot be decoded"):
        PIXELS.read(folder, "val")


CASES = [
    # (response, right), the truth is [100, 100, 300, 200]
    ("<think>…</think><answer>[100, 100, 300, 200]</answer>", True),
    ('<think>…</think><answer>```json\n[{"bbox_2d": [100, 100, 300, 200], "label": "zebra"}]\n```</answer>', True),
    ('<think>…</think>\n<answer>{"bbox": [110.5, 98.25, 301.0, 199.5]}</answer>', True),  # decimals
    ("<think>…</think>\\boxed{[100, 100, 300, 200]}", True),  # a box in a box
    ("<think>…</think>\\boxed{\\left[100, 100, 300, 200\\right]}", True),
    ("\\boxed{100, 100, 300, 200}", True),  # four numbers and nothing else
    ("(100, 100, 300, 200)", True),
    ("The zebra is at [100, 100, 300, 200].", True),  # a baseline without tags
    ("<answer>[ 100,100 ,300, 200 ]</answer>", True),
    ("<answer>[100, 100, 300, 151]</answer>", True),  # 51 of 100 rows
    ("<answer>[100, 100, 300, 150]</answer>", False),  # 0.5 is not above 0.5
    ("<answer>[200, 100, 400, 200]</answer>", False),  # one third
    ("<answer>[100, 100, 110, 110]</answer>", False),  # inside, but small
    ("<answer>[300, 200, 100, 100]</answer>", False),  # reversed corners
    ("<answer>[100, 100, 100, 200]</answer>", False),  # no area
    ("<answer>[0.156, 0.214, 0.469, 0.427]</answer>", False),  # shares of the image are no pixels
    ("<think>it is [100, 100, 300, 200]</think><answer>none</answer>", False),  # the thought is no answer
    ("<think>it is [100, 100, 300, 200]", False),  # cut off
    ("<answer>[0, 0, 9, 9]</answer> <answer>[100, 100, 300, 200]</answer>", True),  # the last block
    ("<answer>[[100, 100, 300, 200], [0, 0, 9, 9]]</answer>", True),  # the first box in it
    ("<answer>100 100 300 200</answer>", False),
    ("the zebra spans 100, 100, 300, 200 pixels", False),  # numbers in a sentence are no box
    ("", False),
]


@pytest.mark.parametrize(("response", "right"), CASES)
def test_graded_by_hand(response, right):
    assert grade(response, _item()).score == float(right)


def test_a_box_without_area_is_no_answer():
    assert grade("<answer>[100, 100, 100, 200]</answer>", _item()).answer is None
    assert grade("<answer>[0, 0, 0, 0]</answer>", _item()).answer is None
    assert grade("<answer>[1, 2, 3, 4]</answer>", _item()).answer == "[1, 2, 3, 4]"


def test_coordinates_in_thousandths(tmp_path):
    folder = _folder(tmp_path, [_row()])
    (item,) = BENCHMARKS["refcoco_thousandths"].read(folder, "val")
    response = "<answer>[156, 214, 469, 427]</answer>"  # 99.84, 100.2, 300.2, 199.8
    assert grade(response, item) == grade("<answer>[99.84, 100.152, 300.16, 199.836]</answer>", _item())
    (item,) = PIXELS.read(folder, "val")
    assert grade("<answer>[156, 214, 469, 427]</answer>", item).score == 0.0


def test_coordinates_of_the_resized_image(tmp_path):
    folder = _folder(tmp_path, [_row(solution=[0, 440, 640, 468])])
    (item,) = BENCHMARKS["refcoco_resized"].read(folder, "val")
    assert item.facts["scale"] == (640 / 644, 468 / 476)  # the multiples of 28 next to 640 and 468
    given = "<answer>[0, 462, 644, 476]</answer>"  # rows 454 to 468 of the image: half of the truth, and 1/64 of a row more
    assert grade(given, item).answer == "[0, 454.235, 640, 468]"
    assert grade("<answer>[0, 450, 644, 476]</answer>", item).score == 1.0  # 25.6 of 28 rows
    (item,) = PIXELS.read(folder, "val")
    assert grade("<answer>[0, 450, 644, 476]</answer>", item).score == 0.0  # 18 of 36 rows and 4 columns too many


def test_metrics_by_hand():
    sets = ["refcoco", "refcoco", "refcoco+", "refcocog", "refcocog", "refcocog"]
    items = [Item(Row(str(number), "?", ""), tags={"set": name}) for number, name in enumerate(sets)]
    found = metrics(items, [1.0, 0.0, 1.0, 0.0, 0.0, 0.75])
    assert list(found) == ["AVG", "set/refcoco", "set/refcoco+", "set/refcocog"]
    assert found == {"AVG": (0.5 + 1.0 + 0.25) / 3, "set/refcoco": 0.5, "set/refcoco+": 1.0, "set/refcocog": 0.25}


_EDGE = st.integers(0, 200)
_BOX = st.tuples(_EDGE, _EDGE, st.integers(1, 100), st.integers(1, 100)).map(
    lambda box: (float(box[0]), float(box[1]), float(box[0] + box[2]), float(box[1] + box[3]))
)


@settings(deadline=None, max_examples=100)
@given(one=_BOX, other=_BOX, factor=st.sampled_from([0.5, 2.0, 8.0]), shift=st.integers(0, 50))
def test_intersection_over_union_is_symmetric_and_knows_no_scale(one, other, factor, shift):
    share = intersection_over_union(one, other)
    assert 0 <= share <= 1 and share == intersection_over_union(other, one)
    assert (share == 1) == (one == other)
    assert intersection_over_union(*([edge * factor for edge in box] for box in (one, other))) == pytest.approx(share)
    assert intersection_over_union(*([edge + shift for edge in box] for box in (one, other))) == pytest.approx(share)


@settings(deadline=None, max_examples=60)
@given(box=_BOX, scale=st.sampled_from([(1.0, 1.0), (0.5, 0.25), (2.0, 4.0)]))
def test_the_truth_itself_is_right_in_every_coordinate_system(box, scale):
    item = Item(Row("x", "?", ""), facts={"box": box, "scale": scale})
    said = [box[0] / scale[0], box[1] / scale[1], box[2] / scale[0], box[3] / scale[1]]
    assert found_box(f"<answer>{said}</answer>") == tuple(said)
    assert grade(f"<answer>{said}</answer>", item).score == 1.0
