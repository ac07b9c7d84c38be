"""Pictures that come back from patches."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from octopus_mcore.data.images import ImageStore, load_image_processor
from octopus_mcore.experience.types import ProcessedImage
from octopus_mcore.rollout.pictures import PictureCodec
from octopus_mcore.runtime.seeds import numpy_generator


@settings(deadline=None, max_examples=25)
@given(width=st.integers(8, 90), height=st.integers(8, 90), seed=st.integers(0, 99))
def test_processing_the_picture_again_gives_the_patches(digits_checkpoint: Path, width: int, height: int, seed: int):
    """Also where the first processing resized: what comes back is the resized picture, which is not resized again."""
    store = ImageStore(load_image_processor(digits_checkpoint))
    pixels = numpy_generator(seed, "pictures").integers(0, 256, (height, width, 3), dtype=np.uint8)
    key, grid = store.add(Image.fromarray(pixels))
    codec = PictureCodec(digits_checkpoint)
    again, grid_again = store.add(Image.fromarray(codec.picture(store[key])))
    assert grid_again == grid
    np.testing.assert_array_equal(store[again].pixel_values, store[key].pixel_values)
    if (width % 16, height % 16) == (0, 0):
        np.testing.assert_array_equal(codec.picture(store[key]), pixels)


def test_a_salt_changes_the_bytes_and_not_the_picture(digits_checkpoint: Path):
    store = ImageStore(load_image_processor(digits_checkpoint))
    key, _ = store.add(Image.fromarray(numpy_generator("salt").integers(0, 256, (32, 48, 3), dtype=np.uint8)))
    codec = PictureCodec(digits_checkpoint)
    files = [codec.png(store[key], salt) for salt in ("weights 1", "weights 2")]
    assert files[0] != files[1]
    assert files[0] == codec.png(store[key], "weights 1")
    pictures = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    np.testing.assert_array_equal(pictures[0], codec.picture(store[key]))


def test_patches_that_are_no_picture_are_refused(digits_checkpoint: Path):
    noise = numpy_generator("noise").standard_normal((4, 3 * 2 * 8 * 8), dtype=np.float32)
    with pytest.raises(ValueError, match="not a picture"):
        PictureCodec(digits_checkpoint).picture(ProcessedImage(noise, (1, 2, 2)))
