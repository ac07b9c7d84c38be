"""The datasets that the command knows by name, in the layouts in which their authors published them.

Layouts: TIGER-Lab/ViRL39K (arXiv 2504.08837), Xkev/LLaVA-CoT-100k (arXiv 2411.10440), hiyouga/geometry3k (EasyR1's), and verl's
rows as minglingfeng's Ocean-R1 sets have them (github.com/VLM-RL/Ocean-R1).
"""

from __future__ import annotations

import importlib
from dataclasses import replace

from octopus_mcore.data.pass_rates import PassRate
from octopus_mcore.data.preparation.dataset import Dataset, Fields
from octopus_mcore.data.row_reader import LayoutName, RowKeys, row_keys
from octopus_mcore.data.tables import Record
from octopus_mcore.rewards.rectangles import first_rectangle


def _of_conversation(record: Record) -> Fields:
    """LLaVA-CoT: the source is the first folder of the image's path. `turns`: of more than two, the first two are read."""
    image, turns = record.fields.get("image"), record.fields.get("conversations")
    source = image.partition("/")[0] if isinstance(image, str) else None
    return {"source": source, "turns": len(turns) if isinstance(turns, list) else None}


def _ocean_rule(record: Record) -> None:
    """Ocean-R1: the row is judged by one of two rules, and a truth that is a rectangle has an area (without one, the released
    reward divides by zero and calls every answer wrong)."""
    rule, truth = record.get("extra_info.reward_func"), record.get("reward_model.ground_truth")
    if rule not in ("acc", "iou"):
        raise record.error("extra_info.reward_func", f"expected acc or iou, found {rule!r:.80}")
    if rule == "iou" and (not isinstance(truth, str) or first_rectangle(truth) is None):
        reason = f"expected a rectangle [x1, y1, x2, y2] with an area, found {truth!r:.80}"
        raise record.error("reward_model.ground_truth", reason)


def _keys(layout: LayoutName, *names: str, **metadata: str) -> RowKeys:
    """The keys of a layout, with further metadata: `names` are keys too."""
    return row_keys(layout, {"metadata": {name: name for name in names} | metadata})


VIRL39K = Dataset(
    name="virl39k",
    hub="TIGER-Lab/ViRL39K",
    splits={"rows": ("39Krelease.parquet", "*.parquet", "*.jsonl")},
    columns=("question", "answer", "image", "qid", "category", "source", "PassRate_32BTrained", "PassRate_7BBase"),
    keys=_keys("virl39k", "qid", "category", "source", "PassRate_32BTrained", "PassRate_7BBase"),
    uid="qid",
    category="category",
    source="source",
    # The rate of the 7B model is measured for about half the rows; -1 stands for the others.
    pass_rates=(
        PassRate("PassRate_7BBase", unlabelled=(-1, None)),
        PassRate("PassRate_32BTrained", unlabelled=(-1, None), then="drop"),
    ),
    archives=("images.zip",),
)

LLAVA_COT = Dataset(
    name="llava-cot-100k",
    hub="Xkev/LLaVA-CoT-100k",
    splits={"rows": ("train.jsonl", "data/train-*.parquet", "train/data-*.arrow", "data-*.arrow")},
    columns=("id", "image", "conversations"),
    keys=_keys("llava_cot", "id", "source", "turns"),
    derived=_of_conversation,
    category="turns",
    source="source",
    # Octopus' cold start (arXiv 2602.08503, released script `sft_in_dis_sampling.py`).
    sources=("ai2d", "chartqa", "CLEVR_v1.0", "geoqa+", "gqa", "sqa", "textvqa", "ocr_vqa", "vg", "web", "wikiart"),
    folders=("", "image", "images"),
    archives=("image.zip", "image.zip.part-*"),
)

GEOMETRY3K = Dataset(
    name="geometry3k",
    hub="hiyouga/geometry3k",
    splits={
        split: (f"data/{split}-*.parquet", f"{split}-*.parquet", f"{split}.parquet", f"{split}/data-*.arrow")
        for split in ("train", "validation", "test")
    },
    columns=("problem", "answer", "images"),
)

OCEAN_STAGE1 = Dataset(
    name="ocean-r1-stage1",
    hub="minglingfeng/Ocean_R1_visual_data_stage1",
    splits={"rows": ("data/train-*.parquet", "train-*.parquet", "*stage1*.parquet", "train/data-*.arrow", "data-*.arrow")},
    columns=("data_source", "prompt", "images", "reward_model", "extra_info"),
    keys=_keys("ocean_r1", "data_source", index="extra_info.index"),
    check=_ocean_rule,
    category="reward_func",
    source="data_source",
)

OCEAN_STAGE2 = replace(
    OCEAN_STAGE1,
    name="ocean-r1-stage2",
    hub="minglingfeng/Ocean_R1_visual_data_stage2",
    splits={"rows": ("data/train-*.parquet", "train-*.parquet", "*stage2*.parquet", "train/data-*.arrow", "data-*.arrow")},
)


def _ocean_test(name: str) -> Dataset:
    patterns = ("data/test-*.parquet", "test-*.parquet", f"*{name}.parquet", "test/data-*.arrow", "data-*.arrow")
    return replace(OCEAN_STAGE1, name=name.replace("_", "-"), hub=f"minglingfeng/{name}", splits={"rows": patterns})


DATASETS = {
    dataset.name: dataset
    for dataset in (
        VIRL39K,
        LLAVA_COT,
        GEOMETRY3K,
        OCEAN_STAGE1,
        OCEAN_STAGE2,
        _ocean_test("cvbench_test"),
        _ocean_test("geoqa_test"),
    )
}


def find_dataset(name: str) -> Dataset:
    """The dataset of this name, or the one behind `package.module:NAME`, a `Dataset` of the user's own.

    Raises:
        ValueError: there is none.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon:
        if name not in DATASETS:
            raise ValueError(f"dataset {name!r}: expected one of {', '.join(DATASETS)}, or package.module:NAME of your own")
        return DATASETS[name]
    try:
        found = getattr(importlib.import_module(module_name), attribute, None)
    except ImportError as error:
        raise ValueError(f"dataset {name!r}: {module_name!r} cannot be imported: {error}") from error
    if not isinstance(found, Dataset):
        raise ValueError(f"dataset {name!r}: expected a {Dataset.__module__}.Dataset, found {type(found).__name__}")
    return found
