"""Small files in exactly the layouts in which datasets were published, with right and wrong rows."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(seed: int, kind: str = "PNG", size: tuple[int, int] = (24, 16)) -> bytes:
    stream = io.BytesIO()
    picture(seed, size).save(stream, kind)
    return stream.getvalue()


def as_png(data: bytes) -> bytes:
    stream = io.BytesIO()
    Image.open(io.BytesIO(data)).save(stream, "PNG")
    return stream.getvalue()


def virl_row(i: int, **changes) -> dict:
    return {
        "question": f"<image>\nWhat is {i}?",
        "answer": rf"\boxed{{{i}}}",
        "PassRate_32BTrained": 0.5,
        "PassRate_7BBase": -1.0,
        "category": "(GradeSchool) Geometric",
        "source": "MMK12",
        "qid": f"MMK12-{i}",
        "image": [f"images/{i}.jpg"],
        **changes,
    }


VIRL_ROWS = [
    # row, kind of fault (None: kept)
    (virl_row(0), None),
    (virl_row(1, PassRate_7BBase=0.25, category="Spatial Reasoning"), None),
    (virl_row(2, image=["images/nowhere.jpg"]), "missing image"),
    (virl_row(3, image=["images/cut.jpg"]), "undecodable image"),
    (virl_row(4, answer=" "), "answer"),
    (virl_row(5, answer="5"), "answer without box"),
    (virl_row(6, question="<image><image> Which?"), "markers"),
    (virl_row(7, qid="MMK12-0"), "duplicate uid"),
    (virl_row(8, PassRate_32BTrained=1.2), "pass rate"),
    (virl_row(9, question=""), "question"),
    (virl_row(10, question="Which <image> is <image>?", image=["images/0.jpg", "images/1.jpg"], source="M3CoT"), None),
    (virl_row(11, question="2 + 2?", image=[], source="DeepScaleR", PassRate_32BTrained=1.0), None),
    (virl_row(12, image=["images/same.png"], PassRate_32BTrained=0.0), None),
    (virl_row(13, PassRate_7BBase=1.0, image=["images/13.gif"]), None),
]


def write_virl39k(folder: Path, zipped: bool = False) -> Path:
    """`39Krelease.parquet` and `images/`, or `images.zip` as it is on the hub."""
    folder.mkdir(parents=True)
    files = {f"images/{i}.jpg": encoded(i, "JPEG") for i in range(12)}
    files["images/cut.jpg"] = files["images/3.jpg"][:-200]
    files["images/same.png"] = as_png(files["images/1.jpg"])
    files["images/13.gif"] = encoded(13, "GIF")
    if zipped:
        with zipfile.ZipFile(folder / "images.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        (folder / "images").mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
    table = pyarrow.Table.from_pylist([row for row, _ in VIRL_ROWS])
    parquet.write_table(table, folder / "39Krelease.parquet", row_group_size=5)
    return folder


def llava_row(i: int, image: str, **changes) -> dict:
    reply = f"<SUMMARY> s </SUMMARY>\n\n<CAPTION> c </CAPTION>\n\n<REASONING> r </REASONING>\n\n<CONCLUSION> {i} </CONCLUSION>"
    turns = [{"from": "human", "value": f"What is {i}?"}, {"from": "gpt", "value": reply}]
    return {"id": f"row_{i}", "image": image, "conversations": turns, **changes}


LLAVA_ROWS = [
    (llava_row(0, "sqa/train/0/image.png"), None),
    (llava_row(1, "coco/train2017/1.jpg"), None),
    (llava_row(2, "CLEVR_v1.0/images/train/2.png"), None),
    (llava_row(3, "geoqa+/images/3.png", conversations=[{"from": "human", "value": "Only a question?"}]), "question"),
    (llava_row(4, "web-celebrity/images/4.jpg"), None),
    ({key: value for key, value in llava_row(5, "").items() if key != "image"}, "image"),
]
LLAVA_ROWS[0][0]["conversations"] += [
    {"from": "human", "value": "And?"},
    {"from": "gpt", "value": "<CONCLUSION>n</CONCLUSION>"},
]
_NO_CONCLUSION = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "It is 6."}]
LLAVA_ROWS.append((llava_row(6, "vg/VG_100K/6.jpg", conversations=_NO_CONCLUSION), "answer without tag"))


def write_llava_cot(folder: Path, parts: int = 0) -> Path:
    """`train.jsonl` with images below the folder, or in the parts of one zip file as they are on the hub."""
    folder.mkdir(parents=True)
    files = {row["image"]: encoded(i, "JPEG") for i, (row, _) in enumerate(LLAVA_ROWS) if "image" in row}
    if parts:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        whole = stream.getvalue()
        size = -(-len(whole) // parts)
        for number in range(parts):
            piece = whole[number * size : (number + 1) * size]
            (folder / f"image.zip.part-a{chr(ord('a') + number)}").write_bytes(piece)
    else:
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    lines = [json.dumps(row).encode() for row, _ in LLAVA_ROWS]
    lines[3:3] = [b"", b'{"id": "latin", "image": "\xe9"}']
    (folder / "train.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return folder


def write_geometry3k(folder: Path, splits: tuple[str, ...] = ("train", "validation", "test")) -> Path:
    """`data/<split>-00000-of-00001.parquet` with `images` (bytes), `problem`, `answer`."""
    (folder / "data").mkdir(parents=True)
    for number, split in enumerate(splits):
        rows = [
            {"images": [{"bytes": encoded(i), "path": None}], "problem": f"<image>Find {i}.", "answer": rf"\frac{{{i}}}{{2}}"}
            for i in range(number, number + 4)
        ]
        if split == "train":
            rows[2]["images"][0]["bytes"] = encoded(9)[:50]
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"data/{split}-00000-of-00001.parquet")
    return folder


SUFFIX = (
    "You FIRST think about the reasoning process as an internal monologue and then provide the final answer. The reasoning "
    "process MUST BE enclosed within <think> </think> tags. The final answer MUST BE in <answer> </answer> tags."
)


def ocean_row(i: int, rule: str = "acc", truth: str | None = None, **changes) -> dict:
    truth = truth if truth is not None else f"<answer>{i}</answer>"
    return {
        "data_source": "geoqa" if rule == "acc" else "rec",
        "prompt": [{"role": "user", "content": f"<image> What is {i}?\n{SUFFIX}"}],
        "images": [{"bytes": encoded(i), "path": f"elsewhere/{i}.png"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {
            "index": i,
            "answer": truth,
            "question": f"What is {i}?",
            "reward_func": rule,
            "image_paths": [f"elsewhere/{i}.png"],
        },
        **changes,
    }


def write_ocean(folder: Path, split: str = "train", count: int = 6) -> Path:
    """`data/<split>-00000-of-00001.parquet` in verl's layout."""
    (folder / "data").mkdir(parents=True)
    rows = [ocean_row(i) for i in range(count)]
    rows += [ocean_row(20, "iou", "[1, 2, 30, 40]"), ocean_row(21, "iou", "[1, 2, 1, 40]"), ocean_row(22, "bleu")]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"data/{split}-00000-of-00001.parquet")
    return folder
