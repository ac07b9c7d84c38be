import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from octopus_mcore.data.special_tokens import read_special_tokens
from octopus_mcore.experience.spans import SEPARATOR, SpanFinder, token_bytes
from octopus_mcore.experience.types import SpanKind
from tests.experience_groups import attempt, encode, finder, qwen_like_tokenizer

ONE, TWO = attempt("1"), attempt("2", "again")
TAGS = SEPARATOR.strip()
END = "<|im_end|>"


def cut(text: str) -> list[tuple[str, str]]:
    """(kind, text) of each span of the text's canonical tokens."""
    ids = encode(text)
    tokenizer = qwen_like_tokenizer()
    return [(span.kind.value, tokenizer.decode(ids[span.start : span.end])) for span in finder().find(ids, 0)]


def kinds(text: str) -> list[str]:
    return [kind for kind, _ in cut(text)]


def test_the_fused_blank_line_stays_with_the_first_attempt():
    assert "}\n\n" in [qwen_like_tokenizer().decode([token]) for token in encode(ONE + SEPARATOR + TWO)]
    assert cut(ONE + SEPARATOR + TWO + END) == [
        ("first", ONE + "\n\n"),
        ("separator", TAGS + "\n\n"),
        ("correction", TWO + END),
    ]


def test_spans_of_the_digits_tokenizer(digits_checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(digits_checkpoint)
    spans = SpanFinder(tokenizer).find(
        ids := tokenizer.encode(ONE + SEPARATOR + TWO + END, add_special_tokens=False), version=5
    )
    assert [span.kind for span in spans] == [SpanKind.FIRST, SpanKind.SEPARATOR, SpanKind.CORRECTION]
    assert tokenizer.decode(ids[spans[1].start : spans[1].end]) == TAGS + "\n\n"
    assert ids[spans[2].start] == tokenizer.convert_tokens_to_ids("<think>") and spans[2].end == len(ids)
    assert all(span.version == 5 and span.behaviour_valid for span in spans)


def test_banned_tokens_are_those_of_the_data_room(digits_checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(digits_checkpoint)
    banned = SpanFinder(tokenizer).banned_token_ids
    assert set(banned) >= set(read_special_tokens(tokenizer, digits_checkpoint).banned)
    assert SpanFinder(tokenizer).holds_banned((100, banned[0]))
    assert not SpanFinder(tokenizer).holds_banned((100, 101))


def test_texts_for_grading_have_no_end_tokens():
    ids = encode(ONE + SEPARATOR + TWO + END)
    assert finder().attempt_texts(ids, finder().find(ids, 0)) == (ONE + "\n\n", TWO)
    single = encode(ONE + END)
    assert finder().attempt_texts(single, finder().find(single, 0)) == (ONE,)


@pytest.mark.parametrize(
    "text",
    [
        ONE,
        ONE + "\n\n<self-correction>\n\n" + TWO,
        ONE + "\n\n</self-correction>\n\n" + TWO,
        ONE + "\n\n<self-correction>hm</self-correction>\n\n" + TWO,
        ONE + SEPARATOR,
        SEPARATOR.lstrip() + TWO,
        "",
    ],
    ids=["none", "opening only", "closing only", "filled", "nothing behind", "nothing in front", "empty"],
)
def test_without_a_complete_separator_everything_is_first(text):
    assert cut(text) == [("first", text)]


@pytest.mark.parametrize("tail", ["The answer is 2.", "Wait. " + TWO, END, "\\boxed{2}"])
def test_a_second_half_without_think_is_still_a_correction(tail):
    assert cut(ONE + SEPARATOR + tail)[-1] == ("correction", tail)


def test_other_white_space_in_the_separator():
    assert cut(ONE + "\n<self-correction></self-correction>\n" + TWO)[-1] == ("correction", TWO)


def test_a_thought_that_quotes_the_tags_does_not_split():
    quoting = attempt("1", f"I may write {TAGS} and go on")
    assert kinds(quoting) == ["first"]
    assert cut(quoting + SEPARATOR + TWO)[0] == ("first", quoting + "\n\n")
    # A thought that never closes but is followed by a real second attempt is a first attempt with a bad format.
    assert cut("<think>hm \\boxed{1}" + SEPARATOR + TWO)[-1] == ("correction", TWO)


def test_a_response_of_nothing_but_separators_is_read_quickly():
    """A collapsed policy writes such things, thousands of tokens long."""
    ids = encode("<think>" + SEPARATOR * 2000)
    began = time.thread_time()
    assert len(finder().find(ids, 0)) == 1
    assert time.thread_time() - began < 3


@pytest.mark.parametrize(("attempts", "extra"), [(1, 0), (2, 0), (3, 1), (5, 3)])
def test_further_corrections_are_counted(attempts, extra):
    ids = encode(SEPARATOR.join([ONE, TWO, ONE, TWO, ONE][:attempts]) + END)
    assert finder().extra_corrections(ids) == extra
    if attempts > 1:
        assert finder().find(ids, 0)[-1].end == len(ids)
        texts = finder().attempt_texts(ids, finder().find(ids, 0))
        assert texts[0] == ONE + "\n\n" and texts[1] == SEPARATOR.join([TWO, ONE, TWO, ONE][: attempts - 1])


def test_a_tag_that_shares_a_token_with_its_neighbour_is_no_cut():
    tokenizer = qwen_like_tokenizer()
    odd = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    odd.add_tokens([".<self", ">\n\nSo"])
    fused = SpanFinder(odd)
    encoded = [
        odd.encode(text, add_special_tokens=False) for text in (ONE + "." + TAGS + "\n\n" + TWO, ONE + SEPARATOR + "So" + TWO)
    ]
    assert [len(fused.find(ids, 0)) for ids in encoded] == [1, 1]
    assert [fused.extra_corrections(ids) for ids in encoded] == [0, 0]
    plain = [encode(odd.decode(ids)) for ids in encoded]
    assert [len(finder().find(ids, 0)) for ids in plain] == [3, 3]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(0, len(qwen_like_tokenizer()) + 3), max_size=60))
def test_spans_partition_any_ids(ids):
    check_partition(tuple(ids))


PIECES = ["<think>", "</think>", "<self-correction>", "</self-correction>", "\n", "\n\n", "\\boxed{1}", "é ", "<", "self", END]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(PIECES), st.booleans()), max_size=16))
def test_spans_partition_responses_in_any_tokenisation(pieces):
    """Pieces are either encoded as the tokenizer would or byte by byte, as a model may sample them."""
    single = {piece: index for index, piece in enumerate(token_bytes(qwen_like_tokenizer())) if len(piece) == 1}
    ids = []
    for piece, bytewise in pieces:
        ids += [single[bytes([byte])] for byte in piece.encode()] if bytewise else encode(piece)
    check_partition(tuple(ids))


def check_partition(ids: tuple[int, ...]):
    spans = finder().find(ids, 1)
    assert spans[0].start == 0 and spans[-1].end == len(ids)
    assert all(left.end == right.start for left, right in zip(spans, spans[1:], strict=False))
    assert [span.kind.value for span in spans] in (["first"], ["first", "separator", "correction"])
    if len(spans) == 3:
        assert all(len(span) for span in spans)
        separator = finder().text(ids[spans[1].start : spans[1].end])
        assert separator.split() in (["<self-correction>", "</self-correction>"], ["<self-correction></self-correction>"])


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=30), st.sampled_from(["", "<think>", "<|im_end|>"]))
def test_token_bytes_spell_what_was_encoded(text, token):
    table = token_bytes(qwen_like_tokenizer())
    assert b"".join(table[index] for index in encode(text + token)) == (text + token).encode()


def test_ids_beyond_the_vocabulary_are_unreadable_not_fatal():
    assert finder().text((10**6,)) == "\ufffd"


def thoughtless(added: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer whose only added tokens are these, as Qwen2.5's published one has no think tokens."""
    bpe = Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END)
    tokenizer.add_tokens(added)
    return tokenizer


@pytest.mark.parametrize("added", [[], ["<think>"]], ids=["none", "half"])
def test_without_think_tokens_every_response_is_one_attempt(added):
    tokenizer = thoughtless(added)
    alone = SpanFinder(tokenizer)
    ids = tokenizer.encode(ONE + SEPARATOR + TWO + SEPARATOR + TWO + END, add_special_tokens=False)
    (span,) = alone.find(ids, version=4)
    assert (span.kind, span.start, span.end, span.version) == (SpanKind.FIRST, 0, len(ids), 4)
    assert alone.extra_corrections(ids) == 0
    assert alone.attempt_texts(ids, (span,)) == (ONE + SEPARATOR + TWO + SEPARATOR + TWO,)


def test_corrections_are_refused_where_the_tokenizer_cannot_show_them():
    alone = SpanFinder(thoughtless([]))
    alone.require_corrections([])
    with pytest.raises(ValueError, match=r"no single added token <think> and </think>.*corrections: a\.mask=first, b=2\."):
        alone.require_corrections(["a.mask=first", "b=2"])
    with pytest.raises(ValueError, match="no single added token </think>, so"):
        SpanFinder(thoughtless(["<think>"])).require_corrections(["a=1"])
    finder().require_corrections(["a.mask=first"])


def test_a_tokenizer_of_another_kind_is_refused():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"▁the": 0}, unk_token="▁the")))
    tokenizer.add_tokens(["<think>", "</think>"])
    with pytest.raises(ValueError, match="byte-level BPE"):
        SpanFinder(tokenizer)
