"""RefCOCO, RefCOCO+ and RefCOCOg: point at what a phrase refers to.

Source: Yu et al. 2016 (arXiv 1608.00272) and Mao et al. 2016 (arXiv 1511.02283) on images of COCO 2014; read are the JSON files
that VLM-R1 made of them (`rec_jsons_processed.zip` of huggingface.co/datasets/omlab/VLM-R1), which Ocean-R1 uses too:
`refcoco_val.json`, `refcocop_val.json` (RefCOCO+), `refcocog_val.json`, and `_testA`, `_testB` (`_test` of RefCOCOg). Each is a
list of `{image, problem, solution: [x1, y1, x2, y2], …}`, the box in pixels of the image. `normal_caption` (the phrase alone),
`width` and `height` are known from VLM-R1's programs, not from a file that was seen: they are used where they are there.
Images stand below the JSON files' folder or the one above it, as in `<folder>/train2014/COCO_train2014_000000581857.jpg`.

Prompt: the file's `problem`, with Ocean-R1's suffix (think, then a box in JSON in answer tags). Its program gives every model
behind a baseline the baseline's prompt without instruction; here the prompt belongs to the evaluation set.

Extraction: the first four numbers in brackets of the answer (box, answer tags, "the answer is …", else the whole text behind
the thought), floats too; an answer of four numbers and nothing else needs no brackets. A box without area is no answer.

Coordinates: `refcoco` takes the answer's numbers for pixels of the image in the file. Models differ: Qwen3-VL answers in
thousandths of width and height (`refcoco_thousandths`), Qwen2.5-VL in pixels of the image as its processor resized it, to
multiples of 28 (`refcoco_resized`; with the checkpoint's own bounds of 4·28² to 16384·28² pixels, which COCO's images never
meet: a `data.max_pixels` below 640×480 would need another scale). Ocean-R1's program compares Qwen2.5-VL's numbers with the
file's as they are.

Metric: share of questions whose box has an intersection over union above 0.5. Headline `AVG`, the mean over the sets that were
read (RefCOCO, RefCOCO+, RefCOCOg), then by set. RefCOCOg has one test split, which belongs to testA here and not to testB.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from octopus_mcore.data.images import ImageSource
from octopus_mcore.data.row_reader import Row
from octopus_mcore.data.tables import Record, RowError
from octopus_mcore.evals.benchmark import Benchmark, Grade, Item, Repair
from octopus_mcore.evals.extraction import final_answer
from octopus_mcore.evals.files import ImageColumn, optional, read_items, read_records, text
from octopus_mcore.evals.metrics import mean, means_by_tag
from octopus_mcore.rewards.rectangles import THRESHOLD, Rectangle, first_rectangle, intersection_over_union

SETS = {"refcoco": "refcoco", "refcocop": "refcoco+", "refcocog": "refcocog"}
"""Set by the first part of its files' names."""

SUFFIX = (
    "First output the thinking process in <think> </think> tags and then output the final answer in <answer> </answer> tags. "
    "Output the final answer in JSON format."
)

_FILES = {
    "val": ("refcoco_val", "refcocop_val", "refcocog_val"),
    "testA": ("refcoco_testA", "refcocop_testA", "refcocog_test"),
    "testB": ("refcoco_testB", "refcocop_testB"),
}
_FOLDERS = ("", "images", "..", "../images")
_PHRASE = "Please provide the bounding box coordinate of the region this sentence describes: {}."

_REPAIRS = (
    Repair(
        "Ocean-R1: the box is the first `[d,d,d,d]` of whole numbers in the first `<answer>` block, else [0,0,0,0]",
        "boxes with decimals, in `\\boxed{}` or without tags are wrong: a baseline that is asked without tags scores about 0",
        "decimals and any declared answer are read; without one there is no answer",
        "test_evals_refcoco::test_graded_by_hand",
    ),
    Repair(
        "Ocean-R1, VLM-R1: right and bottom edges moved by one pixel before they are compared",
        "an overlap of one pixel's width or height counts as none; no answer is graded as the box [0,0,0,0]",
        "intersection over union of areas; a box without area is no answer",
        "test_evals_refcoco::test_a_box_without_area_is_no_answer",
    ),
    Repair(
        "Ocean-R1: Qwen2.5-VL's numbers are compared with the file's, though they count pixels of the resized image",
        "boxes drift with an image's size: by 8 pixels at the lower edge of 640×468",
        "`refcoco_resized` scales them back",
        "test_evals_refcoco::test_coordinates_of_the_resized_image",
    ),
)


def grade(response: str, item: Item) -> Grade:
    """Right above an intersection over union of 0.5. The answer is given in pixels of the image."""
    box = found_box(response)
    if box is None:
        return Grade(None, 0.0)
    scale_x, scale_y = item.facts["scale"]
    box = (box[0] * scale_x, box[1] * scale_y, box[2] * scale_x, box[3] * scale_y)
    score = intersection_over_union(box, item.facts["box"]) > THRESHOLD
    return Grade(f"[{', '.join(f'{edge:.6g}' for edge in box)}]", float(score))


def found_box(response: str) -> Rectangle | None:
    """The box in a response's answer, in the model's own coordinates; None without one."""
    answer = final_answer(response)
    if answer is None:
        return None
    answer = answer.replace(r"\left", "").replace(r"\right", "")
    return first_rectangle(answer if "[" in answer else f"[{answer.strip('() ')}]")


def metrics(items: Sequence[Item], scores: Sequence[float]) -> dict[str, float]:
    """`AVG` over the sets, then each set."""
    by_set = means_by_tag(items, scores, "set")
    return {"AVG": mean(list(by_set.values()))} | by_set


def _reader(name: str, frame: Callable[[int, int], tuple[float, float]]) -> Callable[[Path, str], list[Item]]:
    """A reader for answers in a frame of this size, given an image's width and height."""

    def read(path: Path, split: str) -> list[Item]:
        items: list[Item] = []
        for file in _files(Path(path), split):
            records = read_records(file)
            images = ImageColumn(records, folders=_FOLDERS)
            items += read_items(records, lambda record, images=images: _item(name, record, images, frame))
        return items

    return read


def _files(path: Path, split: str) -> list[Path]:
    """The files of a split in a folder, or the one file that is given. Raises ValueError for a file of another split or set."""
    names = _FILES[split]
    if path.is_file():
        if path.stem not in names:
            raise ValueError(f"{path}: expected {split}'s {' or '.join(f'{name}.json' for name in names)}, by these names")
        return [path]
    found = [path / f"{name}.json" for name in names if (path / f"{name}.json").is_file()]
    if not found:
        raise FileNotFoundError(f"{path}: expected a folder with {', '.join(f'{name}.json' for name in names)}, or one of them")
    return found


def _item(name: str, record: Record, images: ImageColumn, frame: Callable[[int, int], tuple[float, float]]) -> Item:
    image = images.of(record)[0]
    width, height = _size(image)
    for key, size in (("width", width), ("height", height)):
        if (said := optional(record, key)) is not None and float(said) != size:
            raise RowError(f"{record.at(key)}: the image's {key} is {size}, found {said}; the box would not fit another image")
    box = _box(record, width, height)
    phrase = optional(record, "problem") or _PHRASE.format(text(record, "normal_caption"))
    frame_width, frame_height = frame(width, height)
    row = Row(f"{name}:{record.file.stem}-{record.number}", phrase, str(list(box)), (image,))
    facts = {"box": box, "scale": (width / frame_width, height / frame_height)}
    return Item(row, tags={"set": SETS[record.file.stem.partition("_")[0]]}, facts=facts)


def _size(image: ImageSource) -> tuple[int, int]:
    """Width and height of an image file."""
    with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
        return opened.size


def _box(record: Record, width: int, height: int) -> Rectangle:
    """The truth. Raises `RowError` for what is no box within the image."""
    value: Any = record.get("solution")
    if not isinstance(value, list) or len(value) != 4 or not all(isinstance(edge, int | float) for edge in value):
        raise RowError(f"{record.at('solution')}: expected a box [x1, y1, x2, y2], found {value!r:.80}")
    left, top, right, bottom = (float(edge) for edge in value)
    if not (-1 <= left < right <= width + 1 and -1 <= top < bottom <= height + 1):
        raise RowError(f"{record.at('solution')}: {value} is no box within the image of {width}×{height} pixels")
    return left, top, right, bottom


def _thousandths(width: int, height: int) -> tuple[float, float]:
    return 1000.0, 1000.0


def _resized(width: int, height: int) -> tuple[float, float]:
    """What Qwen2.5-VL's processor makes of an image of this size."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    rows, columns = smart_resize(height, width, factor=28, min_pixels=4 * 28 * 28, max_pixels=16384 * 28 * 28)
    return float(columns), float(rows)


def _benchmark(name: str, coordinates: str, frame: Callable[[int, int], tuple[float, float]]) -> Benchmark:
    return Benchmark(
        name=name,
        title=f"RefCOCO, RefCOCO+, RefCOCOg ({coordinates})",
        source="`refcoco_val.json`, `refcocop_val.json`, `refcocog_val.json` (`_testA`, `_testB`, `_test`) of VLM-R1's "
        "`rec_jsons_processed`, a folder or one of them; images of COCO 2014 below that folder or the one above",
        splits=tuple(_FILES),
        read=_reader(name, frame),
        grade=grade,
        metrics=metrics,
        suffix=SUFFIX,
        repairs=_REPAIRS,
    )


BENCHMARKS = {
    "refcoco": _benchmark("refcoco", "boxes in pixels", lambda width, height: (float(width), float(height))),
    "refcoco_thousandths": _benchmark("refcoco_thousandths", "boxes in thousandths", _thousandths),
    "refcoco_resized": _benchmark("refcoco_resized", "boxes in pixels of the resized image", _resized),
}
