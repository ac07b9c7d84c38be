import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.rewards.judge import Judge, Response
from octopus_mcore.rewards.pool import ComparisonPool, Failure
from tests.experience_groups import attempt
from tests.misbehaving import behave
from tests.own_judges import same


@pytest.fixture(scope="module")
def pool():
    pool = ComparisonPool(workers=2, timeout_seconds=2.0)
    yield pool
    pool.close()


def test_it_survives_a_loop_a_crash_an_error_and_hunger_in_order(pool):
    answers = ["a", "loop", "b", "crash", "slow", "raise", "a", "memory", "exit", "a"]
    assert pool.run(behave, [(answer, "a") for answer in answers]) == [answer == "a" for answer in answers]
    assert pool.counts == {"timeouts": 1, "crashes": 1, "errors": 3}


def test_it_and_its_caller_survive_what_is_meant_for_more_than_one_process(pool):
    pool.counts.clear()
    assert pool.run(behave, [("a", "a"), ("group", "a"), ("interrupt", "a"), ("a", "a")]) == [True, False, False, True]
    assert pool.counts == {"crashes": 1, "errors": 1}


def test_results_may_be_anything_that_can_be_pickled_and_failures_say_why(pool):
    pool.counts.clear()
    asked = ["none", "exit", "raise", "lambda", "text", "segfault", "half"]
    results = pool.results(same, [(answer, "a") for answer in asked])
    assert [None if isinstance(result, Failure) else (result,) for result in results] == [
        (None,), None, None, None, ("1",), None, (0.5,),
    ]  # fmt: skip
    reasons = [result.reason for result in results if isinstance(result, Failure)]
    assert all(word in reason for word, reason in zip(["code 3", "Unbuildable: 1", "pickle", "code -11"], reasons, strict=True))
    assert pool.counts == {"crashes": 2, "errors": 2}
    assert pool.results(same, [(lambda: 1, "a"), ("a", "a")])[1] is True, "arguments that cannot be sent fail alone"


def test_it_goes_on_after_that_from_any_thread(pool):
    results = []
    thread = threading.Thread(target=lambda: results.extend(pool.run(behave, [("slow", "slow"), ("a", "a"), ("b", "a")])))
    thread.start()
    thread.join(30)
    assert results == [True, True, False]


def test_it_starts_again_when_its_workers_died_idle(pool):
    assert pool.run(behave, [("a", "a")]) == [True]
    for worker in list(pool._pool._pool_manager.worker_manager.workers.values()):
        os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.5)
    assert pool.run(behave, [("a", "a"), ("b", "a")]) == [True, False]


def test_a_loop_ends_by_itself_when_its_trainer_was_killed():
    program = "from octopus_mcore.rewards.pool import _guarded; from tests.misbehaving import behave; "
    assert subprocess.run([sys.executable, "-c", program + "_guarded(behave, 0.3, 'a', 'a')"], timeout=60).returncode == 0
    assert subprocess.run([sys.executable, "-c", program + "_guarded(behave, 0.3, 'loop', 'a')"], timeout=60).returncode == 1


def box(answer: str) -> str:
    return attempt(answer)


@pytest.fixture(scope="module")
def judge():
    with Judge(RewardConfig(timeout_seconds=2.0)) as judge:
        yield judge


def test_pathological_latex_is_wrong_and_counted_and_the_judge_goes_on(judge):
    answers = ["0.5", "9^{9^{9^{9^{9}}}}", "(" * 500, r"\frac{2}{4}"]
    judgements = judge.judge([Response((box(answer),), "1/2") for answer in answers])
    assert [judgement.final_correct for judgement in judgements] == [True, False, False, True]
    assert judge.counts["comparisons"] == 4 and judge.counts["timeouts"] + judge.counts["errors"] >= 1


def test_a_step_of_short_integers_takes_no_time_and_no_process():
    """32 prompts × 8 rollouts × 2 attempts."""
    with Judge(RewardConfig()) as judge:
        responses = [
            Response((box(str(prompt)), box(str(prompt + rollout % 3))), str(prompt))
            for prompt in range(32)
            for rollout in range(8)
        ]
        started = time.thread_time()
        judgements = judge.judge(responses)
        assert time.thread_time() - started < 3
        assert judge._pool._pool is None
    assert all(judgement.first_correct for judgement in judgements)
    assert sum(judgement.final_correct for judgement in judgements) == 32 * 3


def test_each_distinct_attempt_is_graded_once(monkeypatch):
    graded = []
    monkeypatch.setattr("octopus_mcore.rewards.styles.well_formatted", lambda text: bool(graded.append(text)) or True)
    with Judge(RewardConfig(judge="exact", workers=0)) as judge:
        grades = judge.grade([(box("1"), "1"), (box("2"), "1"), (box("1"), "1"), (box("1"), "2")])
    assert [grade.correct for grade in grades] == [True, False, True, False]
    assert sorted(graded) == sorted([box("1"), box("2"), box("1")]), "(text, truth) pairs, each once"
    assert judge.counts["comparisons"] == 3


def test_judging_without_workers_gives_the_same_verdicts(judge):
    responses = [Response((box(answer),), truth) for answer, truth in [("1/2", "0.5"), ("x", "y"), ("3", "3"), (r"\pi", "3")]]
    with Judge(RewardConfig(workers=0)) as inside:
        assert inside.judge(responses) == judge.judge(responses)


def test_an_invalid_response_says_why_and_keeps_its_grades():
    with Judge(RewardConfig(workers=0)) as judge:
        judgement = judge.judge([Response((box("1"), box("2")), "2", invalid="vision_token")])[0]
    assert not judgement.valid and judgement.parts["invalid/vision_token"] == 1 and judgement.final_correct
