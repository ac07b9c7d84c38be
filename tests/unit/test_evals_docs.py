"""The page of benchmarks is that of the registry, and docs/evaluation.md names what there is."""

import importlib
import re
from pathlib import Path

from octopus_mcore.config.evaluation import EvalConfig, EvalSetConfig
from octopus_mcore.config.pages import write_or_check
from octopus_mcore.evals import harness
from octopus_mcore.evals.docs import render
from octopus_mcore.evals.registry import MODULES, benchmark

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_the_committed_page_is_up_to_date():
    up_to_date, message = write_or_check(REPOSITORY / "docs" / "benchmarks.md", render(), check=True)
    assert up_to_date, message


def test_it_has_every_benchmark_and_every_repair():
    page = render()
    for name in MODULES:
        assert f"| `{name}` |" in page
        for repair in benchmark(name).repairs:
            assert repair.test in page


def test_every_module_says_what_a_reader_needs():
    """Where its files come from, how it asks and measures; how it extracts stands in words of its own."""
    for module in set(MODULES.values()):
        text = importlib.import_module(f"octopus_mcore.evals.{module}").__doc__
        for word in ("(Source|Files):", "Prompt:", "Metrics?"):
            assert re.search(rf"^{word}", text, re.MULTILINE), (module, word)


def test_keys_and_commits_of_the_page_exist():
    keys = {*EvalConfig.model_fields, *EvalSetConfig.model_fields}
    assert {key.split(".")[-1] for key in re.findall(r"`?eval\.([a-z_.]+)", PAGE)} <= keys
    assert harness.VLMEVALKIT_COMMIT[:8] in PAGE and harness.LMMS_EVAL_COMMIT[:8] in PAGE
