"""Grades that several benchmarks give: by the option that an answer names, or by the quantity that it is."""

from __future__ import annotations

from octopus_mcore.evals.benchmark import Grade, Item
from octopus_mcore.evals.extraction import chosen_option, final_answer
from octopus_mcore.evals.quantities import same_quantity


def by_option(response: str, item: Item) -> Grade:
    """Right where the declared answer names the option of the truth."""
    answer = final_answer(response)
    letter = None if answer is None else chosen_option(answer, item.choices)
    return Grade(letter, float(letter == item.truth))


def by_quantity(response: str, item: Item) -> Grade:
    """Right where the declared answer is the truth as a quantity. May run long."""
    answer = final_answer(response)
    return Grade(answer, float(answer is not None and same_quantity(answer, item.truth)))
