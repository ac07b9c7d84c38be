"""Images of a dataset: where their files are, also inside of zip archives that nobody has unpacked, and the form in which each
is stored."""

from __future__ import annotations

import hashlib
import io
import posixpath
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from octopus_mcore.data.images import content_key, open_image

_KEPT = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg"}
"""Formats whose files are stored as they are, and their suffixes."""


@dataclass(frozen=True)
class ImageBytes:
    """An image's file as it was found: where (below the source; `archive:member` inside of a zip file; None for an image that
    stands in its row) and its SHA-256."""

    data: bytes
    name: str | None
    sha256: str


@dataclass(frozen=True)
class StoredImage:
    """An image in the form in which it is stored: `key` is that of its decoded pixels (`content_key`)."""

    key: str
    suffix: str
    data: bytes
    resized: bool

    @property
    def path(self) -> str:
        """Its path below the prepared folder."""
        return f"images/{self.key[:2]}/{self.key}.{self.suffix}"


class ImageFiles:
    """Image files by the paths that rows give: below `root` behind one of the `folders`, or in one of the zip archives."""

    def __init__(self, root: Path, folders: Sequence[str], archives: Sequence[Sequence[Path]]) -> None:
        self._root, self._folders = root, folders
        self._archives = [_Archive(parts) for parts in archives]

    def read(self, path: str) -> ImageBytes | None:
        """The file that a row's path means; None where there is none.

        Raises:
            OSError, ValueError: it cannot be read; the archive is damaged.
        """
        names = [posixpath.normpath(posixpath.join(folder, path)) for folder in self._folders]
        for name in names:
            file = self._root / name
            if _is_file(file):
                return _found(file.read_bytes(), name)
        for archive in self._archives:
            for name in names:
                if (data := archive.read(name)) is not None:
                    return _found(data, f"{archive.name}:{name}")
        return None


def _found(data: bytes, name: str) -> ImageBytes:
    return ImageBytes(data, name, hashlib.sha256(data).hexdigest())


def _is_file(path: Path) -> bool:
    """Whether there is such a file; False also for what cannot be a path, such as an image in base64."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


class _Archive:
    """A zip file, whole or in parts."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self.name = parts[0].name if len(parts) == 1 else f"{parts[0].name}…"
        try:
            self._zip = zipfile.ZipFile(parts[0] if len(parts) == 1 else io.BufferedReader(_Joined(parts)))
        except zipfile.BadZipFile as error:
            listed = ", ".join(part.name for part in parts)
            raise ValueError(f"{parts[0].parent}: {listed} make no zip file ({error}); is a part missing?") from error
        self._members = frozenset(self._zip.namelist())

    def read(self, name: str) -> bytes | None:
        if name not in self._members:
            return None
        try:
            return self._zip.read(name)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
            raise ValueError(f"{self.name}: {name} cannot be unpacked: {error}") from error


class _Joined(io.RawIOBase):
    """Several files read as one, as `cat` would join them."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self._streams = [part.open("rb") for part in parts]
        self._starts = np.cumsum([0] + [part.stat().st_size for part in parts])
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: int(self._starts[-1])}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        number = int(np.searchsorted(self._starts, self._at, side="right")) - 1
        if number >= len(self._streams):
            return 0
        stream = self._streams[number]
        stream.seek(self._at - int(self._starts[number]))
        count = stream.readinto(buffer)
        self._at += count
        return count

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        super().close()


def stored_form(data: bytes, what: str, processor: Qwen2VLImageProcessorPil | None) -> StoredImage:
    """How an encoded image is stored. PNG and JPEG files stay as they are, so that they decode to the same pixels; other
    formats become PNG. With a `processor`, an image that it would resize is resized as it does, and becomes PNG.

    Raises:
        ValueError: as `open_image`. `what` names the image.
    """
    image = open_image(data, what)
    if processor is not None and (resized := _resized(processor, image)) is not None:
        return StoredImage(content_key(resized), "png", _png(resized), True)
    suffix = _KEPT.get(_format(data))
    return StoredImage(content_key(image), suffix or "png", data if suffix else _png(image), False)


def _format(data: bytes) -> str | None:
    with Image.open(io.BytesIO(data)) as image:
        return image.format


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _resized(processor: Qwen2VLImageProcessorPil, image: Image.Image) -> Image.Image | None:
    """The image as the processor resizes it. None where it keeps its size, and where the rule would resize the result once more
    (bounds so narrow that no size fits them): pixel values must be those of the image as it was."""
    factor, size = processor.patch_size * processor.merge_size, processor.size

    def ruled(height: int, width: int) -> tuple[int, int]:
        return smart_resize(height, width, factor=factor, min_pixels=size.shortest_edge, max_pixels=size.longest_edge)

    target = ruled(image.height, image.width)
    if not processor.do_resize or target == (image.height, image.width) or ruled(*target) != target:
        return None
    pixels = processor.process_image(image, do_convert_rgb=processor.do_convert_rgb)
    resized = processor.resize(pixels, size=size, resample=processor.resample, factor=factor)
    return Image.fromarray(np.ascontiguousarray(np.moveaxis(resized, 0, -1)))
