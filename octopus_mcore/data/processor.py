"""From rows to prompts: chat rendering, tokenisation, image placeholders.

The token ids that leave this module are the ones that engines read and the policy is trained on; nothing downstream tokenises
text again. Placeholders are expanded here, after the image processor has fixed each image's patch grid.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from octopus_mcore.config.schema import DataConfig
from octopus_mcore.config.vocabulary import IMAGE_MARKER
from octopus_mcore.data.chatml import CHATML_TEMPLATE
from octopus_mcore.data.images import ImageSource, ImageStore, Pixels, load_image_processor
from octopus_mcore.data.row_reader import Row
from octopus_mcore.data.special_tokens import SpecialTokens, read_special_tokens, reads_images
from octopus_mcore.experience.types import ImageRef, ProcessedImage, Prompt

logger = logging.getLogger(__name__)


class PromptTooLong(ValueError):
    """A prompt exceeds the token limit. The loop counts such prompts and leaves them out."""

    def __init__(self, uid: str, tokens: int, limit: int) -> None:
        super().__init__(f"prompt {uid!r} has {tokens} tokens, images included; the limit is {limit} (data.max_prompt_tokens)")
        self.uid = uid
        self.tokens = tokens
        self.limit = limit


class PlaceholderMismatch(ValueError):
    """A prompt's image placeholders are not those that its images need."""


@dataclass(frozen=True)
class _Rendered:
    """A tokenised question with one placeholder per image: ids, and the index of each placeholder."""

    token_ids: tuple[int, ...]
    placeholders: tuple[int, ...]


class Processor:
    """Tokenizer, image store and chat format of one checkpoint.

    `tokenizer` is the Hugging Face tokenizer, `tokens` its special tokens, `images` the store that prompts refer to.
    `prompt_suffix` is appended to every question behind a blank line; prompts above `max_prompt_tokens` raise `PromptTooLong`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tokens: SpecialTokens,
        images: ImageStore,
        chat_template: str,
        prompt_suffix: str = "",
        max_prompt_tokens: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.images = images
        self.prompt_suffix = prompt_suffix
        self.max_prompt_tokens = max_prompt_tokens
        self._chat_template = chat_template
        # Prompts of one source often share their text (always so in the digits task), and rendering costs more than the rest.
        self._rendered = lru_cache(maxsize=1024)(self._render)

    @classmethod
    def from_pretrained(
        cls,
        path: str | PathLike,
        prompt_suffix: str = "",
        max_prompt_tokens: int | None = None,
        pixels: Pixels = (None, None),
        workers: int = 1,
    ) -> Processor:
        """The processor of a Hugging Face checkpoint folder; `pixels` are bounds of an image's size, and `workers` threads work
        on images.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            ValueError: special tokens are missing or disagree with `config.json` (see `read_special_tokens`), the image
                processor is of another family, or its bounds are narrower than `pixels`.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder: expected a Hugging Face checkpoint")
        if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
            raise FileNotFoundError(f"{folder} holds no tokenizer: expected tokenizer.json")
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        tokens = read_special_tokens(tokenizer, folder)
        sees = reads_images(folder)
        if not sees and any(pixels):
            raise ValueError(f"data.min_pixels and data.max_pixels have no effect: {folder} is a text model (no vision_config)")
        store = ImageStore(load_image_processor(folder, pixels) if sees else None, workers)
        return cls(tokenizer, tokens, store, _chat_template(tokenizer, folder), prompt_suffix, max_prompt_tokens)

    @classmethod
    def configured(cls, path: str | PathLike, data: DataConfig) -> Processor:
        """`from_pretrained` with the settings of the configuration's section `data`. Raises like it."""
        pixels = (data.min_pixels, data.max_pixels)
        return cls.from_pretrained(path, data.prompt_suffix, data.max_prompt_tokens, pixels, data.workers)

    def with_suffix(self, prompt_suffix: str) -> Processor:
        """The same tokenizer and image store with another suffix."""
        return Processor(self.tokenizer, self.tokens, self.images, self._chat_template, prompt_suffix, self.max_prompt_tokens)

    def prompt(
        self,
        uid: str,
        question: str,
        answer: str,
        images: Sequence[ImageSource] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """One prompt; its images enter the store.

        Raises:
            FileNotFoundError, ValueError: an image is missing or cannot be decoded, or the model reads text only.
            PlaceholderMismatch: markers or placeholders in the question do not fit the images.
            PromptTooLong: the prompt exceeds `max_prompt_tokens`.
        """
        row = Row(uid, question, answer, tuple(images), metadata or {})
        return self._assemble(row, self.images.add_sources(row.images, self._names(row)))

    def prompts(self, rows: Sequence[Row]) -> tuple[list[Prompt], list[PromptTooLong]]:
        """Prompts of many rows in order, their images processed together, and the errors of those that are too long.

        Raises:
            FileNotFoundError, ValueError: as `prompt`; only over-long prompts are left out.
        """
        names = [name for row in rows for name in self._names(row)]
        stored = iter(self.images.add_sources([image for row in rows for image in row.images], names))
        prompts, too_long = [], []
        for row in rows:
            try:
                prompts.append(self._assemble(row, [next(stored) for _ in row.images]))
            except PromptTooLong as error:
                too_long.append(error)
        return prompts, too_long

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text as it stands, nothing added."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of response ids, without end and padding tokens; all other special tokens stay visible. For people and
        judges only: text never returns to the loss."""
        hidden = {*self.tokens.end_ids, self.tokens.pad}
        return self.tokenizer.decode([i for i in ids if i not in hidden], clean_up_tokenization_spaces=False)

    def check_prompt(self, prompt: Prompt) -> None:
        """`check_prompt` with this processor's tokens and store."""
        check_prompt(prompt, self.images, self.tokens.image_pad, self.images.merge_size)

    def _names(self, row: Row) -> list[str]:
        """What errors call a row's images. Raises `ValueError` for images that the model cannot see."""
        if row.images and not self.images.takes_images:
            raise ValueError(
                f"prompt {row.uid!r} has {len(row.images)} images, but the checkpoint in model.path is a text model "
                "(its config.json has no vision_config); take rows without images, or a vision-language checkpoint"
            )
        return [f"prompt {row.uid!r}, image {index}" for index in range(len(row.images))]

    def _assemble(self, row: Row, images: Sequence[tuple[str, tuple[int, int, int]]]) -> Prompt:
        """Expands the placeholders of a row whose images are stored."""
        markers = row.question.count(IMAGE_MARKER)
        if markers not in (0, len(images)):
            raise PlaceholderMismatch(
                f"prompt {row.uid!r}: the question has {markers} {IMAGE_MARKER} markers for {len(images)} images; give one "
                "marker per image, or none to put all images first"
            )
        rendered = self._rendered(row.question, len(images))
        if len(rendered.placeholders) != len(images):
            raise PlaceholderMismatch(
                f"prompt {row.uid!r}: the rendered chat holds {len(rendered.placeholders)} image placeholders for "
                f"{len(images)} images; the question must not contain vision tokens itself, and the chat template must render "
                "images"
            )
        token_ids: list[int] = []
        refs, done = [], 0
        for (key, grid), at in zip(images, rendered.placeholders, strict=True):
            token_ids += rendered.token_ids[done:at]
            count = self.images.num_tokens(grid)
            refs.append(ImageRef(key, len(token_ids), grid, count))
            token_ids += [self.tokens.image_pad] * count
            done = at + 1
        token_ids += rendered.token_ids[done:]
        if self.max_prompt_tokens is not None and len(token_ids) > self.max_prompt_tokens:
            raise PromptTooLong(row.uid, len(token_ids), self.max_prompt_tokens)
        prompt = Prompt(row.uid, tuple(token_ids), row.question, row.answer, tuple(refs), row.metadata)
        self.check_prompt(prompt)
        return prompt

    def _render(self, question: str, image_count: int) -> _Rendered:
        """Renders the chat with one placeholder per image and tokenises it."""
        text = question.strip() + (f"\n\n{self.prompt_suffix}" if self.prompt_suffix else "")
        # Templates of text models read a string and nothing else; some drop a list of items without a word.
        content = _content(text, image_count) if self.images.takes_images else text
        messages = [{"role": "user", "content": content}]
        chat = self.tokenizer.apply_chat_template(
            messages, chat_template=self._chat_template, tokenize=False, add_generation_prompt=True
        )
        ids = self.encode(chat)
        return _Rendered(ids, tuple(i for i, token in enumerate(ids) if token == self.tokens.image_pad))


def check_prompt(prompt: Prompt, images: Mapping[str, ProcessedImage], image_pad: int | None, merge_size: int) -> None:
    """Checks that a prompt's placeholder tokens are exactly those that its images' grids ask for, at the recorded offsets.

    Raises:
        PlaceholderMismatch: the counts differ, or a reference points at other tokens. Names uid and both counts.
        UnknownImage: an image is not in `images`.
    """
    found = prompt.token_ids.count(image_pad)
    needed = [_merged(images[ref.key].grid_thw, merge_size) for ref in prompt.images]
    if found != sum(needed):
        raise PlaceholderMismatch(
            f"prompt {prompt.uid!r} holds {found} image placeholder tokens, but its {len(prompt.images)} images need "
            f"{sum(needed)} (sum of grid / merge²); prompt and images, or tokenizer and image processor, do not belong together"
        )
    for ref, count in zip(prompt.images, needed, strict=True):
        span = prompt.token_ids[ref.offset : ref.offset + count]
        if ref.num_tokens != count or span.count(image_pad) != count:
            raise PlaceholderMismatch(
                f"prompt {prompt.uid!r}: image {ref.key} needs {count} placeholder tokens at offset {ref.offset}, but its "
                f"reference says {ref.num_tokens} and {span.count(image_pad)} stand there"
            )


def _merged(grid: tuple[int, int, int], merge_size: int) -> int:
    frames, rows, columns = grid
    return frames * rows * columns // merge_size**2


def _content(text: str, image_count: int) -> list[dict[str, str]]:
    """Chat content items: images at their markers, or all of them first."""
    pieces = text.split(IMAGE_MARKER)
    if len(pieces) == 1:
        return [{"type": "image"}] * image_count + [{"type": "text", "text": text}]
    items: list[dict[str, str]] = []
    for index, piece in enumerate(pieces):
        items += [{"type": "image"}] if index else []
        items += [{"type": "text", "text": piece}] if piece else []
    return items


def _chat_template(tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    """The tokenizer's chat template, else that of `chat_template.json` (older vision checkpoints), else Qwen's ChatML."""
    if tokenizer.chat_template:
        return tokenizer.get_chat_template()
    legacy = folder / "chat_template.json"
    if legacy.is_file():
        return json.loads(legacy.read_text(encoding="utf-8"))["chat_template"]
    logger.warning("%s has no chat template; using Qwen's ChatML", folder)
    return CHATML_TEMPLATE
