"""What resumes besides weights and optimizer, how it stands in a checkpoint, and the images that its prompts need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from octopus_mcore.data.processor import Processor
from octopus_mcore.data.rows import PromptSource
from octopus_mcore.experience.journal import append_groups, read_groups
from octopus_mcore.experience.state import groups_in, with_groups, without_groups
from octopus_mcore.experience.types import Prompt
from octopus_mcore.models.checkpoint_folder import read_state

BUFFER_FILE = "buffer.jsonl"
"""The groups that the buffer keeps, in a checkpoint's folder; absent where it keeps none."""


@dataclass
class RunState:
    """What resumes besides weights and optimizer: the place in the run, the data cursors (of `data.train`, and by key those of
    phases' own sources), the buffer's state, the best so far; and the settings of the model that must be the same again.

    `buffer` may hold whole groups. `image_rows` says for each image of the last step's prompts, and of prompts that the buffer
    keeps, which row of the phase's source holds it: pixels are not saved, they are read again.
    """

    phase: str = ""
    step: int = 0
    prompts_drawn: int = 0
    own_drawn: dict[str, int] = field(default_factory=dict)
    buffer: Mapping[str, Any] = field(default_factory=dict)
    image_rows: dict[str, int] = field(default_factory=dict)
    best: float | None = None
    model_path: str | None = None
    model_checkpoint: str | None = None
    freeze_vision: bool = False

    @property
    def kept_prompts(self) -> list[Prompt]:
        """The prompts of the groups that the buffer keeps."""
        return [group.prompt for group in groups_in(self.buffer)]

    def as_json(self) -> dict[str, Any]:
        """Everything but the groups, which `write_groups` writes."""
        kept = images_of(self.kept_prompts)
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        image_rows = {key: row for key, row in self.image_rows.items() if key in kept}
        return {**plain, "buffer": without_groups(self.buffer), "image_rows": image_rows}

    def write_groups(self, folder: Path) -> None:
        """Writes the groups that the buffer keeps into a checkpoint's folder, if there are any."""
        if groups := list(groups_in(self.buffer)):
            append_groups(folder / BUFFER_FILE, groups)


def read_run_state(folder: Path) -> RunState:
    """The state in a finished checkpoint.

    Raises:
        FileNotFoundError: the folder is none.
        ValueError: a file of it is damaged.
    """
    known = RunState.__dataclass_fields__
    state = RunState(**{key: value for key, value in read_state(folder).items() if key in known})
    file = folder / BUFFER_FILE
    try:
        state.buffer = with_groups(state.buffer, list(read_groups(file)) if file.is_file() else [])
    except ValueError as error:
        raise ValueError(f"{error}; the checkpoint {folder} is damaged") from error
    return state


def images_of(prompts: list[Prompt]) -> set[str]:
    """The keys of all their images."""
    return {image.key for prompt in prompts for image in prompt.images}


def restore_images(state: RunState, source: PromptSource, seed: int, processor: Processor) -> None:
    """Reads images again that the buffer's prompts need and a restart has forgotten.

    Raises:
        ValueError: the source's rows do not hold them any more.
    """
    missing = [key for key in sorted(images_of(state.kept_prompts)) if key not in processor.images]
    for row in sorted({state.image_rows[key] for key in missing if key in state.image_rows}):
        processor.prompts(source.rows(row, 1, seed))
    if lost := [key for key in missing if key not in processor.images]:
        raise ValueError(
            f"{len(lost)} images of prompts that the replay pool keeps are not in the training data any more (row "
            f"{state.image_rows.get(lost[0])} no longer holds image {lost[0]}): put the data back as they were when the "
            "checkpoint was written"
        )
