"""Images, stored once by the hash of their content and processed once by the checkpoint's own image processor.

Prompts refer to images by key (`ImageRef`); engines, the policy and the journal look the pixels up here. Processing runs in
Hugging Face's PIL backend on every machine, with or without torchvision, so a laptop and a cluster see the same pixel values.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import struct
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps
from transformers import AutoImageProcessor
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from octopus_mcore.experience.types import ProcessedImage

ImageSource = str | PathLike | bytes | Image.Image
"""What a row may hold as an image: a file's path, an encoded file's bytes, or a PIL image."""

T = TypeVar("T")
R = TypeVar("R")

Grid = tuple[int, int, int]
"""Patch grid of an image: frames, rows, columns, before spatial merging."""


MAX_ASPECT = 200
"""Longer side / shorter side that Qwen's image processors accept."""

_UNDECODABLE = (OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, RuntimeError)
_UNDECODABLE += (struct.error, zlib.error, Image.DecompressionBombError)
"""What PIL's many decoders raise for files that they cannot read; want of memory is not the file's fault."""


class UnknownImage(KeyError):
    """An image was asked for that the store does not hold."""

    def __str__(self) -> str:
        return f"image {self.args[0]!r} is not in the store: it was never added, or `retain` let it go"


class UnfitImage(ValueError):
    """An image can be decoded but not be used."""


Pixels = tuple[int | None, int | None]
"""Fewest and most pixels of an image after resizing; None stands for the checkpoint's own bound."""


def load_image_processor(path: str | PathLike, pixels: Pixels = (None, None)) -> Qwen2VLImageProcessorPil:
    """The image processor that a checkpoint folder names in `preprocessor_config.json`, in its PIL form, with narrower bounds
    of an image's `pixels` where given.

    Raises:
        FileNotFoundError: the folder has no `preprocessor_config.json`.
        ValueError: the file names a processor of another family than Qwen2-VL's, which Qwen3-VL uses too; or its own bounds
            are narrower than `pixels`.
    """
    file = Path(path) / "preprocessor_config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: a vision-language checkpoint needs its image processor's settings")
    processor = AutoImageProcessor.from_pretrained(str(path), backend="pil")
    if not isinstance(processor, Qwen2VLImageProcessorPil):
        raise ValueError(
            f"{file}: expected the Qwen2-VL family (image_processor_type Qwen2VLImageProcessor or …Fast), "
            f"found {type(processor).__name__}; other families lay out patches differently and are not supported"
        )
    _narrow(processor, pixels, file)
    return processor


def _narrow(processor: Qwen2VLImageProcessorPil, pixels: Pixels, file: Path) -> None:
    """Sets the bounds of an image's pixels. Engines resize what they are sent by the checkpoint's bounds: within these they
    have nothing left to resize, and both sides see the same pixels."""
    least, most = processor.size["shortest_edge"], processor.size["longest_edge"]
    low, high = (bound if given is None else given for given, bound in zip(pixels, (least, most), strict=True))
    if not least <= low <= high <= most:
        raise ValueError(
            f"data.min_pixels={low} and data.max_pixels={high} must be in this order and within the bounds of {file}: {least} "
            f"to {most} pixels"
        )
    processor.size = SizeDict(shortest_edge=low, longest_edge=high)


def open_image(source: ImageSource, what: str) -> Image.Image:
    """The image in RGB; one that comes from a file or from encoded bytes is turned upright as its EXIF data say. `what` names
    the place that it belongs to, for error messages. 16 bits of grey become 8; transparency is dropped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an image that PIL can decode.
        UnfitImage: its pixel values have no fixed range (32 bits, floats), or it is a strip that image processors refuse.
    """
    name = _name(source)
    try:
        if isinstance(source, Image.Image):
            image = source
            image.load()
        else:
            with Image.open(_opened(source)) as opened:
                image = ImageOps.exif_transpose(opened)
                image.load()
    except FileNotFoundError:
        raise FileNotFoundError(f"{what}: image file {name} does not exist") from None
    except _UNDECODABLE as error:
        raise ValueError(f"{what}: image {name} cannot be decoded: {error}") from error
    _check_form(image, f"{what}: image {name}")
    if image.mode.startswith("I;16"):  # PIL would clip these to 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def check_header(file: str | PathLike | bytes, what: str) -> None:
    """Refuses what `open_image` would refuse, as far as the file's header shows it; pixels are not decoded. Raises like it."""
    try:
        with Image.open(_opened(file)) as image:
            _check_form(image, f"{what}: image {_name(file)}")
    except FileNotFoundError:
        raise FileNotFoundError(f"{what}: image file {_name(file)} does not exist") from None
    except UnfitImage:
        raise
    except _UNDECODABLE as error:
        raise ValueError(f"{what}: image {_name(file)} cannot be decoded: {error}") from error


def check_pixels(source: str | PathLike | bytes, what: str) -> None:
    """Refuses what `open_image` would refuse. JPEG pixels are decoded at an eighth of their size, which is faster and reads the
    file to its end all the same. Raises like it."""
    check_header(source, what)
    try:
        with Image.open(_opened(source)) as image:
            image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except _UNDECODABLE as error:
        raise ValueError(f"{what}: image {_name(source)} cannot be decoded: {error}") from error


def _check_form(image: Image.Image, name: str) -> None:
    if image.mode in ("I", "F"):
        raise UnfitImage(f"{name} has pixels of mode {image.mode}, whose range is unknown; convert it to 8 bits per channel")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise UnfitImage(f"{name} is {image.width}×{image.height} pixels; its sides may differ {MAX_ASPECT} times at most")


def _opened(file: str | PathLike | bytes) -> str | PathLike | io.BytesIO:
    """What PIL opens."""
    return io.BytesIO(file) if isinstance(file, bytes) else file


def _name(source: ImageSource) -> str:
    return repr(str(source)) if isinstance(source, str | PathLike) else f"({type(source).__name__})"


def content_key(image: Image.Image) -> str:
    """The key of an RGB image: 128-bit BLAKE2 of its width, height and decoded pixels, 32 hexadecimal digits."""
    digest = hashlib.blake2b(b"%dx%d:" % image.size, digest_size=16)
    digest.update(image.tobytes())
    return digest.hexdigest()


class ImageStore(Mapping[str, ProcessedImage]):
    """Processed images by content key, with their raw form beside them for engines that process images themselves.

    Nothing is forgotten silently: memory grows with every new image until the owner calls `retain`. Images are decoded and
    processed by `workers` threads; their number changes neither an order nor a byte.
    """

    def __init__(self, image_processor: Qwen2VLImageProcessorPil | None, workers: int = 1) -> None:
        """`image_processor` is None for a text model: its store stays empty."""
        self._processor = image_processor
        self._workers = workers
        self._keys_of_sources: dict[tuple, str] = {}
        self._processed: dict[str, ProcessedImage] = {}
        self._raw: dict[str, Image.Image] = {}

    @property
    def takes_images(self) -> bool:
        """False for a text model."""
        return self._processor is not None

    @property
    def merge_size(self) -> int:
        """Patches along one side of the square that becomes one image token; 1 for a text model."""
        return self._processor.merge_size if self.takes_images else 1

    def num_tokens(self, grid: Grid) -> int:
        """Placeholder tokens of an image with this patch grid: prod(grid) / merge²."""
        return math.prod(grid) // self.merge_size**2

    def add(self, image: Image.Image) -> tuple[str, Grid]:
        """Stores an image; returns its key and patch grid. An image that is already there costs only its hash."""
        return self.add_many([image])[0]

    def add_many(self, images: Sequence[Image.Image]) -> list[tuple[str, Grid]]:
        """Like `add` for many images at once; new images of equal size are processed together.

        Raises:
            UnfitImage: the store is a text model's.
        """
        return self._add_keyed(self._each(_keyed, images))

    def add_sources(self, sources: Sequence[ImageSource], names: Sequence[str]) -> list[tuple[str, Grid]]:
        """Like `add_many` for images that are not opened yet, `names` being what errors call them. A file or encoded image that
        is here already is not decoded again, however often it is named.

        Raises:
            FileNotFoundError, ValueError, UnfitImage: as `open_image`, for the first in order; the store is a text model's.
        """
        marks = [_mark(source) for source in sources]
        places = {
            mark: place for place, mark in reversed(list(enumerate(marks))) if self._keys_of_sources.get(mark) not in self
        }
        new = sorted(places.values())
        opened = self._each(lambda place: _keyed(open_image(sources[place], names[place])), new)
        self._add_keyed(opened)
        found = {marks[place]: key for place, (key, _) in zip(new, opened, strict=True)}
        keys = [found[mark] if mark in found else self._keys_of_sources[mark] for mark in marks]
        self._keys_of_sources |= {mark: key for mark, key in found.items() if mark[0] != "image"}
        return [(key, self._processed[key].grid_thw) for key in keys]

    def _each(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """The results in order; of several errors the first in order is raised."""
        if self._workers == 1 or len(items) < 2:
            return [work(item) for item in items]
        with ThreadPoolExecutor(self._workers) as threads:  # PIL and NumPy leave the interpreter alone while they compute
            return list(threads.map(work, items))

    def _add_keyed(self, keyed: Sequence[tuple[str, Image.Image]]) -> list[tuple[str, Grid]]:
        """Processes and stores what is new among RGB images with their keys."""
        by_size: dict[tuple[int, int], dict[str, Image.Image]] = {}
        for key, image in keyed:
            if key not in self._processed:
                by_size.setdefault(image.size, {})[key] = image
        if by_size and not self.takes_images:
            raise UnfitImage(f"{len(keyed)} images for a text model, which has no image processor")
        groups = [group for new in by_size.values() for group in _groups(self._processor, list(new.items()))]
        results = self._each(lambda group: process_equal_sizes(self._processor, [image for _, image in group]), groups)
        for group, processed in zip(groups, results, strict=True):
            for (key, image), result in zip(group, processed, strict=True):
                self._processed[key] = result
                self._raw[key] = image
        return [(key, self._processed[key].grid_thw) for key, _ in keyed]

    def raw(self, key: str) -> Image.Image:
        """The RGB image as it was added, before any resizing. Raises `UnknownImage`."""
        try:
            return self._raw[key]
        except KeyError:
            raise UnknownImage(key) from None

    def retain(self, keys: Collection[str]) -> None:
        """Forgets every image whose key is not among `keys`. Raises `UnknownImage` if one of them is not there."""
        wanted = set(keys)
        for key in wanted - self._processed.keys():
            raise UnknownImage(key)
        for key in self._processed.keys() - wanted:
            del self._processed[key], self._raw[key]
        self._keys_of_sources = {mark: key for mark, key in self._keys_of_sources.items() if key in wanted}

    def __getitem__(self, key: str) -> ProcessedImage:
        try:
            return self._processed[key]
        except KeyError:
            raise UnknownImage(key) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._processed)

    def __len__(self) -> int:
        return len(self._processed)


def _keyed(image: Image.Image) -> tuple[str, Image.Image]:
    """The image in RGB behind its key."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return content_key(rgb), rgb


def _mark(source: ImageSource) -> tuple:
    """What tells sources apart without decoding them: a file by its path, size and time, encoded bytes by their hash, and PIL
    images, which their owners may change, each by itself."""
    if isinstance(source, bytes):
        return ("bytes", hashlib.blake2b(source, digest_size=16).digest())
    if isinstance(source, Image.Image):
        return ("image", object())
    try:
        found = os.stat(source)
    except (OSError, ValueError):  # opening it will say what is wrong
        return ("file", str(source))
    return ("file", str(source), found.st_size, found.st_mtime_ns)


def _groups(processor: Qwen2VLImageProcessorPil, images: list[tuple[str, Image.Image]]) -> list[list[tuple[str, Image.Image]]]:
    """Images of one size as they are processed: together, or one by one where they must be resized."""
    return [images] if _keeps_its_size(processor, images[0][1]) else [[image] for image in images]


def process_equal_sizes(processor: Qwen2VLImageProcessorPil, images: Sequence[Image.Image]) -> list[ProcessedImage]:
    """Processes RGB images of one size; the result equals the processor's image by image, bit for bit.

    Images that keep their size are stacked into one tall picture and go through the processor in one call: rescaling and
    normalising act on single pixels and patches are cut row by row, so the tall picture's patches are the images' patches in
    order. Tiny images cost about six times less that way. Images that must be resized go one by one.
    """
    if len(images) > 1 and _keeps_its_size(processor, images[0]):
        tall = np.concatenate([np.asarray(image) for image in images])
        result = processor(images=[tall], do_resize=False, input_data_format="channels_last", return_tensors="np")
        parts = np.split(result["pixel_values"], len(images))
        _, rows, columns = result["image_grid_thw"][0].tolist()
        grids = [(1, rows // len(images), columns)] * len(images)
    else:
        results = [processor(images=[image], return_tensors="np") for image in images]
        parts = [result["pixel_values"] for result in results]
        grids = [tuple(result["image_grid_thw"][0].tolist()) for result in results]
    # a copy each, so that one retained image does not keep the whole batch in memory
    return [ProcessedImage(np.array(part, dtype=np.float32), grid) for part, grid in zip(parts, grids, strict=True)]


def _keeps_its_size(processor: Qwen2VLImageProcessorPil, image: Image.Image) -> bool:
    """Whether the processor would leave this image's size alone, and does nothing but pixel-wise work and patching."""
    if type(processor) is not Qwen2VLImageProcessorPil:
        return False
    factor = processor.patch_size * processor.merge_size
    if image.width % factor or image.height % factor:
        return False
    size = processor.size
    return not processor.do_resize or smart_resize(
        image.height, image.width, factor=factor, min_pixels=size["shortest_edge"], max_pixels=size["longest_edge"]
    ) == (image.height, image.width)
