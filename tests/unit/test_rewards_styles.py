"""Where answers stand and which form is good, style by style (docs/rewards.md, «Styles»)."""

import time

import pytest

from octopus_mcore.config.rewards import RewardConfig, StyleName
from octopus_mcore.rewards.judge import Judge, Response
from octopus_mcore.rewards.styles import STYLES
from octopus_mcore.rewards.tags import blocks

TAGS = "<think>t</think><answer>4</answer>"
BOX = '<think>t</think><answer>{"bbox": [1, 2, 30, 40]}</answer>'


def judged(text, truth, **settings):
    with Judge(RewardConfig(workers=0, shaping="accuracy", **settings)) as judge:
        return judge.judge([Response((text,), truth)])[0]


def test_every_style_has_a_name_in_the_configuration():
    assert set(STYLES) == set(StyleName.__args__)


OCEAN_FORMAT = {
    # text: (meant, released), for accuracy rows
    TAGS: (True, True),
    "<think>t</think>\n\n<answer>4</answer>": (True, True),
    "\n" + TAGS: (True, False),
    " " + TAGS: (True, False),
    TAGS + "\n": (True, True),
    TAGS + " So it is 4.": (False, True),
    "Well. " + TAGS: (False, False),
    "<think>t</think> so <answer>4</answer>": (False, False),
    "<think>t</think>4": (False, False),
    "<answer>4</answer>": (False, False),
    "<think>t<answer>4</answer>": (False, False),
    "<answer>4</answer><think>t</think>": (False, False),
    TAGS + "<answer>5</answer>": (False, False),
    "<think>a</think>" + TAGS: (False, False),
    "<think>t</think><answer>4": (False, False),
    "<think>t</think></answer>4<answer>": (False, False),
    "": (False, False),
}


@pytest.mark.parametrize("text", OCEAN_FORMAT)
def test_ocean_format_of_accuracy_rows(text):
    meant, released = OCEAN_FORMAT[text]
    assert STYLES["answer_tags"].formatted(text, "ocean") is meant
    assert STYLES["answer_tags_reference"].formatted(text, "ocean_reference") is released


@pytest.mark.parametrize(
    ("answer", "formatted"),
    [
        ("{[1, 2, 30, 40]}", True),
        ('```json\n{"bbox_2d": [1,2,30,40], "label": "cat"}\n```', True),
        ("[1, 2, 30, 40]", False),
        ("{1, 2, 30, 40}", False),
        ("{[1, 2, 30]}", False),
        ("{[1.5, 2, 30, 40]}", False),
        ("{[-1, 2, 30, 40]}", False),
        ("[1, 2, 30, 40] {}", False),
        ("{} [1, 2, 30, 40]", False),
        ("4", False),
    ],
)
def test_ocean_format_of_box_rows_asks_for_integers_inside_braces(answer, formatted):
    text = f"<think>t</think><answer>{answer}</answer>"
    for style, judge in (("answer_tags", "iou"), ("answer_tags_reference", "iou_reference")):
        assert STYLES[style].formatted(text, judge) is formatted
    assert STYLES["answer_tags"].formatted(text, "ocean")


def test_a_thought_is_no_answer_but_in_the_released_program_it_is():
    """Defect O3: mathematics reads the whole response there, the thought first."""
    leak = "<think>the answer is 3</think><answer>4</answer>"
    assert not judged(leak, "3", style="answer_tags", judge="ocean").final_correct
    assert judged(leak, "4", style="answer_tags", judge="ocean").final_correct
    released = judged(leak, "3", style="answer_tags_reference", judge="ocean_reference", format_weight=0, format_bonus=0.1)
    assert released.final_correct and released.total == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (TAGS, "4"),
        ("<think><answer>3</answer></think><answer> 4 </answer>", "4"),
        ("<answer>3</answer><answer>4</answer>", "4"),
        ("<think>t</think>4", None),
        ("<think><answer>4</answer>", None),
        ("<think>t</think><answer>4", None),
    ],
)
def test_the_answer_is_the_last_block_behind_the_thought(text, answer):
    assert STYLES["answer_tags"].answers(text) == (() if answer is None else (answer,))


@pytest.mark.parametrize("factor", [0.1, 0.05])
def test_ocean_score_is_accuracy_plus_its_factor_times_format(factor):
    settings = dict(style="answer_tags", judge="ocean", format_weight=0, format_bonus=factor)
    assert judged(TAGS, "4", **settings).total == pytest.approx(1 + factor)
    assert judged(TAGS, "5", **settings).total == pytest.approx(factor)
    assert judged("<answer>4</answer>", "4", **settings).total == 1


@pytest.mark.parametrize(
    ("text", "meant", "released"),
    [
        (r"so \boxed{4}. Answer: 5", "4", (r"\boxed{4}. Answer: 5|", r"\boxed{5|}", r"so \boxed{4}. Answer: 5|")),
        (r"\boxed{3} no, \boxed{4}", "4", (r"\boxed{4}|", r"\boxed{3} no, \boxed{4}|")),
        ("<answer>3</answer><answer>4</answer>", "4", (r"\boxed{3}", "<answer>3</answer><answer>4</answer>|")),
        ("Answer: 3. Answer: 4", "4", (r"\boxed{4|}", "Answer: 3. Answer: 4|")),
        ("it is 4", None, ("it is 4|",)),
    ],
)
def test_rethinker_candidates(text, meant, released):
    assert STYLES["rethinker"].answers(text) == (() if meant is None else (meant,))
    found = STYLES["rethinker_reference"].answers(text)
    assert tuple(candidate.replace("<|im_end|>", "|") for candidate in found) == released


SRPO_FIRST = "<think>a</think><answer>It is $\\boxed{3}$.</answer>"
SRPO = SRPO_FIRST + "\n<reflection>too quick</reflection>\n<think>b</think><answer>\\boxed{4}</answer>"


def test_a_reflection_splits_a_response_into_two_attempts():
    judgement = judged(SRPO, "4", style="reflection")
    assert [grade.answer for grade in judgement.attempts] == ["3", "4"]
    assert (judgement.first_correct, judgement.final_correct) == (False, True)
    assert all(grade.formatted for grade in judgement.attempts)


@pytest.mark.parametrize(
    "text",
    [
        SRPO_FIRST,
        SRPO_FIRST + "<reflection>fine</reflection>",
        "<reflection>first of all</reflection>" + SRPO_FIRST,
        SRPO_FIRST + "<think>b</think><answer>4</answer>",
    ],
)
def test_without_a_second_answer_behind_it_no_reflection_splits(text):
    assert STYLES["reflection"].split(text) == (text,)


@pytest.mark.parametrize(
    ("attempt", "formatted"),
    [
        (SRPO_FIRST, True),
        ("<reflection>hm</reflection>" + SRPO_FIRST, True),
        ("<reflection> </reflection>" + SRPO_FIRST, False),
        ("<reflection>hm" + SRPO_FIRST, False),
        ("<reflection>a</reflection><reflection>b</reflection>" + SRPO_FIRST, False),
        ("<think></think><answer>4</answer>", False),
        (SRPO_FIRST + " So 3.", False),
    ],
)
def test_reflection_format(attempt, formatted):
    assert STYLES["reflection"].formatted(attempt, "math") is formatted


@pytest.mark.parametrize(
    ("attempt", "meant", "released"),
    [
        ("<think>a</think>\\boxed{1}", True, True),
        ("<think>a</think>\\boxed{1} or \\boxed{2}", True, True),
        ("Hm. <think>a</think>\\boxed{1}", False, False),
        ("<think>a</think>\\boxed{1}<self-correction>", False, True),
        ("<think>a</think>\\boxed{\\frac{1}{2}", False, True),
        ("<think>a</think>\\boxed{1", False, False),
        ("<think>a</think><think>\\boxed{1}", False, False),
    ],
)
def test_released_format_of_octopus(attempt, meant, released):
    assert STYLES["boxed"].formatted(attempt, "math") is meant
    assert STYLES["boxed_reference"].formatted(attempt, "math") is released


def test_a_cut_thought_has_an_answer_in_the_released_octopus_only():
    cut = "<think>maybe \\boxed{4}"
    assert STYLES["boxed"].answers(cut) == () and STYLES["boxed_reference"].answers(cut) == ("4",)


def test_truths_are_unpacked():
    assert judged("so \\boxed{4}", "\\boxed{4}", style="rethinker", judge="exact").final_correct
    assert judged(TAGS, "<answer>4</answer>", style="answer_tags", judge="exact").final_correct


HOSTILE = ["<answer>", "<think>", "</think>", "<think></think>", "\\boxed{", "{[1,", "<reflection>x</reflection>", " ", "[1, "]


@pytest.mark.parametrize("filler", HOSTILE)
@pytest.mark.parametrize("style", STYLES)
def test_no_response_takes_long_to_read(style, filler):
    """Styles run in the trainer's process, without a time limit."""
    chosen, judge = STYLES[style], "iou"
    began = time.thread_time()
    for text in (
        filler * (200_000 // len(filler)),
        "<think>t</think><answer>" + filler * (200_000 // len(filler)) + "</answer>",
    ):
        chosen.answers(text), chosen.formatted(text, judge), chosen.truth(text), chosen.split(text)
    assert time.thread_time() - began < 3


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<a>1</a> <a>2</a>", ["1", "2"]),
        ("<a>1<a>2</a>3</a>", ["1<a>2"]),
        ("<a></a>", [""]),
        ("</a><a>1", []),
        ("<a>1</a><a>2", ["1"]),
        ("<b>1</b>", []),
    ],
)
def test_blocks_do_not_overlap(text, found):
    assert blocks(text, "a") == found
