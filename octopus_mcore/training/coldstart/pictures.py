"""Images of rows as files: stored once, under the hash of their bytes, and encoded for a chat model."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Collection
from pathlib import Path

from PIL import Image

from octopus_mcore.data.images import ImageSource, open_image

FOLDER = "images"
_PORTABLE = ("PNG", "JPEG")
_ORIENTATION = 0x0112
"""EXIF's tag of an image that is to be turned; who ignores it sees it lying."""
_ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}


def encoded(image: ImageSource) -> bytes:
    """The image's file as it is; a PIL image as PNG."""
    if isinstance(image, bytes):
        return image
    return _png(image) if isinstance(image, Image.Image) else Path(image).read_bytes()


def portable(image: ImageSource, what: str) -> bytes:
    """The image as a PNG or JPEG file that everybody sees upright. Raises like `open_image`; `what` names its place."""
    content = encoded(image)
    upright = open_image(content, what)
    with Image.open(io.BytesIO(content)) as header:
        plain = header.format in _PORTABLE and header.getexif().get(_ORIENTATION, 1) == 1
    return content if plain else _png(upright)


def store(output: Path, image: ImageSource) -> str:
    """Writes the image below `output`, unless it is there; its path relative to that folder. The file appears whole or not at
    all."""
    content = encoded(image)
    with Image.open(io.BytesIO(content)) as header:
        ending = _ENDINGS.get(header.format or "", "img")
    name = f"{FOLDER}/{hashlib.blake2b(content, digest_size=16).hexdigest()}.{ending}"
    file = output / name
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".partial")
        with draft.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
    return name


def keep_only(output: Path, names: Collection[str]) -> None:
    """Removes stored images, whole or in part, that are not among these."""
    folder = output / FOLDER
    for file in folder.iterdir() if folder.is_dir() else ():
        if f"{FOLDER}/{file.name}" not in names:
            file.unlink()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
