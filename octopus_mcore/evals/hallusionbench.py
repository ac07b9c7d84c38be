r"""HallusionBench: yes or no about pictures and their altered twins, in groups that must be right together.

Source: Guan et al. 2024 (arXiv 2310.14566), github.com/tianyi-lab/HallusionBench: `HallusionBench.json`, 1,129 rows of
`category` (VD: cannot be answered without the picture; VS: the picture supplements what is known), `subcategory`,
`visual_input` (0: no picture, 1: original, 2: altered), `set_id`, `figure_id`, `question_id`, `question`, `gt_answer` (0, 1)
and `filename` (`./VD/illusion/0_0.png`, null without a picture), images beside the file or in its folder `hallusion_bench` or
`data`. The same rows with their images are lmms-lab/HallusionBench's `data/image-*.parquet` and `data/non_image-*.parquet`. And
VLMEvalKit's `HallusionBench.tsv`: `index`, `question`, `answer` (Yes, No), `category`, `l2-category` (`VD_illusion`), `image`;
of its `index` VLMEvalKit's program reads the fourth to sixth part as set, figure and question (the file itself was not seen).

Splits: `image` (the default) leaves out the 178 VS rows without a picture, as VLMEvalKit does: 951 rows, 346 figures, 455 pairs
(counted in the published JSON file; its published results are shares of these numbers). `all` has them, as the paper does; a
pair then counts only if it is right without a picture too.

Prompt: the question, with VLMEvalKit's suffix.

Extraction: the "yes" or "no" that the declared answer (box, answer tags, "the answer is …", else the text behind the thought)
begins with, or holds alone. Without a picture a VS answer that says it cannot know is right, as in the paper. The paper asks
GPT-4 whether an answer contradicts the reference; these are rules.

Metric: aAcc per question, fAcc per figure (all of a figure's questions), qAcc per pair (a question over all its figures), and
the headline `average` of the three; then each by category and subcategory, and aAcc of questions on original and without
pictures (`easy`) and on altered ones (`hard`), which VLMEvalKit's file does not tell. A group of which not all questions were
evaluated does not count.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from octopus_mcore.data.row_reader import Row
from octopus_mcore.data.tables import Record, RowError
from octopus_mcore.evals.benchmark import Benchmark, Grade, Item, Repair
from octopus_mcore.evals.extraction import final_answer, yes_or_no
from octopus_mcore.evals.files import ImageColumn, find_file, one_of, optional, read_items, read_records, text
from octopus_mcore.evals.metrics import accuracy, all_right, mean, means_by_tag, scores_by

_FOLDERS = ("", "hallusion_bench", "data", "images")
_SHARDS = ("data/image-*.parquet", "data/non_image-*.parquet")
_RATES = ("aAcc", "fAcc", "qAcc")
_UNCERTAIN = re.compile(
    r"\b(?:cannot|can't|can not|unable|not possible|impossible|unclear|uncertain|unknown|not sure|insufficient|not enough|"
    r"(?:do not|don't) know|(?:do not|does not|don't) have|not (?:provided|given|shown))\b",
    re.IGNORECASE,
)
_NO_PICTURE = re.compile(r"^\W*no (?:image|picture|figure|chart|table|map)\b", re.IGNORECASE)

_REPAIRS = (
    Repair(
        "VLMEvalKit: the whole prediction is searched for the words «yes» and «no»",
        "an answer is unknown, and without a judge wrong, once both occur: in a thought, or in «No, the sign says yes»",
        "the declared answer alone, and the word that it begins with",
        "test_evals_hallusionbench::test_graded_by_hand",
    ),
    Repair(
        "HallusionBench: the table's «accuracy per easy question» is a share of question pairs",
        "a pair with two easy questions (no picture, original picture) counts once, and only if both are right",
        "`aAcc/easy` and `aAcc/hard` are shares of questions",
        "test_evals_hallusionbench::test_metrics_by_hand",
    ),
    Repair(
        "HallusionBench, VLMEvalKit: a figure or a pair is whatever rows of it are there",
        "a cut file, or a part of the benchmark, has smaller groups, which are easier to get right",
        "a file in which a pair lacks its first figure is refused; groups evaluated in part do not count",
        "test_evals_hallusionbench::test_groups_evaluated_in_part_do_not_count",
    ),
)


def read(path: Path, split: str) -> list[Item]:
    """The questions of `HallusionBench.json`, of `HallusionBench.tsv` or of a folder of parquet files, with the sizes of their
    groups.

    Raises:
        RowError: rows that cannot be used.
        ValueError: a question pair has no row of its first figure: the file is not whole.
    """
    records = [record for place in _places(Path(path)) for record in read_records(place)]
    images = ImageColumn(records, "image" if "image" in records[0].fields else "filename", folders=_FOLDERS)
    item = _kit_item if "l2-category" in records[0].fields else _official_item
    items = read_items(records, lambda record: item(record, images))
    _check_pairs(items, path)
    kept = [item for item in items if split == "all" or item.row.images]
    sizes = {key: Counter(item.facts[key] for item in kept) for key in ("figure", "pair")}
    return [
        replace(item, facts=dict(item.facts) | {f"{key}_size": sizes[key][item.facts[key]] for key in sizes}) for item in kept
    ]


def _places(path: Path) -> list[str | Path]:
    """The file, or the patterns of parquet files in a folder that has them."""
    shards: list[str | Path] = [str(path / pattern) for pattern in _SHARDS if any(path.glob(pattern))] if path.is_dir() else []
    return shards or [find_file(path, ("HallusionBench.json", "HallusionBench.tsv"))]


def _official_item(record: Record, images: ImageColumn) -> Item:
    category = one_of(record, "category", ("VD", "VS"))
    place = _Place(category, text(record, "subcategory"), *(text(record, f"{key}_id") for key in ("set", "figure", "question")))
    visual = one_of(record, "visual_input", ("0", "1", "2"))
    truth = {"0": "no", "1": "yes"}[one_of(record, "gt_answer", ("0", "1"))]
    pictures = () if visual == "0" else images.of(record)
    return place.item(text(record, "question"), truth, pictures, {"difficulty": "hard" if visual == "2" else "easy"})


def _kit_item(record: Record, images: ImageColumn) -> Item:
    category = one_of(record, "category", ("VD", "VS"))
    parts = text(record, "index").split("_")
    if len(parts) < 6:
        raise RowError(
            f"{record.at('index')}: expected six parts, …_<set>_<figure>_<question>, found {text(record, 'index')!r}"
        )
    subcategory = text(record, "l2-category").removeprefix(f"{category}_")
    truth = one_of(record, "answer", ("Yes", "No")).lower()
    pictures = images.of(record) if optional(record, "image") else ()
    return _Place(category, subcategory, *parts[3:6]).item(text(record, "question"), truth, pictures, {})


class _Place:
    """Where a question stands: category, subcategory, set, figure, question."""

    def __init__(self, category: str, subcategory: str, *numbers: str) -> None:
        self._category, self._group = category, f"{category}_{subcategory}"
        self._set, self._figure, self._question = numbers

    def item(self, question: str, truth: str, pictures: tuple, tags: dict[str, str]) -> Item:
        """The item there. Without a picture it belongs to no figure."""
        figure = f"{self._group}_{self._set}_{self._figure}"
        facts = {
            "figure": figure if pictures else None,
            "pair": f"{self._group}_{self._set}_{self._question}",
            "first": self._figure == "0",
            "pictured": bool(pictures),
        }
        row = Row(f"hallusionbench:{figure}_{self._question}", question, truth, pictures)
        return Item(row, tags={"category": self._category, "subcategory": self._group} | tags, facts=facts)


def _check_pairs(items: Sequence[Item], path: Path) -> None:
    """Each pair has a row of figure 0. In a file without rows that have no picture, VS pairs lack theirs."""
    whole = any(not item.row.images for item in items)
    pairs = {item.facts["pair"] for item in items if whole or item.tags["category"] == "VD"}
    missing = sorted(pairs - {item.facts["pair"] for item in items if item.facts["first"]})
    if missing:
        raise ValueError(
            f"{path} is not whole: {len(missing)} question pairs lack their row of figure 0 ({', '.join(missing[:5])})"
        )


def grade(response: str, item: Item) -> Grade:
    """Right where the declared answer says the truth's word, or, without a picture, that it cannot be known."""
    answer, pictured = final_answer(response), item.facts["pictured"]
    if answer is None:
        return Grade(None, 0.0)
    if not pictured and _NO_PICTURE.match(answer):  # "No image was provided" is no "no"
        return Grade("uncertain", 1.0)
    word = yes_or_no(answer)
    if word is None and _UNCERTAIN.search(answer):
        return Grade("uncertain", float(not pictured))
    return Grade(word, float(word == item.truth))


def metrics(items: Sequence[Item], scores: Sequence[float]) -> dict[str, float]:
    """`average`, `aAcc`, `fAcc`, `qAcc`, then each by category, and aAcc by difficulty. Without a whole figure or pair that
    rate and the average are left out."""
    overall = _rates(items, scores)
    average = {"average": mean(list(overall.values()))} if len(overall) == len(_RATES) else {}
    found = average | overall
    for key in ("category", "subcategory"):
        for value in sorted({item.tags[key] for item in items}):
            chosen = [number for number, item in enumerate(items) if item.tags[key] == value]
            rates = _rates([items[number] for number in chosen], [scores[number] for number in chosen])
            found |= {f"{rate}/{value}": share for rate, share in rates.items()}
    by_difficulty = means_by_tag(items, scores, "difficulty")
    return found | {f"aAcc/{key.partition('/')[2]}": share for key, share in by_difficulty.items()}


def _rates(items: Sequence[Item], scores: Sequence[float]) -> dict[str, float]:
    found = {"aAcc": accuracy(items, scores)}
    for rate, key in (("fAcc", "figure"), ("qAcc", "pair")):
        sizes = {item.facts[key]: item.facts[f"{key}_size"] for item in items}
        groups = scores_by(items, scores, lambda item, key=key: item.facts[key])
        whole = [all_right(group) for name, group in groups.items() if len(group) == sizes[name]]
        found |= {rate: mean(whole)} if whole else {}
    return found


BENCHMARKS = {
    "hallusionbench": Benchmark(
        name="hallusionbench",
        title="HallusionBench",
        source="`HallusionBench.json` with its folder of images, or VLMEvalKit's `HallusionBench.tsv`, the file or its folder; "
        "or the folder of lmms-lab/HallusionBench",
        splits=("image", "all"),
        read=read,
        grade=grade,
        metrics=metrics,
        suffix="Please answer yes or no.",
        repairs=_REPAIRS,
    )
}
