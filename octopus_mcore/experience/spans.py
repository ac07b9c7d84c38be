"""Where the first attempt, the separator and the correction stand in the ids that the engine sampled.

The tokenizer of Qwen, and ours of the digits, is byte-level BPE: every token is a fixed string of bytes and a response is their
concatenation. So the tags are looked for in bytes, and byte offsets are carried back to token indices; nothing is encoded again
(docs/method.md §1). `}\\n\\n` may be one token: then the blank line in front of the separator belongs to the first attempt,
which is what was sampled.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from octopus_mcore.experience.types import Span, SpanKind

SEPARATOR = "\n\n<self-correction>\n</self-correction>\n\n"
"""The text between a first attempt and its correction, as the cold start teaches it."""

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
END_TOKENS = ("<|im_end|>", "<|endoftext|>")
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
"""Tokens that mean pixels to the model; a response must not hold one (docs/method.md §2)."""

_TAGS = re.compile(rb"(<self-correction>\s*</self-correction>)\s*")
_UNREADABLE = "\ufffd".encode()


def byte_alphabet() -> dict[str, int]:
    """Byte of each printable character that byte-level BPE vocabularies write for it (GPT-2's `bytes_to_unicode`, inverted)."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + rank): byte for rank, byte in enumerate(moved)}


def token_bytes(tokenizer: Any) -> list[bytes]:
    """The bytes of every id of a fast byte-level BPE tokenizer; added tokens stand for their own text.

    Raises:
        ValueError: a token is not spelled in the byte alphabet, so the tokenizer is of another kind.
    """
    alphabet = byte_alphabet()
    added = tokenizer.added_tokens_decoder
    vocabulary = tokenizer.get_vocab()
    table = [_UNREADABLE] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        if index in added:
            table[index] = added[index].content.encode()
            continue
        try:
            table[index] = bytes(alphabet[character] for character in token)
        except KeyError:
            raise ValueError(
                f"token {token!r} (id {index}) is not written in the byte-level alphabet; spans need a byte-level BPE "
                "tokenizer (Qwen's kind), whose tokens are byte strings"
            ) from None
    return table


@dataclass(frozen=True)
class _Separator:
    """A complete pair of tags: first token of the opening tag, first token behind the pair and its white space.

    `clean` says whether both are token boundaries, so that the response can be cut there.
    """

    begin: int
    end: int
    clean: bool


class SpanFinder:
    """Finds spans in sampled ids, and the attempts' texts for grading.

    A *separator* is an opening tag, white space, a closing tag and white space, with something behind it. It counts when
    `<think>` follows directly or when it stands outside a think block, so that a thought which merely quotes the tags does
    not split a response. Three cases are decided here, and recombination and rewards rely on them:

    - The second half does not start with `<think>`: it is a correction all the same (from the first token behind the tags),
      judged as one with a bad format. Otherwise a response could shed the mask and the reward table of corrections by
      leaving out a tag. Such a half is never recombined, for recombination takes well-formatted halves only.
    - A tag shares a token with its neighbour's text, or nothing follows the tags, or nothing precedes them: no clean cut
      exists and the whole response is one `first` span.
    - More than one correction: the first clean separator splits, the correction runs to the end of the response and
      `extra_corrections` counts the rest.

    Without `<think>` and `</think>` as single added tokens (Qwen2.5's published tokenizers) no response is ever split: each is
    one `first` span, and `missing` names the tokens. Who needs corrections asks `require_corrections`.

    Raises:
        ValueError: the tokenizer is not byte-level BPE.
    """

    def __init__(self, tokenizer: Any):
        added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
        self.missing = tuple(token for token in (THINK_OPEN, THINK_CLOSE) if token not in added)
        self._bytes = token_bytes(tokenizer)
        self._open, self._close = added.get(THINK_OPEN), added.get(THINK_CLOSE)
        ends = {added[token] for token in END_TOKENS if token in added}
        self._ends = ends | {index for index in (tokenizer.eos_token_id, tokenizer.pad_token_id) if index is not None}
        self.banned_token_ids = tuple(sorted(added[token] for token in VISION_TOKENS if token in added))

    def require_corrections(self, keys: Sequence[str]) -> None:
        """Refuses a configuration whose `keys` (as `key=value`) mean corrections, where the tokenizer cannot show any.

        Raises:
            ValueError: there is such a key, and `<think>` or `</think>` is missing.
        """
        if keys and self.missing:
            raise ValueError(
                f"the tokenizer has no single added token {' and '.join(self.missing)}, so no correction can be told from a "
                f"first attempt, but the configuration needs corrections: {', '.join(keys)}. Set these keys otherwise, or add "
                "the tokens (tokenizer.add_tokens) before a cold start that teaches them"
            )

    def find(self, token_ids: Sequence[int], version: int) -> tuple[Span, ...]:
        """Spans of a response that the policy of `version` sampled; they partition `[0, len(token_ids))`.

        Either (first, separator, correction), or one `first` span over everything.
        """
        cut = next((separator for separator in self._separators(token_ids) if separator.clean), None)
        if cut is None:
            return (Span(SpanKind.FIRST, 0, len(token_ids), version),)
        return (
            Span(SpanKind.FIRST, 0, cut.begin, version),
            Span(SpanKind.SEPARATOR, cut.begin, cut.end, version),
            Span(SpanKind.CORRECTION, cut.end, len(token_ids), version),
        )

    def extra_corrections(self, token_ids: Sequence[int]) -> int:
        """How many separators the response holds beyond the one that splits it (0 for a response that is not split)."""
        found = list(self._separators(token_ids))
        return len(found) - 1 if any(separator.clean for separator in found) else 0

    def holds_banned(self, token_ids: Sequence[int]) -> bool:
        """Whether a vision token was sampled: such a response must be judged invalid, never trained on."""
        return not set(self.banned_token_ids).isdisjoint(token_ids)

    def attempt_texts(self, token_ids: Sequence[int], spans: Sequence[Span]) -> tuple[str, ...]:
        """Texts of the first attempt and, if there is one, of the correction. For grading and reading only.

        End tokens at the end of a text are left out; bytes that are not UTF-8 become U+FFFD.
        """
        kinds = (SpanKind.FIRST, SpanKind.CORRECTION)
        return tuple(self.text(token_ids[span.start : span.end]) for span in spans if span.kind in kinds)

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of ids without the end tokens at their end."""
        end = len(token_ids)
        while end and token_ids[end - 1] in self._ends:
            end -= 1
        return self.spelled(token_ids[:end])[0].decode(errors="replace")

    def spelled(self, token_ids: Sequence[int]) -> tuple[bytes, list[int]]:
        """The bytes of ids, and the offset at which each token begins, with the length of all behind them: [len + 1]."""
        pieces = [self._piece(token) for token in token_ids]
        return b"".join(pieces), [0, *accumulate(map(len, pieces))]

    def _piece(self, token: int) -> bytes:
        """The token's bytes; ids beyond the vocabulary (padding rows of the embedding) are unreadable."""
        return self._bytes[token] if token < len(self._bytes) else _UNREADABLE

    def _separators(self, token_ids: Sequence[int]) -> Iterator[_Separator]:
        """All separators that count, in order."""
        if self.missing:
            return
        data, starts = self.spelled(token_ids)
        thinking = self._thinking(token_ids)
        for match in _TAGS.finditer(data):
            if match.end() == len(data):
                return
            begin, end = bisect_right(starts, match.start()) - 1, bisect_right(starts, match.end()) - 1
            clean = begin > 0 and starts[begin] == match.start() and starts[end] >= match.end(1)
            if token_ids[end] == self._open or not thinking[begin]:
                yield _Separator(begin, end, clean)

    def _thinking(self, token_ids: Sequence[int]) -> list[bool]:
        """Before each token, and at the end: whether the last think tag opens a block."""
        tags = {self._open: True, self._close: False}
        return list(accumulate(token_ids, lambda inside, token: tags.get(token, inside), initial=False))
