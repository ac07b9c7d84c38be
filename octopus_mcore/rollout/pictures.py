"""Processed images turned back into pictures, for engines that take pictures and process them themselves.

What is sent is the picture *after* the trainer's resizing: an engine's own processor then has nothing to resize, so both sides
see the same pixels whatever resizing each of them implements.
"""

from __future__ import annotations

import io
import json
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from octopus_mcore.experience.types import ProcessedImage

_ROUNDING = 0.01
"""How far a pixel may be from a whole number of 0…255 (float32 normalisation leaves about 1e-5)."""


class PictureCodec:
    """Undoes the Qwen2-VL image processor of a checkpoint folder: patches, normalisation, rescaling."""

    def __init__(self, folder: str | PathLike) -> None:
        """Raises FileNotFoundError when the folder has no image processor settings."""
        settings = json.loads((Path(folder) / "preprocessor_config.json").read_text(encoding="utf-8"))
        self._patch, self._merge = settings["patch_size"], settings["merge_size"]
        self._frames = settings["temporal_patch_size"]
        self._mean = np.array(settings["image_mean"], dtype=np.float64)
        self._std = np.array(settings["image_std"], dtype=np.float64)

    def picture(self, image: ProcessedImage) -> np.ndarray:
        """The resized picture, uint8 [height, width, 3].

        Raises:
            ValueError: the patches do not come from a picture of 8 bits by this processor.
        """
        frames, rows, columns = image.grid_thw
        merge, patch = self._merge, self._patch
        blocks = image.pixel_values.reshape(
            frames, rows // merge, columns // merge, merge, merge, 3, self._frames, patch, patch
        )
        # [row block, row, patch row, column block, column, patch column, colour] of the first of the equal frames.
        pixels = blocks[0, :, :, :, :, :, 0].transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * patch, columns * patch, 3)
        exact = (pixels.astype(np.float64) * self._std + self._mean) * 255
        whole = np.rint(exact)
        if frames != 1 or np.abs(exact - whole).max() > _ROUNDING or whole.min() < 0 or whole.max() > 255:
            raise ValueError("processed image is not a picture of 8 bits per channel made by this checkpoint's image processor")
        return whole.astype(np.uint8)

    def png(self, image: ProcessedImage, salt: str) -> bytes:
        """The picture as PNG; `salt` is written into the file as text, so a picture under another salt has other bytes."""
        note = PngInfo()
        note.add_text("salt", salt)
        buffer = io.BytesIO()
        Image.fromarray(self.picture(image)).save(buffer, "PNG", pnginfo=note, compress_level=1)
        return buffer.getvalue()
