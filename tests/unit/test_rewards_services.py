"""Judges of the user's own: real processes, real servers; what cannot be judged is never a zero."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from octopus_mcore.config.plugins import PluginError
from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.endpoints.http import EndpointError
from octopus_mcore.experience.buffer import buffer_metrics
from octopus_mcore.experience.journal import decode_group, encode_group
from octopus_mcore.experience.stages import ExcludeInvalid
from octopus_mcore.experience.statistics import difficulty_shares, rates, tally
from octopus_mcore.rewards.items import checked
from octopus_mcore.rewards.judge import Attempt, Judge, Response
from octopus_mcore.rewards.services import FAILURES_IN_A_ROW, JudgingError
from tests.experience_groups import attempt, group_of
from tests.json_server import Answer, chat_answer, serving

BAD = ("loop", "exit", "segfault", "memory", "raise", "lambda", "text", "two", "nan", "none")


def custom(target: str, workers: int = 2, **section) -> RewardConfig:
    section = {"target": f"tests.own_judges:{target}", **section}
    return RewardConfig(judge="custom", custom=section, workers=workers, timeout_seconds=1.5)


def verdicts(config: RewardConfig, answers, truth="Yes", question="") -> tuple[list[float | None], Judge]:
    with Judge(config) as judge:
        grades = judge.grade([Attempt(attempt(answer), truth, None, question) for answer in answers])
    return [grade.accuracy if grade.judged else None for grade in grades], judge


@pytest.mark.parametrize("batched", [False, True])
def test_a_custom_judge_survives_everything_and_what_fails_is_not_judged(batched):
    answers = ["yes", *BAD, "no", "half", "YES"]
    config = custom("same_batched" if batched else "same", batched=batched)
    found, judge = verdicts(config, answers)
    assert found == [1.0, *[None] * len(BAD), 0.0, 0.5, 1.0]
    assert judge.counts["unjudged"] == len(BAD) and judge.counts["custom/verdicts"] == 4
    assert judge.counts["custom/timeouts"] == 1 and judge.counts["custom/crashes"] == 2
    assert judge.counts["custom/errors"] == 6 and judge.counts["custom/abstained"] == 1


def test_a_function_in_a_file(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def right(answer, truth):\n    return answer in truth.split('|')\n")
    monkeypatch.chdir(tmp_path)
    for workers in (0, 1):
        config = RewardConfig(judge="custom", custom={"target": "mine.py:right"}, workers=workers)
        assert verdicts(config, ["a", "b", "c"], "a|c")[0] == [1.0, 0.0, 1.0]


def test_it_reads_the_question_where_it_is_batched():
    config = custom("by_question", batched=True, batch_size=2)
    assert verdicts(config, ["red", "blue", "green"], question="red or green?")[0] == [1.0, 0.0, 1.0]


def test_it_runs_where_it_is_asked_to():
    own = str(os.getpid())
    assert verdicts(custom("in_which_process"), ["x"], own)[0] == [1.0]
    for config in (custom("in_which_process", in_process=True), custom("in_which_process", workers=0)):
        assert verdicts(config, ["x"], own)[0] == [0.0]


def test_in_process_failures_are_not_judged_either():
    assert verdicts(custom("same", in_process=True), ["raise", "yes", "text"])[0] == [None, 1.0, None]
    assert verdicts(custom("same_batched", batched=True, in_process=True), ["raise", "yes"])[0] == [None, 1.0]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"target": "nowhere/judge.py:f"}, "no file .*nowhere/judge.py"),
        ({"target": "tests.own_judges:sane"}, "did you mean 'same'"),
        ({"target": "tests.own_judges:number"}, "no class or function"),
        ({"target": "tests.own_judges"}, "package.module:name"),
        ({"target": "tests/own_judges.py:missing"}, "no function 'missing'; it has same"),
        ({"target": "tests.own_judges:needs_three"}, "must take .answer, truth."),
        ({"target": "tests.own_judges:same", "batched": True}, "one list of items"),
    ],
)
def test_a_wrong_target_is_said_before_anything_is_judged(section, words):
    with pytest.raises(PluginError, match=words) as error:
        Judge(RewardConfig(judge="custom", custom=section))
    assert str(error.value).startswith("rewards.custom.target")


def test_a_file_that_cannot_be_run(tmp_path):
    (tmp_path / "broken.py").write_text("import nothing_like_it\n")
    with pytest.raises(PluginError, match="cannot be run: ModuleNotFoundError.*nothing_like_it"):
        Judge(RewardConfig(judge="custom", custom={"target": f"{tmp_path}/broken.py:f"}))


def test_a_judge_without_any_verdict_is_an_error_that_names_the_fault():
    with pytest.raises(JudgingError, match=r"rewards\.custom.*last 5 answers.*expected 1 verdicts"):
        verdicts(custom("one_short", batched=True, in_process=True), "abcde")


def test_few_answers_that_cannot_be_judged_are_an_error_only_in_a_row():
    with Judge(custom("same", in_process=True)) as judge:
        for _ in range(3):
            for answer in ("none", "text", "two"):
                assert not judge.grade([Attempt(attempt(answer), "yes")])[0].judged
            assert judge.grade([Attempt(attempt("yes"), "yes")])[0].judged
        with pytest.raises(JudgingError):
            for _ in range(FAILURES_IN_A_ROW):
                judge.grade([Attempt(attempt("none"), "yes")])


@pytest.mark.parametrize("said", ["1", b"1", -0.1, 1.1, float("nan"), 10**400, [1], {}, object()])
def test_what_is_no_verdict(said):
    with pytest.raises(ValueError, match="a verdict is"):
        checked(said)


def http(server, **section) -> RewardConfig:
    section = {"url": f"{server.url}/judge", "retries": 0, **section}
    return RewardConfig(judge="http", http=section, workers=0)


def equal(body, number):
    return {"scores": [item["answer"] == item["truth"] for item in body["items"]]}


def test_the_http_protocol():
    with serving(equal) as server:
        found, judge = verdicts(http(server, batch_size=2, concurrency=1), ["a", "Yes", "b"], question="Q?")
    assert found == [0.0, 1.0, 0.0]
    assert server.paths == ["/judge"] * 2
    assert server.bodies[0] == {
        "items": [{"question": "Q?", "answer": "Yes", "truth": "Yes"}, {"question": "Q?", "answer": "a", "truth": "Yes"}]
    }
    assert judge.counts == {"comparisons": 3, "http/verdicts": 3, "http/abstained": 0}


def test_scores_between_and_null():
    scores = {"a": 0.25, "b": None, "c": True}
    with serving(lambda body, number: {"scores": [scores[item["answer"]] for item in body["items"]]}) as server:
        found, judge = verdicts(http(server), "abc")
    assert found == [0.25, None, 1.0]
    assert judge.counts["http/abstained"] == 1 == judge.counts["unjudged"]


def test_a_batch_that_fails_is_asked_again_item_by_item():
    def answer(body, number):
        bad = any(item["answer"] == "poison" for item in body["items"])
        return Answer({"error": "too odd"}, 400) if bad else equal(body, number)

    with serving(answer) as server:
        found, judge = verdicts(http(server), ["a", "poison", "Yes", "b"])
    assert found == [0.0, None, 1.0, 0.0] and len(server.bodies) == 5
    assert judge.counts["http/unanswered"] == 1


def test_where_all_batches_fail_the_service_is_not_asked_again():
    with serving(lambda body, number: Answer({}, 500)) as server:
        with pytest.raises(JudgingError, match="rewards.http.*no answer in 1 attempts.*500"):
            verdicts(http(server, batch_size=2), ["a", "b", "c", "d", "e"])
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    "body", [{}, [], {"scores": [1]}, {"scores": "1111"}, {"scores": [1, 1, 1, 7]}, {"scores": ["1"] * 4}, {"score": [1] * 4}]
)
def test_an_answer_of_another_form_is_no_verdict(body):
    with serving(lambda asked, number: body if len(asked["items"]) > 1 else {}) as server:
        with pytest.raises(JudgingError, match="expected|a verdict is"):
            verdicts(http(server), "abcd")


def test_a_service_with_a_wrong_key_ends_judging():
    with serving(lambda body, number: Answer({}, 401)) as server:
        with pytest.raises(EndpointError, match="401"):
            verdicts(http(server), ["a"])


def test_a_language_model_judges_and_its_parts_are_counted():
    words = {"right": "Yes", "wrong": "No", "odd": "Hm"}

    def answer(body, number):
        text = body["messages"][0]["content"]
        return chat_answer(next(verdict for word, verdict in words.items() if f"\n{word}\n" in text))

    with serving(answer) as server:
        config = RewardConfig(judge="llm", llm={"url": server.url, "model": "m"}, workers=0)
        found, judge = verdicts(config, ["right", "wrong", "odd", "Yes"], question="Q?")
    assert found == [1.0, 0.0, None, 1.0]
    assert len(server.bodies) == 3, "an answer that is the truth, letter for letter, is not asked for"
    assert judge.counts["llm/unparsable"] == 1 == judge.counts["unjudged"]


def test_a_response_that_could_not_be_judged_is_excluded_and_no_statistic_counts_it():
    texts = [("yes",), ("none", "yes"), ("yes", "none"), ("no", "yes")]
    with Judge(custom("same", in_process=True)) as judge:
        judged = judge.judge([Response(tuple(map(attempt, each)), "Yes") for each in texts])
        paired = judge.pair(judged[1].attempts[0], judged[3].attempts[1])
    assert [judgement.valid for judgement in judged] == [True, False, False, True]
    assert judged[1].parts["invalid/unjudged"] == 1.0 and not paired.valid
    assert judged[2].first_correct and not judged[2].judged


def test_each_row_may_choose_among_them():
    with serving(equal) as server:
        config = RewardConfig(
            judge_key="kind",
            judges_by_value={"e": "exact", "h": "http", "c": "custom"},
            http={"url": server.url},
            custom={"target": "tests.own_judges:same"},
            workers=1,
        )
        with Judge(config) as judge:
            asked = [Attempt(attempt("yes"), "Yes", kind) for kind in ("exact", "http", "custom")]
            assert [grade.correct for grade in judge.grade(asked)] == [False, False, True]
    assert len(server.bodies) == 1


def test_equal_answers_to_several_questions_are_compared_once_unless_the_judge_reads_them():
    with serving(equal) as server, Judge(http(server)) as judge:
        judge.grade([Attempt(attempt("a"), "b", None, question) for question in ("q", "p", "q")])
        assert judge.counts["comparisons"] == 2
    with Judge(RewardConfig(judge="exact", workers=0)) as judge:
        judge.grade([Attempt(attempt("a"), "b", None, question) for question in ("q", "p", "q")])
        assert judge.counts["comparisons"] == 1


def test_statistics_and_training_leave_out_what_was_not_judged():
    texts = [("yes", "no"), ("yes", "none"), ("no", "yes")]
    with Judge(custom("same", in_process=True)) as judge:
        judged = judge.judge([Response(tuple(map(attempt, each)), "Yes") for each in texts])
    group = group_of(["cw", "cc", "wc"])
    pairs = zip(group.rollouts, judged, strict=True)
    group = replace(group, rollouts=tuple(replace(rollout, judgement=judgement) for rollout, judgement in pairs))
    counts = tally(group.rollouts)
    assert (counts["rollouts"], counts["unjudged"], counts["first_correct"], counts["final_correct"]) == (2, 1, 1, 1)
    assert rates(counts)["unjudged"] == pytest.approx(1 / 3) and rates(counts)["first_accuracy"] == 0.5
    assert difficulty_shares([group])["medium"] == 1.0
    (kept,) = ExcludeInvalid()([group], None)
    assert kept.rollouts == (group.rollouts[0], group.rollouts[2])
    assert buffer_metrics([group], [kept], None)["buffer/excluded/unjudged"] == 1.0
    assert decode_group(encode_group(group)).rollouts[1].judgement == judged[1]
