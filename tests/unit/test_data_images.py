"""Images: what the store hands out is what Hugging Face's processor computes, once per content."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from octopus_mcore.data import images
from octopus_mcore.data.images import ImageStore, UnknownImage, content_key, load_image_processor, open_image


def picture(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def store(digits_checkpoint):
    return ImageStore(load_image_processor(digits_checkpoint))


@pytest.mark.parametrize("sizes", [[(48, 16)] * 5, [(48, 16), (40, 72), (48, 16), (16, 16), (40, 72)], [(400, 300)]])
def test_pixels_equal_the_hf_processor_image_by_image(digits_checkpoint, store, sizes):
    images = [picture(*size, seed) for seed, size in enumerate(sizes)]
    processor = load_image_processor(digits_checkpoint)
    for (key, grid), image in zip(store.add_many(images), images, strict=True):
        expected = processor(images=[image], return_tensors="np")
        np.testing.assert_array_equal(store[key].pixel_values, expected["pixel_values"])
        assert store[key].pixel_values.dtype == np.float32
        assert grid == store[key].grid_thw == tuple(expected["image_grid_thw"][0])
        assert store.raw(key).tobytes() == image.tobytes()


def test_narrower_bounds_resize_as_the_hf_processor_does_with_them(digits_checkpoint):
    narrow = load_image_processor(digits_checkpoint, (1024, 4096))
    asked = {"shortest_edge": 1024, "longest_edge": 4096}
    for size in [(400, 300), (16, 16), (48, 64)]:
        image = picture(*size, 1)
        expected = load_image_processor(digits_checkpoint)(images=[image], size=asked, return_tensors="np")
        store = ImageStore(narrow)
        key, grid = store.add(image)
        np.testing.assert_array_equal(store[key].pixel_values, expected["pixel_values"])
        assert 1024 <= np.prod(grid) * 8 * 8 <= 4096, "pixels of 8 × 8 patches"
    own = load_image_processor(digits_checkpoint)
    assert load_image_processor(digits_checkpoint, (None, 4096)).size.shortest_edge == own.size.shortest_edge


@pytest.mark.parametrize("pixels", [(1, None), (None, 10**9), (4096, 1024)])
def test_bounds_that_engines_would_undo_are_refused(digits_checkpoint, pixels):
    with pytest.raises(ValueError, match=r"data.min_pixels=\d+ and data.max_pixels=\d+ must be .*preprocessor_config.json"):
        load_image_processor(digits_checkpoint, pixels)


def test_a_picture_of_digits_keeps_its_size(store):
    assert store.add(picture(48, 16, 0))[1] == (1, 2, 6)
    assert store.num_tokens((1, 2, 6)) == 3


def test_key_is_the_content_not_the_file_or_the_mode(tmp_path, store):
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    grey.save(tmp_path / "grey.png")
    grey.convert("RGB").save(tmp_path / "colour.bmp")
    keys = {content_key(open_image(tmp_path / name, "test")) for name in ("grey.png", "colour.bmp")}
    keys.add(store.add(grey)[0])
    assert len(keys) == 1 and len(store) == 1
    flat = Image.frombytes("RGB", (32, 8), grey.convert("RGB").tobytes())
    assert content_key(flat) not in keys, "the same bytes in another shape are another image"


def test_an_image_is_processed_once(store, monkeypatch):
    first = store.add(picture(48, 16, 1))
    monkeypatch.setattr(store, "_processor", None)
    assert store.add(picture(48, 16, 1)) == first


def test_equal_images_in_one_batch(store):
    keys = [key for key, _ in store.add_many([picture(48, 16, seed) for seed in (0, 1, 0)])]
    assert keys[0] == keys[2] != keys[1] and len(store) == 2


sizes = st.sampled_from([(48, 16), (40, 72), (16, 16), (64, 64)])


@given(pictures=st.lists(st.tuples(sizes, st.integers(0, 3)), max_size=8), workers=st.integers(2, 5))
@settings(deadline=None, max_examples=15)
def test_the_number_of_workers_changes_nothing(digits_checkpoint, pictures, workers):
    one, many = (
        ImageStore(load_image_processor(digits_checkpoint)),
        ImageStore(load_image_processor(digits_checkpoint), workers),
    )
    sources = [encoded(picture(*size, seed)) for size, seed in pictures]
    names = [f"image {number}" for number in range(len(sources))]
    assert one.add_sources(sources, names) == many.add_sources(sources, names)
    assert list(one) == list(many), "stored in the same order"
    for key in one:
        assert one[key].pixel_values.tobytes() == many[key].pixel_values.tobytes() and one[key].grid_thw == many[key].grid_thw
        assert one.raw(key).tobytes() == many.raw(key).tobytes()


@pytest.mark.parametrize("workers", [1, 4])
def test_the_first_of_several_errors_is_told(digits_checkpoint, workers):
    store = ImageStore(load_image_processor(digits_checkpoint), workers)
    sources = [encoded(picture(48, 16, 0)), b"no picture", "nowhere.png", b"none either"]
    with pytest.raises(ValueError, match=r"row 1: image \(bytes\) cannot be decoded"):
        store.add_sources(sources, [f"row {number}" for number in range(4)])
    assert len(store) == 0


def test_a_source_is_decoded_once(digits_checkpoint, tmp_path, monkeypatch):
    """While its image is kept, and the file has not changed."""
    store, decoded = ImageStore(load_image_processor(digits_checkpoint)), []
    monkeypatch.setattr(images, "open_image", lambda source, what: decoded.append(what) or open_image(source, what))
    file = tmp_path / "a.png"
    picture(48, 16, 0).save(file)
    added = store.add_sources([file, encoded(picture(48, 16, 1)), file, str(file)], list("abcd"))
    assert decoded == ["a", "b"] and added[0] == added[2] == added[3] != added[1]
    store.add_sources([encoded(picture(48, 16, 1)), file], list("ef"))
    assert decoded == ["a", "b"]
    picture(48, 32, 2).save(file)
    changed = store.add_sources([file], ["g"])
    assert decoded == ["a", "b", "g"] and changed != added[:1]
    store.retain([])
    store.add_sources([file], ["h"])
    assert decoded == ["a", "b", "g", "h"] and len(store) == 1
    same = picture(48, 16, 5)
    assert store.add_sources([same, same], list("ij")) == [store.add(same)] * 2


def test_retain_forgets_the_others_and_says_so(store):
    keys = [key for key, _ in store.add_many([picture(48, 16, seed) for seed in range(3)])]
    store.retain(keys[1:2])
    assert list(store) == keys[1:2] and keys[0] not in store
    with pytest.raises(UnknownImage, match=f"{keys[0]}.*retain"):
        store[keys[0]]
    with pytest.raises(UnknownImage, match="retain"):
        store.raw(keys[0])
    with pytest.raises(UnknownImage, match=keys[2]):
        store.retain([keys[1], keys[2]])
    assert list(store) == keys[1:2], "a refused retain changes nothing"


def test_a_retained_image_does_not_hold_its_batch(store):
    keys = [key for key, _ in store.add_many([picture(48, 16, seed) for seed in range(3)])]
    assert store[keys[0]].pixel_values.base is None


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"row 3: image file '.*nowhere.png' does not exist"):
        open_image(tmp_path / "nowhere.png", "row 3")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"row 3: image '.*text.png' cannot be decoded"):
        open_image(tmp_path / "text.png", "row 3")
    Image.new("RGB", (64, 64)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"cut.png' cannot be decoded"):
        open_image(tmp_path / "cut.png", "row 3")
    with pytest.raises(ValueError, match=r"row 3: image \(PngImageFile\) cannot be decoded"):
        open_image(Image.open(tmp_path / "cut.png"), "row 3")


@pytest.mark.parametrize("name", ["grey.png", "grey.tiff"])
def test_sixteen_bits_become_eight(tmp_path, name):
    """PIL alone clips: everything above 255 of 65535 would be white."""
    grey = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / name)
    for source in (tmp_path / name, Image.fromarray(grey)):
        np.testing.assert_array_equal(np.asarray(open_image(source, "test"))[..., 0], grey >> 8)


def test_images_without_a_range_are_refused(tmp_path):
    Image.fromarray(np.random.default_rng(0).random((8, 8), dtype=np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="row 3: image '.*float.tiff' has pixels of mode F"):
        open_image(tmp_path / "float.tiff", "row 3")


def test_strips_that_the_processor_refuses_are_named(tmp_path):
    Image.new("RGB", (402, 2)).save(tmp_path / "strip.png")
    with pytest.raises(ValueError, match="row 3: image '.*strip.png' is 402×2 pixels"):
        open_image(tmp_path / "strip.png", "row 3")
    assert open_image(Image.new("RGB", (400, 2)), "row 3").size == (400, 2)


def test_exif_orientation_is_applied(tmp_path):
    image = picture(48, 16, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert open_image(tmp_path / "turned.png", "test").size == (16, 48)


def test_checkpoints_without_a_fitting_image_processor_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="preprocessor_config.json is missing"):
        load_image_processor(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    with pytest.raises(ValueError, match="preprocessor_config.json.*found CLIPImageProcessor"):
        load_image_processor(tmp_path)
