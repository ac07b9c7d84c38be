"""What holds for benchmarks alike: their grades survive any text, their metrics know no order, their repairs have tests."""

import importlib
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.data.rows import Row
from octopus_mcore.evals.benchmark import Benchmark, Item
from octopus_mcore.evals.registry import MODULES, benchmark

TASKS = ("Count", "Relation", "Depth", "Distance")
SOURCES = ("ADE20K", "COCO", "Omni3D")
CHOICES = ("a cat", "14", "left", "None")


def _item(name: str, number: int) -> Item:
    """An item like those that the benchmark's reader makes."""
    tags: dict[str, str] = {}
    facts: dict[str, object] = {}
    truth, choices = "3", ()
    if name == "cvbench":
        tags = {"task": TASKS[number % 4], "type": ("2D", "3D")[number % 2], "source": SOURCES[number % 3]}
        truth, choices = "B", CHOICES
    elif name == "mmstar":
        truth, choices, tags = "B", CHOICES, {"category": str(number % 3), "l2_category": str(number % 5)}
    elif name == "mmmu":
        facts = {"truths": ("B",) if number % 2 else ("3.5", "7/2")}
        truth, choices = ("B", CHOICES) if number % 2 else ("3.5", ())
        tags = {"discipline": str(number % 2), "subject": str(number % 4)}
    elif name == "superclevr":
        truth, tags = str(number % 4), {"count": str(number % 4)}
    elif name.startswith("refcoco"):
        tags = {"set": ("refcoco", "refcoco+", "refcocog")[number % 3]}
        facts = {"box": (10.0, 10.0, 30.0, 30.0), "scale": (1.0, 0.5)}
    elif name == "hallusionbench":
        truth = ("yes", "no")[number % 2]
        tags = {"category": "VS", "subcategory": f"VS_{number % 2}", "difficulty": ("easy", "hard")[number % 2]}
        facts = {"figure": number // 3, "figure_size": 3, "pair": number % 6, "pair_size": 2, "pictured": number % 4 > 0}
    return Item(Row(f"{name}:{number}", "?", truth), choices, tags, facts)


OURS = (
    "cvbench",
    "geometry3k",
    "geoqa",
    "hallusionbench",
    "mmmu",
    "mmstar",
    "refcoco",
    "superclevr",
)
PIECES = ["<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "}", "[", "]", "(B)", "B", "a cat", "14", "3", "√{", "π"]
PIECES += ["1, 2, 3, 4", "cm^2", "=", "≈", "\n", ". ", "The answer is ", "yes", "no", "one", "\\frac{1}{", "$", "A:", ":", "is"]


@pytest.mark.parametrize("name", OURS)
@settings(deadline=None, max_examples=25)
@given(pieces=st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=12), number=st.integers(0, 5))
def test_any_text_has_a_grade(name, pieces, number):
    grade = benchmark(name).grade("".join(pieces), _item(name, number))
    assert grade.score in (0.0, 1.0)
    assert grade.score == 0.0 or grade.answer is not None


@pytest.mark.parametrize("name", OURS)
@settings(deadline=None, max_examples=25)
@given(data=st.data(), scores=st.lists(st.floats(0, 1), min_size=12, max_size=12))
def test_metrics_know_no_order_and_stay_in_range(name, data, scores):
    items, metrics = [_item(name, number) for number in range(12)], benchmark(name).metrics
    found = metrics(items, scores)
    order = data.draw(st.permutations(range(12)))
    assert list(metrics([items[i] for i in order], [scores[i] for i in order]).items()) == list(found.items())
    assert all(0 <= value <= 1 for value in found.values())


@pytest.mark.parametrize("name", OURS)
def test_all_right_is_one_and_all_wrong_is_zero(name):
    items, metrics = [_item(name, number) for number in range(12)], benchmark(name).metrics
    assert set(metrics(items, [1.0] * 12).values()) == {1.0}
    assert set(metrics(items, [0.0] * 12).values()) == {0.0}
    with pytest.raises(ValueError, match="one score an item"):
        metrics(items, [1.0] * 11)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_benchmarks_say_what_they_are(name):
    found = benchmark(name)
    assert isinstance(found, Benchmark) and found.name == name and found.title and found.source and found.splits
    assert pickle.loads(pickle.dumps(found.grade)) is found.grade  # it runs in worker processes
    if name in OURS:
        said = importlib.import_module(f"octopus_mcore.evals.{MODULES[name]}").__doc__
        assert [word for word in ("Source:", "Prompt:", "Extraction:", "Metric:") if word not in said] == []
    for repair in found.repairs:
        module, _, test = repair.test.partition("::")
        tests = Path(__file__).parent / f"{module}.py"
        assert tests.is_file() and f"def {test}(" in tests.read_text(), repair.test
