"""What Ocean-R1's benchmarks share (github.com/VLM-RL/Ocean-R1): its prompt, and its validation files in verl's layout.

Those files hold `prompt` (chat messages that begin with `<image>` and end with the instruction), `images: [{bytes, path}]`,
`reward_model.ground_truth` and `extra_info: {index, question, answer, image_paths, reward_func}`. The copies in the repository
have paths of the authors' machine and no bytes, those on the hub have bytes. The question is read from `extra_info.question`:
there is no instruction in it, and its image stands in front.
"""

from __future__ import annotations

from collections.abc import Sequence

from octopus_mcore.data.tables import Record
from octopus_mcore.evals.files import ImageColumn, text

SUFFIX = (
    "You FIRST think about the reasoning process as an internal monologue and then provide the final answer. The reasoning "
    "process MUST BE enclosed within <think> </think> tags. The final answer MUST BE in <answer> </answer> tags."
)
"""The instruction of Ocean-R1's training and evaluation; there a space stands before it."""

FOLDERS = ("", "images", "..", "../images")
"""Where images are looked for, from the questions' file on: beside it, or beside its folder (`eval_data/prompts`)."""


def in_verl_layout(record: Record) -> bool:
    """Whether a record is one of verl's."""
    return "reward_model" in record.fields and "extra_info" in record.fields


def field(record: Record, plain: str, verl: str) -> str:
    """A field by its key in the benchmark's own layout or in verl's (a dotted path), as text. Raises `RowError`."""
    if not in_verl_layout(record):
        return text(record, plain)
    return text(Record({verl: record.get(verl)}, record.file, record.number), verl)


def image_column(records: Sequence[Record], plain: str) -> ImageColumn:
    """The images of a file in either layout; paths may be of another machine."""
    key = "images" if in_verl_layout(records[0]) else plain
    return ImageColumn(records, key, folders=FOLDERS, moved=True)
