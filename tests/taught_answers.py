"""The digits task in the answer forms of other methods: rows to teach them with, and rows of two kinds for judges by row."""

from __future__ import annotations

from dataclasses import replace

from octopus_mcore.config.rollout import RethinkConfig
from octopus_mcore.data.digits import task
from octopus_mcore.data.digits.sources import DigitsSFTSource, DigitsSource
from octopus_mcore.data.digits.task import Way
from octopus_mcore.data.rows import Row
from octopus_mcore.data.sft import ResponsePiece
from octopus_mcore.runtime.seeds import numpy_generator

BOX, FAR_BOX = "[4, 4, 28, 12]", "[40, 4, 60, 12]"
TRIGGERS = [trigger.text for trigger in RethinkConfig().triggers]


class TwoKindsSource(DigitsSource):
    """Every other row asks for a box and has the `reward_func` `iou`, the rest `acc`."""

    def _row(self, index: int, seed: int) -> Row:
        row = super()._row(index, seed)
        if index % 2:
            return replace(row, question="Where?", answer=BOX, metadata={**row.metadata, "reward_func": "iou"})
        return replace(row, metadata={**row.metadata, "reward_func": "acc"})


class TaughtSource(DigitsSFTSource):
    """Responses in a form: `waits` (one attempt, or a second one behind a rethinking trigger), `tags` (Ocean-R1's, boxes right
    or wrong, of `TwoKindsSource`'s rows) or `reflections` (SRPO's; first answers may be wrong)."""

    def __init__(self, form: str, digits: int = 2, noise: float = 0.1) -> None:
        super().__init__(digits=digits, noise=noise)
        self.form = form
        if form == "tags":
            self._prompts = TwoKindsSource(digits=digits, noise=noise)

    def _response(self, row: Row, index: int, seed: int) -> tuple[ResponsePiece, ...]:
        generator = numpy_generator(seed, index, "taught response")
        digits, often, trigger = row.metadata["digits"], generator.random() < 0.75, TRIGGERS[generator.integers(len(TRIGGERS))]
        attempt = task.attempt(digits, Way.WORKED)
        if self.form == "waits":
            return (ResponsePiece(attempt + trigger + "\n\n" + attempt if often else attempt),)
        if self.form == "tags" and row.metadata["reward_func"] == "iou":
            return (ResponsePiece(f"<think>at a glance</think><answer>{{{BOX if often else FAR_BOX}}}</answer>"),)
        tagged = f"<think>{task.thinking(digits, Way.WORKED)}</think><answer>{task.value(digits)}</answer>"
        if self.form == "tags":
            return (ResponsePiece(tagged),)
        first = tagged if often else tagged.replace("<answer>", "<answer>1")
        return (ResponsePiece(f"{first}<reflection>look again</reflection>{tagged}"),)
