"""Videos as their frames: each frame becomes an image of its own. Video files are not decoded, and the family's own tokens for
videos, which merge frames in pairs and tell their times, are not used."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from octopus_mcore.data.images import ImageSource
from octopus_mcore.data.tables import Record

VIDEO_MARKER = "<video>"
"""Stands for a video inside a question."""

_FRAME_FILES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def frames_of(
    video: Any,
    root: Path,
    most: int,
    record: Record,
    key: str,
    image: Callable[[Any, Record, str, Path], ImageSource],
) -> tuple[ImageSource, ...]:
    """At most `most` frames of a video, evenly, the first and the last among them. A video is a list of images, each read by
    `image`, or a folder of image files, in the order of the numbers in their names. Raises `RowError`."""
    if isinstance(video, str) and video:
        folder = root / video
        if not is_place(folder, Path.is_dir):
            what = "is a file, and videos are not decoded" if is_place(folder, Path.is_file) else "does not exist"
            raise record.error(key, f"{str(folder)[:200]!r} {what}; expected a folder of frames, or a list of images")
        video = sorted(
            (str(Path(video) / file.name) for file in folder.iterdir() if file.suffix.lower() in _FRAME_FILES), key=_natural
        )
        if not video:
            raise record.error(key, f"{str(folder)!r} holds no frames ({', '.join(_FRAME_FILES)})")
    if not isinstance(video, list) or not video:
        raise record.error(key, f"expected a video as a list of images or as a folder of frames, found {video!r:.80}")
    return tuple(image(video[number], record, key, root) for number in evenly(len(video), most))


def is_place(path: Path, kind: Callable[[Path], bool]) -> bool:
    """Whether there is such a file or folder; False also for what cannot be a path, such as an image in base64."""
    try:
        return kind(path)
    except (OSError, ValueError):
        return False


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 … count - 1 at equal distances, ascending, the first and (from two on) the last too."""
    return list(range(count)) if count <= most else np.linspace(0, count - 1, most).round().astype(int).tolist()


def interleaved(
    question: str, images: Sequence[ImageSource], videos: Sequence[Sequence[ImageSource]], marker: str
) -> tuple[str, tuple[ImageSource, ...]]:
    """The question with a `marker` for every image and frame, and these in the order of their markers. What the question has no
    markers for stands before it: images first, then videos.

    Raises:
        ValueError: there are markers, but not one for each image or not one for each video.
    """
    for sign, name, given in ((marker, "images", images), (VIDEO_MARKER, "videos", videos)):
        if (count := question.count(sign)) not in (0, len(given)):
            raise ValueError(f"{count} {sign} markers for {len(given)} {name}; give one for each, or none to put them first")
    if marker not in question and VIDEO_MARKER not in question:
        return question, (*images, *(frame for video in videos for frame in video))
    if marker not in question:
        question = marker * len(images) + question
    elif VIDEO_MARKER not in question:
        question = VIDEO_MARKER * len(videos) + question
    left_images, left_videos = iter(images), iter(videos)
    text, ordered = [], []
    for piece in re.split(f"({re.escape(marker)}|{VIDEO_MARKER})", question):
        found = [next(left_images)] if piece == marker else list(next(left_videos)) if piece == VIDEO_MARKER else None
        ordered += found or []
        text.append(piece if found is None else marker * len(found))
    return "".join(text), tuple(ordered)


def _natural(name: str) -> list[Any]:
    """Sorts frame_2 before frame_10. Texts and numbers alternate, so that like is compared with like."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
