"""Supervised examples: a prompt, a response as text pieces with weights, and the response's tokens with a weight each.

The whole response is tokenised once, never piece by piece: tokens may fuse across pieces (Qwen's tokenizer makes one token of
`}` + blank line, where an attempt meets the separator), and the policy must learn the tokens that it will sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from os import PathLike
from typing import Any, Protocol

import numpy as np

from octopus_mcore.config.plugins import check_options
from octopus_mcore.data.processor import Processor, PromptTooLong
from octopus_mcore.data.row_reader import Row, RowKeys, answering_turn, text_field
from octopus_mcore.data.rows import OfLayout, RowSource
from octopus_mcore.data.tables import Record
from octopus_mcore.experience.types import Prompt


@dataclass(frozen=True)
class ResponsePiece:
    """A stretch of a response's text and the weight of its tokens in the loss; 0 shows it to the model without teaching it."""

    text: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise TypeError(f"the text of a response piece must be a string, found {self.text!r:.80}")
        if not math.isfinite(self.weight) or self.weight < 0:
            raise ValueError(f"the weight of a response piece must be finite and at least 0, found {self.weight}")


@dataclass(frozen=True)
class SFTRow:
    """A row and its response, whose text is the pieces joined without anything between them."""

    row: Row
    pieces: tuple[ResponsePiece, ...]


class SFTSource(Protocol):
    """A reproducible sequence of supervised rows; stateless like `PromptSource`, and with the same optional methods."""

    def rows(self, start: int, count: int, seed: int) -> list[SFTRow]:
        """Rows `start … start + count - 1` of the sequence that belongs to `seed`."""
        ...


@dataclass(frozen=True)
class SFTExample:
    """A prompt and its response: `token_ids` (end token included) and `weights`, float32 of the same length."""

    prompt: Prompt
    token_ids: tuple[int, ...]
    weights: np.ndarray


def sft_example(processor: Processor, sft_row: SFTRow) -> SFTExample:
    """The tokenised example of one row.

    A token has the weight of the piece in which its first character stands; the end token is appended with the last piece's
    weight.

    Raises:
        PromptTooLong: the prompt exceeds the processor's limit.
        FileNotFoundError, ValueError: an image is missing; the response is empty or holds end or vision tokens; or the
            tokenizer does not report exact character offsets.
    """
    examples, too_long = sft_examples(processor, [sft_row])
    if too_long:
        raise too_long[0]
    return examples[0]


def sft_examples(processor: Processor, sft_rows: Sequence[SFTRow]) -> tuple[list[SFTExample], list[PromptTooLong]]:
    """Examples of many rows in order, tokenised and processed together, and the errors of those whose prompt is too long.

    Raises:
        FileNotFoundError, ValueError: as `sft_example`.
    """
    prompts, too_long = processor.prompts([sft_row.row for sft_row in sft_rows])
    left_out = {error.uid for error in too_long}
    kept = [sft_row for sft_row in sft_rows if sft_row.row.uid not in left_out]
    texts = ["".join(piece.text for piece in sft_row.pieces) for sft_row in kept]
    if not texts:
        return [], too_long
    encoded = processor.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    examples = []
    for prompt, sft_row, text, ids, offsets in zip(
        prompts, kept, texts, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        _check_response(processor, prompt.uid, text, ids, offsets)
        weights = token_weights(sft_row.pieces, [start for start, _ in offsets])
        examples.append(SFTExample(prompt, (*ids, processor.tokens.end), weights))
    return examples, too_long


def token_weights(pieces: Sequence[ResponsePiece], starts: Sequence[int]) -> np.ndarray:
    """Weights of tokens that begin at these characters of the joined pieces, and of the end token; float32 [len(starts) +
    1]."""
    ends = list(accumulate(len(piece.text) for piece in pieces))
    piece_of_token = np.searchsorted(ends, starts, side="right")
    weights = np.array([piece.weight for piece in pieces], dtype=np.float32)
    return weights[np.append(piece_of_token, len(pieces) - 1)]


def _check_response(processor: Processor, uid: str, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> None:
    """Refuses empty responses, special tokens that a response must not hold, and offsets that leave characters out."""
    if not text:
        raise ValueError(f"row {uid!r}: the response is empty")
    forbidden = {*processor.tokens.end_ids, *processor.tokens.banned}
    held = next((token for token in ids if token in forbidden), None)
    if held is not None:
        raise ValueError(
            f"row {uid!r}: the response holds the special token {processor.tokenizer.convert_ids_to_tokens(held)}; end tokens "
            "are appended by this program, and vision tokens must not be answered"
        )
    reached = 0
    for start, end in offsets:
        if start > reached:
            break
        reached = max(reached, end)
    if reached != len(text):
        raise ValueError(
            f"row {uid!r}: the tokenizer's character offsets leave out character {reached} of the response; piece weights need "
            "exact offsets (set trim_offsets to false in tokenizer.json's post-processor)"
        )


class _AnsweredRows(RowSource):
    """Rows with a response; a row whose response cannot be used cannot be used."""

    def __init__(self, path: str | PathLike, response_key: str | OfLayout, **options: Any) -> None:
        self._response_key = response_key
        super().__init__(path, **options)

    def check(self, record: Record) -> Row:
        """See `RowSource.check`."""
        pieces_of(record, self.keys.response)
        return super().check(record)

    def _keys(self, layout: str, given: Mapping[str, Any]) -> RowKeys:
        response = {} if self._response_key is OfLayout.KEY else {"response": self._response_key}
        return super()._keys(layout, {**given, **response})

    def _columns(self) -> list[str]:
        return list(dict.fromkeys([*super()._columns(), self.keys.response]))


class SFTFileSource:
    """An `SFTSource` over a table. `response_key` (`response`, or the layout's) names a text, a list of `{"text", "weight"}`
    pieces (weight 1 where it is left out), or a conversation of a question and its answer; all other options are those of
    `RowSource`. There is no ground truth unless `answer_key` names it."""

    def __init__(
        self,
        path: str | PathLike,
        response_key: str | OfLayout = OfLayout.KEY,
        answer_key: str | None | OfLayout = None,
        **options: Any,
    ) -> None:
        check_options(RowSource, {"path": path, **options}, "the SFT source", "RowSource")
        self._source = _AnsweredRows(path, response_key, answer_key=answer_key, **options)
        self.notes = self._source.notes

    def __len__(self) -> int:
        return len(self._source)

    def rows(self, start: int, count: int, seed: int) -> list[SFTRow]:
        """See `SFTSource.rows`. Raises `RowError` for a row that cannot be used, naming file, row and key."""
        source = self._source
        return [
            SFTRow(source.reader.row(record, uid), pieces_of(record, source.keys.response))
            for record, uid in source.records_at(range(start, start + count), seed)
        ]

    def validate(self) -> None:
        """Reads every row once; see `RowSource.validate`."""
        self._source.validate()


def pieces_of(record: Record, key: str) -> tuple[ResponsePiece, ...]:
    """The response of a record as pieces. Raises `RowError`."""
    value = record.get(key)
    if not isinstance(value, list):
        return (ResponsePiece(text_field(record, key)),)
    if value and isinstance(value[0], dict) and value[0].keys() & {"role", "from"}:
        return (ResponsePiece(answering_turn(record, key)),)
    try:
        pieces = tuple(ResponsePiece(**item) for item in value)
    except (TypeError, ValueError) as error:
        raise record.error(key, f"expected a text or a list of {{'text', 'weight'}}: {error}") from error
    if not "".join(piece.text for piece in pieces):
        raise record.error(key, "the pieces hold no text")
    return pieces
