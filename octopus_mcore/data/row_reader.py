"""From a record of a file to a row: which keys hold what, by a layout's name or one by one, and what a record must be like."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from octopus_mcore.config.vocabulary import IMAGE_MARKER
from octopus_mcore.data.frames import VIDEO_MARKER, frames_of, interleaved, is_place
from octopus_mcore.data.images import ImageSource
from octopus_mcore.data.special_tokens import IMAGE_PAD
from octopus_mcore.data.tables import Record
from octopus_mcore.rewards.boxed import last_boxed

LayoutName = Literal["easyr1", "verl", "ocean_r1", "virl39k", "llava_cot"]

_SPEAKERS = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
"""Words for who speaks, those of chat messages (`role`) and of ShareGPT's and LLaVA's conversations (`from`)."""


@dataclass(frozen=True)
class Row:
    """A question with its images and ground truth. `<image>` in the question says where an image stands; without a marker all
    images stand before the question. `images` holds paths, encoded bytes or PIL images; `uid` is unique within a run."""

    uid: str
    question: str
    answer: str
    images: tuple[ImageSource, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RowKeys:
    """Where the parts of a row stand in a record. Keys name columns, or by a dotted path what lies inside one
    (`reward_model.ground_truth`)."""

    question: str = "problem"
    """A text, or a list of turns that holds the user's alone; where `answer` or `response` is the same key, a conversation that
    begins with the question and its answer (what follows is not used)."""
    answer: str | None = "answer"
    """The truth: a text, a number, or the conversation that begins with the question. None: there is none."""
    images: str | None = "images"
    """One image or a list of images. None: there are none."""
    videos: str | None = None
    """A list of videos, each a list of images or a folder of them."""
    response: str = "response"
    """What an SFT row answers: a text, pieces, or the conversation that begins with the question."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Name → key of fields that travel with the row."""
    boxed: bool = False
    """The truth is what stands in the answer's last `\\boxed{…}`."""
    tag: str | None = None
    """The truth is what stands in the answer's last `<tag>…</tag>`."""

    @property
    def in_conversation(self) -> bool:
        """The question stands in one list of turns with its answer."""
        return self.question in (self.answer, self.response)

    @property
    def columns(self) -> list[str]:
        """All keys that a row is read from, the response left out."""
        keys = (self.question, self.answer, self.images, self.videos, *self.metadata.values())
        return [key for key in dict.fromkeys(keys) if key is not None]

    @property
    def pictures(self) -> str:
        """What errors about images call their key."""
        return ", ".join(key for key in (self.images, self.videos) if key is not None)


_VERL = RowKeys(question="prompt", answer="reward_model.ground_truth")

LAYOUTS: Mapping[LayoutName, RowKeys] = {
    "easyr1": RowKeys(),
    "verl": _VERL,
    "ocean_r1": replace(_VERL, metadata={"reward_func": "extra_info.reward_func"}),
    "virl39k": RowKeys(question="question", images="image", boxed=True),
    "llava_cot": RowKeys("conversations", "conversations", "image", response="conversations", tag="CONCLUSION"),
}


def row_keys(layout: str, options: Mapping[str, Any]) -> RowKeys:
    """The keys of a layout, with those that `options` gives instead: fields of `RowKeys`. Metadata may be a list of keys, which
    are then their names too, and come beside the layout's. Raises `ValueError` for an unknown layout, or two ways to find the
    truth in the answer."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, found {layout!r}")
    given, metadata = dict(options), options.get("metadata", ())
    named = metadata if isinstance(metadata, Mapping) else {key: key for key in metadata}
    given["metadata"] = {**LAYOUTS[layout].metadata, **named}
    if given.get("boxed") and "tag" not in given or given.get("tag") and "boxed" not in given:
        given = {"boxed": False, "tag": None, **given}  # one way stands in for the layout's other
    keys = replace(LAYOUTS[layout], **given)
    wrong = [key for key in (keys.question, *keys.columns) if not isinstance(key, str)]
    if wrong or isinstance(metadata, str):
        found = repr(wrong[0] if wrong else metadata)
        raise ValueError(f"expected names of keys, of metadata a list or a mapping of them, found {found:.80}")
    if keys.boxed and keys.tag:
        raise ValueError(f"answer_boxed and answer_tag={keys.tag!r} are two ways to find the truth; choose one")
    return keys


@dataclass(frozen=True)
class RowReader:
    """Reads records by `keys`; paths of images are relative to `root`, and of a video at most `max_frames` frames are taken."""

    keys: RowKeys
    root: Path
    max_frames: int = 16

    def row(self, record: Record, uid: str) -> Row:
        """The row in a record. Raises `RowError`."""
        keys = self.keys
        answer = "" if keys.answer is None else truth_in(answer_field(record, keys.answer), record, keys)
        images = () if keys.images is None else _images(record, keys.images, self.root)
        question = question_field(record, keys.question, keys.in_conversation)
        if keys.videos is not None:
            question, images = self._with_frames(record, keys.videos, question, images)
        elif VIDEO_MARKER in question:
            reason = f"the text holds {VIDEO_MARKER}; name the column of the videos' frames by `video_key`"
            raise record.error(keys.question, reason)
        check_markers(question, len(images), record, keys.question)
        metadata = {name: record.get(key) for name, key in keys.metadata.items()}
        for name, value in metadata.items():
            _check_json(value, record, keys.metadata[name])
        return Row(uid, question, answer, images, metadata)

    def _with_frames(
        self, record: Record, key: str, question: str, images: tuple[ImageSource, ...]
    ) -> tuple[str, tuple[ImageSource, ...]]:
        """The question with a marker for each frame, and the images with the frames where they stand. Raises `RowError`."""
        value = record.get(key)
        given = [] if value is None or value == "" else value if isinstance(value, list) else [value]
        videos = [frames_of(item, self.root, self.max_frames, record, key, _image) for item in given]
        try:
            return interleaved(question, images, videos, IMAGE_MARKER)
        except ValueError as error:
            raise record.error(self.keys.question, str(error)) from error


def _turns(record: Record, key: str) -> list[tuple[str, Any]]:
    """Who speaks and what, of a list of chat messages or of a conversation."""
    value, turns = record.get(key), []
    for turn in value if isinstance(value, list) else [value]:
        who = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
        said = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
        turns.append((_SPEAKERS.get(who, repr(who)) if isinstance(who, str) else repr(who), said))
    return turns


def question_field(record: Record, key: str, answered: bool = False) -> str:
    """The question as a text, or as the turn of a user alone; with `answered` as the first turn of a conversation. Raises
    `RowError`."""
    if not isinstance(record.get(key), list):
        return text_field(record, key)
    turns = _exchange(record, key) if answered else _turns(record, key)
    if not answered and [who for who, _ in turns] != ["user"]:
        raise record.error(key, f"expected one message with role 'user', found {record.get(key)!r:.120}")
    return text_field(Record({key: turns[0][1]}, record.file, record.number), key)


def answering_turn(record: Record, key: str) -> str:
    """The answer to a conversation's first question. Raises `RowError`."""
    return text_field(Record({key: _exchange(record, key)[1][1]}, record.file, record.number), key)


def _exchange(record: Record, key: str) -> list[tuple[str, Any]]:
    """The question and the answer with which a conversation begins."""
    turns = _turns(record, key)
    if [who for who, _ in turns[:2]] != ["user", "assistant"]:
        found = ", ".join(who for who, _ in turns[:2]) or "nobody"
        raise record.error(key, f"expected a question and its answer, found a conversation that begins with {found}")
    return turns[:2]


def answer_field(record: Record, key: str) -> str:
    """The answer as a text, a number, or the turn behind a conversation's question. Raises `RowError`."""
    return answering_turn(record, key) if isinstance(record.get(key), list) else text_field(record, key, numbers=True)


def truth_in(answer: str, record: Record, keys: RowKeys) -> str:
    """The truth in an answer: all of it, or what stands in its box or tag. Raises `RowError`."""
    if keys.boxed:
        return _in_box(answer, record, keys.answer)
    return answer if keys.tag is None else _in_tag(answer, keys.tag, record, keys.answer)


def _in_box(answer: str, record: Record, key: str) -> str:
    """What stands in the last box of a truth. Raises `RowError`."""
    content = last_boxed(answer)
    if content is None or not content.strip():
        raise record.error(key, f"expected an answer in \\boxed{{…}}, found {answer!r:.80}; `answer_boxed` says it is there")
    return content.strip()


def _in_tag(answer: str, tag: str, record: Record, key: str) -> str:
    """What stands in the last complete `<tag>…</tag>` of a truth. Raises `RowError`."""
    before, closing, _ = answer.rpartition(f"</{tag}>")
    _, opening, content = before.rpartition(f"<{tag}>")
    if not closing or not opening or not content.strip():
        raise record.error(key, f"expected an answer in <{tag}>…</{tag}>, found …{answer[-80:]!r}")
    return content.strip()


def text_field(record: Record, key: str, numbers: bool = False) -> str:
    """A non-empty text field; with `numbers` also a number, as text. Raises `RowError`."""
    value = record.get(key)
    if (
        numbers
        and not isinstance(value, bool)
        and (isinstance(value, int) or isinstance(value, float) and math.isfinite(value))
    ):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise record.error(key, f"expected a non-empty text{' or a number' if numbers else ''}, found {value!r:.80}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise record.error(key, f"the text is no valid Unicode, no tokenizer reads it: {error}") from error
    return value


def _check_json(value: Any, record: Record, key: str) -> None:
    """Metadata are journalled with the rollouts. Raises `RowError` for what JSON cannot hold, before training."""
    try:
        json.dumps(value).encode()
    except (TypeError, ValueError) as error:
        raise record.error(key, f"metadata must be what JSON can hold, found {type(value).__name__} ({error})") from error


def check_markers(question: str, images: int, record: Record, key: str) -> None:
    """What the processor would refuse when the row's turn comes, which may be after a day of training. Raises `RowError`."""
    if (markers := question.count(IMAGE_MARKER)) not in (0, images):
        reason = "give one marker per image, or none to put all images first"
        raise record.error(key, f"{markers} {IMAGE_MARKER} markers for {images} images; {reason}")
    if IMAGE_PAD in question:
        raise record.error(key, f"the text holds {IMAGE_PAD}, which stands for pixels; write {IMAGE_MARKER} for an image")


def _images(record: Record, key: str, root: Path) -> tuple[ImageSource, ...]:
    """The images of a record, not yet decoded; paths are checked to exist."""
    return tuple(_image(item, record, key, root) for item in image_items(record, key))


def image_items(record: Record, key: str) -> Sequence[Any]:
    """What a record gives as its images: one, a list, or null or an empty text for none. Raises `RowError`."""
    value = record.get(key)
    return [] if value is None or value == "" else value if isinstance(value, list) else [value]


def _image(item: Any, record: Record, key: str, root: Path) -> ImageSource:
    """One image of a record: bytes, a path, or Hugging Face's dictionary of both."""
    if isinstance(item, dict):
        item = item.get("bytes") or item.get("path")
    if isinstance(item, bytes):
        return item
    if not isinstance(item, str) or not item:
        raise record.error(key, f"expected an image as a path, as bytes or as {{'bytes', 'path'}}, found {item!r:.80}")
    file = root / item
    if not is_place(file, Path.is_file):
        raise record.error(key, f"image file {str(file)[:200]!r} does not exist")
    return str(file)
