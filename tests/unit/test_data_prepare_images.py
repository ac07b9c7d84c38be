"""Images of prepared datasets: from folders and unopened archives, resized so that the processor has nothing left to do."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from octopus_mcore.data.images import ImageStore, content_key, load_image_processor, open_image
from octopus_mcore.data.preparation.pictures import ImageFiles, stored_form
from octopus_mcore.data.preparation.prepare import Options, prepare
from octopus_mcore.data.preparation.registry import DATASETS, VIRL39K
from tests.published_sets import encoded, picture, write_llava_cot, write_virl39k


def files_of(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_archives_need_not_be_unpacked(tmp_path):
    """The hub has ViRL39K's images in one zip file; the same rows and images come out."""
    outs = []
    for zipped in (False, True):
        write_virl39k(tmp_path / f"in{zipped}", zipped)
        prepare(VIRL39K, str(tmp_path / f"in{zipped}"), tmp_path / "out")
        outs.append(files_of(tmp_path / "out"))
    assert outs[0].keys() == outs[1].keys()
    assert {name for name in outs[0] if outs[0][name] != outs[1][name]} == {
        "inputs.sha256",  # where they were read
        "rejects.jsonl",  # the truncated image is named there
        "checksums.sha256",
        "report.json",
    }
    assert b"  images.zip:images/0.jpg\n" in outs[1]["inputs.sha256"]


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_archives_in_parts(tmp_path, parts):
    """LLaVA-CoT's images are one zip file in sixteen parts."""
    write_llava_cot(tmp_path / "whole")
    write_llava_cot(tmp_path / "parts", parts)
    outs = []
    for name in ("whole", "parts"):
        prepare(DATASETS["llava-cot-100k"], str(tmp_path / name), tmp_path / "out")
        outs.append(files_of(tmp_path / "out"))
    assert outs[0]["rows.jsonl"] == outs[1]["rows.jsonl"] and len(outs[0]["rows.jsonl"]) > 100
    assert [n for n in outs[0] if n.startswith("images")] == [n for n in outs[1] if n.startswith("images")]


def test_a_missing_part_is_an_error(tmp_path):
    write_llava_cot(tmp_path / "in", 3)
    (tmp_path / "in/image.zip.part-ac").unlink()
    with pytest.raises(ValueError, match="image.zip.part-aa, image.zip.part-ab make no zip file .*is a part missing"):
        prepare(DATASETS["llava-cot-100k"], str(tmp_path / "in"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_below_another_folder(tmp_path):
    write_virl39k(tmp_path / "in")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in/images").rename(tmp_path / "elsewhere/images")
    report = prepare(VIRL39K, str(tmp_path / "in"), tmp_path / "out", Options(image_root=tmp_path / "elsewhere"))
    assert report["splits"]["rows"]["kept"] == 6
    with pytest.raises(ValueError, match="no row of 'rows' is left|missing image"):
        (tmp_path / "none").mkdir()
        prepare(DATASETS["llava-cot-100k"], str(write_llava_cot(tmp_path / "l")), tmp_path / "o", Options(tmp_path / "none"))


def test_damaged_members_cost_their_rows_alone(tmp_path):
    write_virl39k(tmp_path / "in", zipped=True)
    archive = tmp_path / "in/images.zip"
    whole = archive.read_bytes()
    at = whole.index(encoded(0, "JPEG"))
    archive.write_bytes(whole[: at + 400] + b"\x00\x01\x02" + whole[at + 403 :])
    report = prepare(VIRL39K, str(tmp_path / "in"), tmp_path / "out")
    rejects = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    errors = {reject["row"]: reject["reason"] for reject in rejects if reject["kind"] == "undecodable image"}
    # rows 1 and 11 show the image; row 4's is cut; row 8 is no duplicate any more, but its image is its own
    assert errors[1] == errors[11] and errors[1].startswith("images.zip: images/0.jpg cannot be unpacked: Bad CRC-32")
    assert report["splits"]["rows"]["kept"] == 5 and "8" not in {str(row) for row in errors}


@given(cuts=st.lists(st.integers(0, 400), max_size=4), data=st.data())
@settings(deadline=None, max_examples=30)
def test_joined_parts_read_like_the_whole(tmp_path_factory, cuts, data):
    folder = tmp_path_factory.mktemp("parts")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number in range(4):
            archive.writestr(f"a/{number}.bin", bytes([number]) * data.draw(st.integers(0, 60)))
    whole, edges = stream.getvalue(), sorted({0, *cuts, len(stream.getvalue())})
    parts = []
    for number, (start, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        parts.append(folder / f"part-{number}")
        parts[-1].write_bytes(whole[start:end])
    files = ImageFiles(folder, ("", "a"), [parts])
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        for name in archive.namelist():
            for path in (name, f"./{name}", name.removeprefix("a/")):
                assert files.read(path).data == archive.read(name)
    assert files.read("a/9.bin") is None


@pytest.mark.parametrize(
    ("kind", "suffix", "kept"),
    [("PNG", "png", True), ("JPEG", "jpg", True), ("GIF", "png", False), ("BMP", "png", False), ("WEBP", "png", False)],
)
def test_what_decodes_to_the_same_pixels_stays_as_it_is(kind, suffix, kept):
    data = encoded(3, kind)
    stored = stored_form(data, "image", None)
    assert (stored.suffix, stored.data == data, stored.resized) == (suffix, kept, False)
    assert stored.key == content_key(open_image(stored.data, "stored")) == content_key(open_image(data, "original"))


def test_turned_images_have_the_key_of_what_is_seen():
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    picture(0, (48, 16)).save(stream, "JPEG", exif=exif)
    stored = stored_form(stream.getvalue(), "image", None)
    assert stored.data == stream.getvalue() and open_image(stored.data, "stored").size == (16, 48)
    assert stored.key == content_key(open_image(stored.data, "stored"))


SIZES = [(24, 16), (48, 16), (400, 300), (300, 400), (9, 7), (1000, 8), (16, 16), (640, 480)]


@pytest.mark.parametrize(("pixels", "least"), [((None, None), 4), ((1024, 4096), 4), ((2048, 2304), 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_resized_images_give_the_processor_the_same_pixel_values(digits_checkpoint, pixels, least, kind):
    processor = load_image_processor(digits_checkpoint, pixels)
    resized = 0
    for seed, size in enumerate(SIZES):
        data = encoded(seed, kind, size)
        stored = stored_form(data, "image", processor)
        store = ImageStore(processor)
        before, grid = store.add(open_image(data, "original"))
        after, same_grid = store.add(open_image(stored.data, "stored"))
        np.testing.assert_array_equal(store[before].pixel_values, store[after].pixel_values)
        assert grid == same_grid and stored.key == after
        rows, columns = grid[1] * processor.patch_size, grid[2] * processor.patch_size
        if stored.resized:
            assert stored.suffix == "png" and open_image(stored.data, "stored").size == (columns, rows)
            resized += 1
        else:
            assert stored.data == data
    assert least <= resized < len(SIZES), "sizes of both kinds; between narrow bounds, few stay as the rule makes them"


@given(width=st.integers(4, 300), height=st.integers(4, 300), low=st.integers(1, 40), span=st.integers(0, 20))
@settings(deadline=None, max_examples=40)
def test_no_size_and_no_bounds_change_pixel_values(digits_checkpoint, width, height, low, span):
    """Also where bounds are so narrow that the processor would resize twice."""
    low, high = low * 256, min((low + span) * 256, 16384)
    processor = load_image_processor(digits_checkpoint, (low, high))
    image = picture(0, (width, height))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    stored = stored_form(stream.getvalue(), "image", processor)
    store = ImageStore(processor)
    before, after = (store.add(open_image(data, "image"))[0] for data in (stream.getvalue(), stored.data))
    np.testing.assert_array_equal(store[before].pixel_values, store[after].pixel_values)


def test_a_prepared_folder_of_resized_images(tmp_path, digits_checkpoint):
    write_virl39k(tmp_path / "in")
    options = Options(resize_for=digits_checkpoint, pixels=(1024, 4096))
    report = prepare(VIRL39K, str(tmp_path / "in"), tmp_path / "out", options)
    assert report["splits"]["rows"]["resized"] == report["splits"]["rows"]["images of rows"] == 6
    said = (tmp_path / "out/source.yaml").read_text().splitlines()[1]
    assert said == f"# Images are resized for {digits_checkpoint}, with data.min_pixels: 1024 and data.max_pixels: 4096."
    assert {path.suffix for path in (tmp_path / "out/images").rglob("*.*")} == {".png"}
