import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.rewards.boxed import last_boxed
from octopus_mcore.rewards.format import attempt_answer, well_formatted

BALANCED = st.recursive(
    st.text(alphabet="ab1 +\\", max_size=4).map(lambda text: text.replace("\\", r"\}")),
    lambda inner: st.tuples(inner, inner).map(lambda pair: f"{pair[0]}{{{pair[1]}}}"),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed{1} so \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{}", ""),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"{ \boxed{7} } }", "7"),
        (r"} { \boxed{7}", "7"),
        (r"\boxed 5", None),
        (r"boxed{5}", None),
        ("", None),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


@settings(deadline=None)
@given(BALANCED, st.text(alphabet="a{}\\", max_size=8))
def test_any_balanced_content_is_found_whatever_stands_in_front(content, before):
    before = before.rstrip("\\")
    assert last_boxed(before + r" \boxed{" + content + "}") == content


def test_boxes_without_end_take_linear_time():
    started = time.thread_time()
    assert last_boxed(r"\boxed{" * 100_000) is None
    assert time.thread_time() - started < 3


GOOD = "<think>a</think>\n\n\\boxed{1}"


@pytest.mark.parametrize(
    ("attempt", "formatted", "answer"),
    [
        (GOOD, True, "1"),
        ("\n" + GOOD + "\n\n", True, "1"),
        ("<think>a</think> It is \\boxed{ 1 }.", True, "1"),
        ("<think></think>\\boxed{}", True, ""),
        ("<think>\\boxed{3}</think>\\boxed{1}", True, "1"),
        ("<think>quoting <self-correction> </self-correction></think>\\boxed{1}", True, "1"),
        ("\\boxed{1}", False, "1"),
        ("Hm. " + GOOD, False, "1"),
        ("<think>a</think>", False, None),
        ("<think>\\boxed{1}</think> so one", False, None),
        ("<think>a \\boxed{1}", False, None),
        ("<think>a</think>\\boxed{1", False, None),
        (GOOD + GOOD, False, "1"),
        ("<think>a</think></think>\\boxed{1}", False, "1"),
        (GOOD + "\n\n<self-correction>\n</self-correction>\n\n", False, "1"),
        (GOOD + "\n\n<self-correction>", False, "1"),
        ("a</think>\\boxed{1}", False, "1"),
        ("", False, None),
    ],
)
def test_format_and_answer_of_an_attempt(attempt, formatted, answer):
    assert well_formatted(attempt) is formatted
    assert attempt_answer(attempt) == answer
