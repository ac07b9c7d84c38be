"""What holds for the benchmarks of mathematics, charts and text in pictures alike: any text has a grade, metrics know no order.

(The others' are in test_evals_properties; these have metrics that are no shares, or of nothing in a small set.)"""

from __future__ import annotations

import importlib
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.data.row_reader import Row
from octopus_mcore.evals.benchmark import Item
from octopus_mcore.evals.mathverse import VERSIONS
from octopus_mcore.evals.ocrbench import CATEGORIES
from octopus_mcore.evals.registry import MODULES, benchmark
from octopus_mcore.evals.wemath import PARTS

NAMES = ("charxiv", "mathverse", "mathvision", "mathvista", "ocrbench", "wemath")
CHOICES = ("12", "a cat", "$\\sqrt{2}$", "None")
PIECES = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "\\boxed{",
    "}",
    "[",
    "]",
    "(B)",
    "B",
    "a cat",
    "12",
    "√{",
    "π",
    "^",
    "10",
]
PIECES += [
    "1, 2",
    "cm^2",
    "=",
    "≈",
    "\n",
    ". ",
    "The answer is ",
    "and",
    "λ",
    "\\frac{1}{",
    "$",
    "<Answer>: <<",
    ">>",
    "%",
    "/0",
]


def item(name: str, number: int) -> Item:
    """An item like those that the benchmark's reader makes; 0 to 6 of We-Math are two whole groups."""
    chosen, tags, facts = number % 2 == 0, {}, {}
    if name == "charxiv":
        tags = {"answer_type": ("text-in-chart", "number-in-chart", "text-in-general", "number-in-general")[number % 4]}
        return Item(Row(f"{name}:{number}", "?", "12"), (), tags)
    if name == "mathverse":
        tags = {"problem_version": VERSIONS[number % 5], "subject": str(number % 2)}
        tags["question_type"] = "multi-choice" if chosen else "free-form"
    elif name == "mathvision":
        tags = {"level": str(1 + number % 5), "subject": "logic"}
    elif name == "mathvista":
        kind = ("text", "integer", "float1", "list")[number % 4]
        chosen, facts = kind == "text", {"kind": kind, "skills": ("logic",), "text": "a cat"}
        return Item(
            Row(f"{name}:{number}", "?", {"text": "B", "list": "[1, 2]"}.get(kind, "12")),
            CHOICES if chosen else (),
            tags,
            facts,
        )
    elif name == "ocrbench":
        tags = {"category": CATEGORIES[number % 10], "component": CATEGORIES[number % 10]}
        return Item(Row(f"{name}:{number}", "?", "12"), (), tags, {"answers": ("12", "\\sqrt { 2 }")})
    elif name == "wemath":
        chosen, kind = True, "2steps" if number < 3 else "3steps"
        part = PARTS[kind][number if number < 3 else (number - 3) % 4]
        tags, facts = {"steps": "one-step", "field": part}, {"group": f"{kind}_1", "kind": kind, "part": part, "concept": part}
    return Item(Row(f"{name}:{number}", "?", "B" if chosen else "12"), CHOICES if chosen else (), tags, facts)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=25)
@given(pieces=st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=12), number=st.integers(0, 6))
def test_any_text_has_a_grade(name, pieces, number):
    found = benchmark(name).grade("".join(pieces), item(name, number))
    assert found.score in (0.0, 1.0)
    assert found.score == 0.0 or found.answer is not None


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=15)
@given(scores=st.lists(st.floats(0, 1), min_size=7, max_size=7), seed=st.integers(0, 100))
def test_metrics_know_no_order(name, scores, seed):
    items, metrics = [item(name, number) for number in range(7)], benchmark(name).metrics
    order = random.Random(seed).sample(range(7), 7)
    found, again = metrics(items, scores), metrics([items[i] for i in order], [scores[i] for i in order])
    assert list(found) == list(again)
    for key, value in found.items():
        assert value == again[key] or math.isnan(value) and math.isnan(again[key])
        assert math.isnan(value) or -1e-12 <= value <= (1000 if key == "score" else 1 + 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_scores_belong_to_items(name):
    with pytest.raises(ValueError, match="one score an item"):
        benchmark(name).metrics([item(name, 0)], [])


@pytest.mark.parametrize("name", NAMES)
def test_modules_say_what_they_do(name):
    said = importlib.import_module(f"octopus_mcore.evals.{MODULES[name]}").__doc__
    assert [word for word in ("Source:", "Prompt:", "Extraction:", "Metric:") if word not in said] == []
