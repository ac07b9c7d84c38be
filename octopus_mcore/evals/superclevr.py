r"""SuperCLEVR counting: how many things of a kind are in a rendered picture of vehicles?

Source: Li et al. 2023 (arXiv 2212.00259). R1-V took 200 questions of its test set, Ocean-R1 5,000 over 2,442 images; read are
their files, `superclevr_test200_counting_problems.jsonl` and `super_clevr_test_5k.jsonl`: `image_path`, `question` and
`ground_truth`, a whole number (0 to 8, mostly below 3; 3 to 10 among the 200). Images stand beside the file or its folder, or
in an `images` folder there. Both files were read as they are published, with other images.

Prompt: the question with Ocean-R1's suffix. It allowed 256 new tokens.

Extraction: the number in what the response declares behind its thought: the only number in the answer, or else in its last
sentence; in words too ("three", "none"), if there are no digits.

Metric: share of right numbers, then by the right number. A response that ends within its thought has no answer (`Grade.answer`
is None) and is wrong; the share of responses that their length limit cut is told beside the metrics. Where it is not about 0
the limit measures how briefly a model thinks, and should be raised.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from octopus_mcore.data.row_reader import Row
from octopus_mcore.data.tables import Record, RowError
from octopus_mcore.evals.benchmark import Benchmark, Grade, Item, Repair
from octopus_mcore.evals.extraction import final_answer, only_number
from octopus_mcore.evals.files import ImageColumn, find_file, read_items, read_records, text, whole_number
from octopus_mcore.evals.metrics import accuracy, means_by_tag
from octopus_mcore.evals.ocean import SUFFIX, image_column

_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty"
).split()
_WORD = re.compile(rf"\b({'|'.join(_WORDS)})\b", re.IGNORECASE)
_NONE = re.compile(r"^\W*(?:none|no)\b(?![.,:]?\s+(?:\d|way|idea))|\b(?:are|is) (?:no|none)\b", re.IGNORECASE)
_SENTENCE = re.compile(r"\n+|(?<=[.!?])\s+")

_REPAIRS = (
    Repair(
        "Ocean-R1: the answer is the first `<answer>` block that holds digits and nothing else",
        "«3 objects», «three», `\\boxed{3}` and a bare 3 are wrong, so that a baseline is graded on its tags",
        "the one number in whatever is declared",
        "test_evals_superclevr::test_graded_by_hand",
    ),
    Repair(
        "Ocean-R1: a response that is cut off at 256 tokens is wrong like any other",
        "long reasoning loses to short without a word",
        "no answer is told apart from a wrong one, and counted",
        "test_evals_superclevr::test_a_cut_thought_has_no_answer",
    ),
    Repair(
        "Ocean-R1: the first `<answer>` block counts, be it in the thought",
        "`<think>maybe <answer>2</answer></think><answer>3</answer>` is 2",
        "the last block behind the thought",
        "test_evals_superclevr::test_graded_by_hand",
    ),
)


def read(path: Path, split: str) -> list[Item]:
    """The questions of one of the files, or of a folder that holds one (the 5,000 where it holds both)."""
    names = ("super_clevr_test_5k.jsonl", "superclevr_test200_counting_problems.jsonl")
    records = read_records(find_file(path, [*names, *(f"prompts/{name}" for name in names)]))
    images = image_column(records, "image_path")
    return read_items(records, lambda record: _item(record, images))


def _item(record: Record, images: ImageColumn) -> Item:
    truth = whole_number(record, "ground_truth")
    if truth is None or truth < 0:
        raise RowError(f"{record.at('ground_truth')}: expected a number of things, found {record.get('ground_truth')!r:.80}")
    picture = PurePosixPath(text(record, "image_path")).stem
    row = Row(f"superclevr:{record.number}-{picture}", text(record, "question"), str(truth), images.of(record))
    return Item(row, tags={"count": str(truth)})


def grade(response: str, item: Item) -> Grade:
    """Right where the declared number is the truth."""
    answer = final_answer(response)
    number = None if answer is None else counted(answer)
    return Grade(answer if number is None else number, float(number == item.truth))


def counted(answer: str) -> str | None:
    """The number that an answer gives, as digits ("3"; "3.5" where it is no whole one); None for none or several."""
    sentences = [sentence for sentence in _SENTENCE.split(answer) if sentence.strip()]
    for part in (answer, *sentences[-1:]):
        if (number := _number(part)) is not None:
            return number
    return None


def _number(text: str) -> str | None:
    if (digits := only_number(text)) is not None:
        value = float(digits)
        return str(int(value)) if value.is_integer() else digits
    if re.search(r"\d", text):
        return None
    words = {word.lower() for word in _WORD.findall(text)}
    if len(words) > 1:
        words.discard("one")  # "the two red ones, the small one too" counts by its other word
    if len(words) == 1:
        return str(_WORDS.index(words.pop()))
    return "0" if not words and _NONE.search(text) else None


def metrics(items: Sequence[Item], scores: Sequence[float]) -> dict[str, float]:
    """`accuracy`, then by the right number."""
    by_count = means_by_tag(items, scores, "count")
    return {"accuracy": accuracy(items, scores)} | dict(
        sorted(by_count.items(), key=lambda pair: int(pair[0].partition("/")[2]))
    )


BENCHMARKS = {
    "superclevr": Benchmark(
        name="superclevr",
        title="SuperCLEVR counting",
        source="Ocean-R1's `super_clevr_test_5k.jsonl` or R1-V's `superclevr_test200_counting_problems.jsonl`, and its images",
        splits=("test",),
        read=read,
        grade=grade,
        metrics=metrics,
        suffix=SUFFIX,
        repairs=_REPAIRS,
    )
}
