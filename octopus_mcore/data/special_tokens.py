"""The special tokens that the method and the model family rely on, checked against the checkpoint's own files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

IMAGE_PAD = "<|image_pad|>"
VIDEO_PAD = "<|video_pad|>"
VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"
THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"

_CONFIG_KEYS = {
    IMAGE_PAD: "image_token_id",
    VIDEO_PAD: "video_token_id",
    VISION_START: "vision_start_token_id",
    VISION_END: "vision_end_token_id",
}


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens. `end_ids` are all tokens that end a response; the first is the one that ends a chat turn.
    Vision tokens that the tokenizer of a text model does not have are None; so are both think tokens where it knows neither
    (Qwen2.5's published ones)."""

    end_ids: tuple[int, ...]
    pad: int
    image_pad: int | None
    video_pad: int | None
    vision_start: int | None
    vision_end: int | None
    think_open: int | None
    think_close: int | None

    @property
    def end(self) -> int:
        """The token that closes the assistant's turn, appended to every supervised response."""
        return self.end_ids[0]

    @property
    def banned(self) -> tuple[int, ...]:
        """Vision special tokens: never sampled, and removed from the trainer's softmax alike."""
        vision = (self.image_pad, self.video_pad, self.vision_start, self.vision_end)
        return tuple(token for token in vision if token is not None)


def reads_images(path: Path) -> bool:
    """Whether the checkpoint in a folder has a vision tower. Raises FileNotFoundError when it has no `config.json`."""
    return "vision_config" in _read_json(path / "config.json", required=True)


def read_special_tokens(tokenizer: PreTrainedTokenizerBase, path: Path) -> SpecialTokens:
    """Collects the special tokens of the checkpoint folder `path`.

    Raises:
        ValueError: a token is missing from the tokenizer or is split into several, `config.json` gives it another id, ids
            exceed the model's vocabulary, or nothing says which token ends a response. The message names token and file.
        FileNotFoundError: the folder has no `config.json`.
    """
    config = _read_json(path / "config.json", required=True)
    vocabulary = tokenizer.get_vocab()
    thinks = any(token in vocabulary for token in (THINK_OPEN, THINK_CLOSE))
    ids = {token: _token_id(tokenizer, token, path) for token in (THINK_OPEN, THINK_CLOSE)} if thinks else {}
    if reads_images(path):
        ids |= {token: _token_id(tokenizer, token, path) for token in _CONFIG_KEYS}
    for token, key in _CONFIG_KEYS.items():
        if token in ids and config.get(key) != ids[token]:
            raise ValueError(
                f"{path / 'config.json'}: {key} is {config.get(key)}, but the tokenizer in {path} gives {token} the id "
                f"{ids[token]}; config and tokenizer belong to different checkpoints"
            )
    end_ids = _end_ids(tokenizer, path)
    vision = dict.fromkeys(_CONFIG_KEYS) | {token: known for token, known in vocabulary.items() if token in _CONFIG_KEYS}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_ids[0]
    _check_vocabulary(tokenizer, config, path)
    return SpecialTokens(
        end_ids=end_ids,
        pad=pad,
        image_pad=vision[IMAGE_PAD],
        video_pad=vision[VIDEO_PAD],
        vision_start=vision[VISION_START],
        vision_end=vision[VISION_END],
        think_open=ids.get(THINK_OPEN),
        think_close=ids.get(THINK_CLOSE),
    )


def _token_id(tokenizer: PreTrainedTokenizerBase, token: str, path: Path) -> int:
    """The id of a token that must exist and must be matched as one token in running text."""
    ids = tokenizer.encode(f"a{token}b", add_special_tokens=False)
    known = tokenizer.get_vocab().get(token)
    if known is None or known not in ids:
        found = "is not in its vocabulary" if known is None else "is in its vocabulary but text is not split at it"
        raise ValueError(
            f"tokenizer in {path / 'tokenizer.json'}: the special token {token} {found}; add it as a special (added) token, "
            "and give the model a row of embeddings for it"
        )
    return known


def _end_ids(tokenizer: PreTrainedTokenizerBase, path: Path) -> tuple[int, ...]:
    """End tokens: the tokenizer's own first, then the further ones of `generation_config.json`."""
    listed = _read_json(path / "generation_config.json", required=False).get("eos_token_id")
    listed = [] if listed is None else listed if isinstance(listed, list) else [listed]
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    end_ids = tuple(dict.fromkeys([*own, *listed]))
    if not end_ids:
        raise ValueError(
            f"no end token: neither {path / 'tokenizer_config.json'} (eos_token) nor {path / 'generation_config.json'} "
            "(eos_token_id) names the token that ends a response"
        )
    return end_ids


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: Mapping[str, Any], path: Path) -> None:
    """Every id of the tokenizer must have a row in the model's embedding."""
    where = "text_config.vocab_size" if "text_config" in config else "vocab_size"
    size = config.get("text_config", config).get("vocab_size")
    largest = max(tokenizer.get_vocab().values())
    if size is None or largest >= size:
        raise ValueError(
            f"{path / 'config.json'}: {where} is {size}, but the tokenizer's largest id is {largest}; "
            f"at least {largest + 1} embeddings are needed"
        )


def _read_json(file: Path, required: bool) -> dict[str, Any]:
    """A JSON object from a file of the checkpoint; `{}` for an absent file that may be absent."""
    if not file.is_file():
        if required:
            raise FileNotFoundError(f"{file} is missing: expected the folder of a Hugging Face checkpoint")
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
