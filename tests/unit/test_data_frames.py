"""Videos as frames: which are taken, in which order, and where their markers stand."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from octopus_mcore.data.frames import evenly, interleaved
from octopus_mcore.data.images import open_image
from octopus_mcore.data.processor import Processor
from octopus_mcore.data.rows import RowSource
from octopus_mcore.data.tables import RowError


@given(count=st.integers(1, 500), most=st.integers(1, 40))
@settings(deadline=None)
def test_frames_are_taken_evenly(count, most):
    taken = evenly(count, most)
    assert len(taken) == min(count, most) and taken[0] == 0 and taken == sorted(set(taken))
    if most > 1:
        assert taken[-1] == count - 1
        steps = [after - before for before, after in zip(taken, taken[1:], strict=False)]
        assert not steps or max(steps) - min(steps) <= 1


pieces = st.lists(st.sampled_from(["<image>", "<video>", "and", " "]), max_size=8)


@given(pieces=pieces, lengths=st.lists(st.integers(1, 3), min_size=8, max_size=8))
@settings(deadline=None)
def test_every_marker_gets_its_own_images(pieces, lengths):
    question = "".join(pieces)
    images = [f"i{n}" for n in range(question.count("<image>"))]
    videos = [[f"v{n}.{frame}" for frame in range(lengths[n])] for n in range(question.count("<video>"))]
    text, ordered = interleaved(question, images, videos, "<image>")
    left, shown = iter(ordered), []
    for piece in text.split("<image>"):
        shown += [piece, next(left, "")]
    expected, number_image, number_video = "", 0, 0
    for piece in pieces:
        if piece == "<image>":
            expected, number_image = expected + images[number_image], number_image + 1
        elif piece == "<video>":
            expected, number_video = expected + "".join(videos[number_video]), number_video + 1
        else:
            expected += piece
    assert "".join(shown) == expected and text.count("<image>") == len(ordered)


def test_what_has_no_marker_stands_first():
    assert interleaved("q", ["a"], [["b", "c"]], "<image>") == ("q", ("a", "b", "c"))
    assert interleaved("q<video>", ["a"], [["b", "c"]], "<image>") == ("<image>q<image><image>", ("a", "b", "c"))
    assert interleaved("<image>q", ["a"], [["b", "c"]], "<image>") == ("<image><image><image>q", ("b", "c", "a"))


@pytest.fixture
def clips(tmp_path):
    """Folders of 3 and of 12 frames, and a file of rows."""
    for name, count in (("clip", 3), ("long", 12)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{name}/frame_{i}.png")
        (tmp_path / name / "times.txt").write_text("0 1 2")
    (tmp_path / "empty").mkdir()
    (tmp_path / "film.mp4").write_bytes(b"no frames")
    return tmp_path / "rows.jsonl"


def source(file, row, **options) -> RowSource:
    file.write_text(json.dumps({"problem": "What?", "answer": "1", "images": None, **row}))
    return RowSource(file, shuffle=False, **{"video_key": "videos", **options})


def reds(row) -> list[int]:
    return [open_image(image, "frame").getpixel((0, 0))[0] for image in row.images]


def test_folders_and_lists_of_frames(clips):
    row = {"problem": "<video> then <image> then <video>?", "images": ["clip/frame_1.png"]}
    row |= {"videos": ["long", ["clip/frame_2.png", "clip/frame_0.png"]]}
    opened = source(clips, row, max_frames=4)
    opened.validate()
    found = opened.rows(0, 1, 0)[0]
    assert found.question == "<image><image><image><image> then <image> then <image><image>?"
    assert reds(found) == [0, 4, 7, 11, 1, 2, 0], "the numbers in the names order the frames, and the first and last are taken"
    assert reds(source(clips, {"videos": "clip"}).rows(0, 1, 0)[0]) == [0, 1, 2]
    assert source(clips, {"videos": None}).rows(0, 1, 0)[0].images == ()


def test_frames_become_images_of_the_prompt(clips, digits_checkpoint):
    row = {"problem": "<video> then <image>?", "images": ["clip/frame_1.png"], "videos": ["long"]}
    processor = Processor.from_pretrained(digits_checkpoint)
    (prompt,), too_long = processor.prompts(source(clips, row, max_frames=3).rows(0, 1, 0))
    assert not too_long and [processor.images.raw(ref.key).getpixel((0, 0))[0] for ref in prompt.images] == [0, 6, 11, 1]
    assert prompt.token_ids.count(processor.tokens.image_pad) == sum(ref.num_tokens for ref in prompt.images)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"videos": ["film.mp4"]}, "'videos': '.*film.mp4' is a file, and videos are not decoded; expected a folder of frames"),
        ({"videos": ["absent"]}, "'videos': '.*absent' does not exist"),
        ({"videos": ["empty"]}, "'videos': '.*empty' holds no frames"),
        ({"videos": [[]]}, r"'videos': expected a video as a list of images or as a folder of frames, found \[\]"),
        ({"videos": [{"bytes": None}]}, "'videos': expected a video as a list"),
        ({"videos": [["clip/frame_7.png"]]}, "'videos': image file .* does not exist"),
        ({"videos": ["clip"], "problem": "<video><video>"}, "'problem': 2 <video> markers for 1 videos"),
        ({"videos": ["clip"], "problem": "<image>"}, "'problem': 1 <image> markers for 0 images"),
        ({}, "'videos': the key is missing"),
    ],
)
def test_videos_that_cannot_be_used(clips, row, message):
    with pytest.raises(RowError, match=f"rows.jsonl, row 1, key {message}"):
        source(clips, row).rows(0, 1, 0)


def test_a_marker_without_a_column_of_videos_is_no_text(clips):
    with pytest.raises(RowError, match="'problem': the text holds <video>; name the column .* by `video_key`"):
        source(clips, {"problem": "<video>?"}, video_key=None).rows(0, 1, 0)


def test_at_least_one_frame(clips):
    with pytest.raises(ValueError, match="max_frames: expected at least 1, found 0"):
        source(clips, {"videos": ["clip"]}, max_frames=0)
