"""Supervised examples: the whole response is tokenised once, and every token weighs what its piece weighs."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from octopus_mcore.data.processor import Processor, PromptTooLong
from octopus_mcore.data.rows import Row
from octopus_mcore.data.sft import ResponsePiece, SFTFileSource, SFTRow, sft_example, sft_examples, token_weights
from octopus_mcore.data.tables import RowError

ROW = Row("r", "First*second+next?", "61")
TEXT = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "at a glance", "\n\n", "\n", "\\boxed{", "}", "61", "é", "e\u0301", "🙂", " ", "字"]
    )
    | st.text(max_size=4),
    max_size=6,
).map("".join)


@pytest.fixture(scope="module")
def processor(digits_checkpoint):
    return Processor.from_pretrained(digits_checkpoint)


@given(pieces=st.lists(st.builds(ResponsePiece, TEXT, st.sampled_from([0.0, 0.25, 1.0])), min_size=1, max_size=4))
@settings(deadline=None, max_examples=150)
def test_tokens_are_those_of_the_whole_text_and_weigh_what_their_piece_weighs(processor, pieces):
    text = "".join(piece.text for piece in pieces)
    if not text or any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        return
    example = sft_example(processor, SFTRow(ROW, tuple(pieces)))
    assert example.token_ids == (*processor.encode(text), processor.tokens.end)
    assert example.weights.dtype == np.float32 and len(example.weights) == len(example.token_ids)
    assert example.weights[-1] == np.float32(pieces[-1].weight)
    by_character = [piece.weight for piece in pieces for _ in piece.text]
    by_byte = [weight for character, weight in zip(text, by_character, strict=True) for _ in character.encode()]
    at = 0
    for token, weight in zip(example.token_ids[:-1], example.weights[:-1], strict=True):
        assert weight == np.float32(by_byte[at])
        at += token_bytes(processor, token)
    assert at == len(text.encode())


def token_bytes(processor, token):
    """Bytes of a token, by the byte-level alphabet: one character per byte, except in added tokens, which are ASCII here."""
    return len(processor.tokenizer.convert_ids_to_tokens(token))


def test_a_token_across_pieces_has_the_weight_of_the_piece_it_begins_in(processor):
    whole = processor.encode("at a glance")
    apart = processor.encode("at a gla") + processor.encode("nce")
    assert len(whole) < len(apart), "the example must have a token across the cut"
    example = sft_example(processor, SFTRow(ROW, (ResponsePiece("at a gla", 0.5), ResponsePiece("nce\n", 1.0))))
    assert example.token_ids[:-2] == whole
    assert example.weights.tolist() == [0.5] * len(whole) + [1.0, 1.0]


def test_empty_pieces_own_no_token():
    pieces = [ResponsePiece("", 3.0), ResponsePiece("ab", 1.0), ResponsePiece("", 5.0), ResponsePiece("c", 2.0)]
    assert token_weights(pieces, [0, 1, 2]).tolist() == [1.0, 1.0, 2.0, 2.0]


def test_many_examples_equal_single_ones(processor):
    picture = Image.new("RGB", (48, 16))
    rows = [SFTRow(Row(f"r{i}", "What?", "1", (picture,) * (i % 3)), (ResponsePiece(f"{i}\n" * i),)) for i in range(1, 6)]
    examples, too_long = sft_examples(processor, rows)
    assert not too_long
    for example, row in zip(examples, rows, strict=True):
        single = sft_example(processor, row)
        assert (example.prompt, example.token_ids) == (single.prompt, single.token_ids)
        np.testing.assert_array_equal(example.weights, single.weights)


def test_long_prompts_leave_the_others_in_order(digits_checkpoint):
    processor = Processor.from_pretrained(digits_checkpoint, max_prompt_tokens=14)
    rows = [SFTRow(Row(uid, "?" * n, ""), (ResponsePiece(uid),)) for uid, n in [("1", 1), ("2", 50), ("3", 2)]]
    examples, too_long = sft_examples(processor, rows)
    assert [(e.prompt.uid, processor.decode(e.token_ids)) for e in examples] == [("1", "1"), ("3", "3")]
    assert [error.uid for error in too_long] == ["2"]
    with pytest.raises(PromptTooLong):
        sft_example(processor, rows[1])
    assert sft_examples(processor, rows[1:2])[0] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "'r': the response is empty"), ("a<|im_end|>", r"'r'.*<.im_end.>"), ("<|image_pad|>", r"'r'.*<.image_pad.>")],
)
def test_responses_that_cannot_be_taught(processor, text, message):
    with pytest.raises(ValueError, match=message):
        sft_example(processor, SFTRow(ROW, (ResponsePiece(text),)))


def test_tokenizers_that_trim_offsets_are_refused(digits_checkpoint):
    from tokenizers import processors

    processor = Processor.from_pretrained(digits_checkpoint)
    processor.tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True, use_regex=False)
    with pytest.raises(ValueError, match="offsets leave out character 2.*trim_offsets"):
        sft_example(processor, SFTRow(ROW, (ResponsePiece("at a glance"),)))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_must_be_finite_and_not_negative(weight):
    with pytest.raises(ValueError, match="finite"):
        ResponsePiece("a", weight)


def test_file_source(tmp_path):
    Image.new("RGB", (48, 16)).save(tmp_path / "a.png")
    good = [
        {"problem": "What?", "images": ["a.png"], "response": "whole"},
        {"problem": "Why?", "images": [], "response": [{"text": "shown", "weight": 0}, {"text": " taught"}]},
    ]
    file = tmp_path / "sft.jsonl"
    file.write_text("\n".join(map(json.dumps, good)))
    source = SFTFileSource(file, shuffle=False)
    source.validate()
    first, second = source.rows(0, 2, seed=0)
    assert first.pieces == (ResponsePiece("whole"),) and first.row.images == (str(tmp_path / "a.png"),)
    assert second.pieces == (ResponsePiece("shown", 0), ResponsePiece(" taught", 1.0))
    assert len(source) == 2 and first.row.uid == "sft.jsonl:1@0"
    shuffled = SFTFileSource(file)
    assert shuffled.rows(0, 6, 1) == shuffled.rows(0, 1, 1) + shuffled.rows(1, 5, 1)


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (..., "the key is missing"),
        ("", "expected a non-empty text"),
        ([], "the pieces hold no text"),
        ([{"text": "a", "wieght": 1}], "expected a text or a list.*wieght"),
        ([{"text": "a", "weight": -1}], ".*finite and at least 0"),
        ([{"text": 3}], ".*must be a string, found 3"),
    ],
)
def test_file_source_names_bad_responses(tmp_path, response, message):
    record = {"problem": "What?", "images": []} | ({} if response is ... else {"response": response})
    (tmp_path / "sft.jsonl").write_text(json.dumps(record))
    source = SFTFileSource(tmp_path / "sft.jsonl")
    for call in (source.validate, lambda: source.rows(0, 1, 0)):
        with pytest.raises(RowError, match=rf"sft.jsonl, row 1, key 'response': {message}"):
            call()
