"""A benchmark's grading in killable processes, and by a language model behind a real server."""

from collections import Counter
from dataclasses import replace

import pytest

from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.config.rewards_services import LlmJudgeConfig
from octopus_mcore.data.rows import Row
from octopus_mcore.evals.benchmark import Grade, Item
from octopus_mcore.evals.judge import BenchmarkJudge, language_model
from octopus_mcore.evals.registry import MODULES, benchmark
from octopus_mcore.experience.types import Prompt
from octopus_mcore.rewards.judge import Attempt, Response
from octopus_mcore.rewards.services import JudgingError, Services
from tests import tiny_benchmark
from tests.json_server import Answer, chat_answer, serving

ITEM = Item(Row("tiny:0", "How many?", "12", (b"x" * 2**20,)))
CHOSEN = Item(Row("tiny:1", "Which?", "B"), choices=("2 cm", "10 cm"))


def boxed(answer):
    return f"<think>\\boxed{{12}}</think> \\boxed{{{answer}}}"


def make(workers=0, timeout=5.0, **options):
    return BenchmarkJudge(tiny_benchmark.BENCHMARK, [ITEM, CHOSEN], workers, timeout, **options)


def test_attempts_are_graded_by_the_benchmark_and_paired():
    with make() as judge:
        asked = [((boxed("7"), boxed("12")), None), ((boxed("2"),), None), (("no box",), "vision_token")]
        found = judge.judge([Response(texts, "12", invalid=invalid, judge="tiny:0") for texts, invalid in asked])
    assert [(j.first_correct, j.final_correct, j.total, j.valid) for j in found] == [
        (False, True, 1.0, True), (False, False, 0.5, True), (False, False, 0.0, False)
    ]  # fmt: skip
    assert [grade.answer for grade in found[0].attempts] == ["7", "12"] and found[2].attempts[0].answer is None
    assert found[1].attempts[0].accuracy == 0.5 and found[1].attempts[0].text == boxed("2")


def test_a_row_asks_for_its_item():
    with make() as judge:
        assert judge.of(Prompt("tiny:1", (1,), "Which?", "B")) == "tiny:1"
        with pytest.raises(ValueError, match="tiny has no item 'tiny:9'"):
            judge.of(Prompt("tiny:9", (1,), "?", "1"))
        assert judge.grade([Attempt(boxed("B"), "B", "tiny:1"), Attempt(boxed("B"), "12", "tiny:0")])[0].correct


def test_grading_that_never_ends_or_fails_is_wrong_and_counted():
    with make(workers=1, timeout=0.5) as judge:
        grades = judge.grade([Attempt(boxed(text), "12", "tiny:0") for text in ("hang", "12", "raise", "12")])
        assert [grade.correct for grade in grades] == [False, True, False, True]
        assert judge.counts == Counter(comparisons=3, timeouts=1, errors=1)
        assert judge.notes() == ["1 timeouts, 1 errors among 3 gradings by rules; these answers count as wrong"]


def test_pixels_stay_where_they_are():
    """A worker would otherwise get every picture with every answer."""
    judge = make()
    assert [item.row.images for item in judge._items.values()] == [(), ()]


def test_a_score_outside_its_range_is_an_error():
    odd = replace(tiny_benchmark.BENCHMARK, grade=lambda text, item: Grade("x", 3.0))
    with BenchmarkJudge(odd, [ITEM], 0) as judge, pytest.raises(ValueError, match=r"tiny:0: expected a score in \[0, 1\]"):
        judge.grade([Attempt("x", "12", "tiny:0")])


def by_model(server, counts):
    return language_model(Services(RewardConfig(judge="llm", llm=LlmJudgeConfig(url=server.url, model="m")), None), counts)


def test_a_language_model_grades_what_the_rules_extracted():
    def reply(body, number):
        text = body["messages"][0]["content"]
        if "twelve" in text:
            assert "How many?" in text and "12" in text and "think" not in text
            return chat_answer("Yes")
        return chat_answer("No") if "seven" in text else chat_answer("It depends." if "around" in text else "Yes")

    with serving(reply) as server:
        counts = Counter()
        with make(grader=by_model(server, counts), counts=counts) as judge:
            texts = ("twelve", "seven", "12", "around")
            grades = judge.grade([*(Attempt(boxed(text), "12", "tiny:0") for text in texts), Attempt("none", "12", "tiny:0")])
            chosen = judge.grade([Attempt(boxed("10 cm"), "B", "tiny:1")])
    assert [(grade.correct, grade.judged) for grade in grades] == [
        (True, True), (False, True), (True, True), (False, False), (False, True)
    ]  # fmt: skip
    assert len(server.bodies) == 4  # not for the truth's own text, nor where there is no answer
    assert chosen[0].correct and "B. 10 cm" in server.bodies[-1]["messages"][0]["content"]
    assert judge.counts["unjudged"] == 1 and judge.notes() == ["the language model gave no verdict on 1 answers"]


def test_a_language_model_that_is_down_is_an_error():
    with serving(lambda body, number: Answer(status=500)) as server:
        config = LlmJudgeConfig(url=server.url, model="m", retries=0)
        services = Services(RewardConfig(judge="llm", llm=config), None)
        with make(grader=language_model(services, Counter())) as judge, pytest.raises(JudgingError, match="gave no verdict"):
            judge.grade([Attempt(boxed(str(number)), "12", "tiny:0") for number in range(5)])


def test_benchmarks_by_name_and_by_import_path():
    for name in MODULES:
        assert benchmark(name).name == name
    assert benchmark(tiny_benchmark.NAME) is tiny_benchmark.BENCHMARK
    with pytest.raises(ValueError, match="there is no benchmark 'refcoc'; did you mean 'refcoco'"):
        benchmark("refcoc")
    with pytest.raises(ValueError, match="cannot be imported"):
        benchmark("tests.nowhere:BENCHMARK")
    with pytest.raises(ValueError, match="expected a Benchmark .* found str"):
        benchmark("tests.tiny_benchmark:SUFFIX")
