"""Row files: order, both formats, and errors that name file, row and key."""

import io
import json
from datetime import datetime

import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from octopus_mcore.data.images import content_key, open_image
from octopus_mcore.data.rows import EpochOrder, RowSource
from octopus_mcore.data.tables import RowError, open_table


def encoded(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (seed, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def write_jsonl(file, records):
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


@pytest.fixture
def jsonl(tmp_path):
    (tmp_path / "pictures").mkdir()
    records = []
    for i in range(7):
        (tmp_path / f"pictures/{i}.png").write_bytes(encoded(i))
        records.append({"problem": f"question {i}", "answer": i, "images": [f"pictures/{i}.png"], "level": i % 2})
    return write_jsonl(tmp_path / "rows.jsonl", records)


@pytest.fixture
def parquet_file(tmp_path):
    table = pyarrow.table(
        {
            "problem": [f"question {i}" for i in range(7)],
            "answer": [str(i) for i in range(7)],
            "images": [[{"bytes": encoded(i), "path": "elsewhere.png"}] if i else None for i in range(7)],
        }
    )
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=3)
    return tmp_path / "rows.parquet"


@given(size=st.integers(1, 9), start=st.integers(0, 30), seed=st.integers(0, 3))
@settings(deadline=None, max_examples=50)
def test_every_epoch_is_a_permutation_of_its_own(size, start, seed):
    order = EpochOrder(size, shuffle=True)
    located = [order.locate(i, seed) for i in range(start * size, (start + 2) * size)]
    assert sorted(located) == [(epoch, row) for epoch in (start, start + 1) for row in range(size)]
    assert located == [EpochOrder(size, shuffle=True).locate(i, seed) for i in range(start * size, (start + 2) * size)]


def test_order_depends_on_seed_and_epoch():
    def rows(seed, epoch):
        return [EpochOrder(40, shuffle=True).locate(40 * epoch + i, seed)[1] for i in range(40)]

    assert rows(0, 0) != rows(1, 0) and rows(0, 0) != rows(0, 1) and rows(0, 0) != list(range(40))
    assert [EpochOrder(40, shuffle=False).locate(i, 5) for i in (0, 39, 40)] == [(0, 0), (0, 39), (1, 0)]


@given(cut=st.integers(0, 20), start=st.integers(0, 10), seed=st.integers(0, 2))
@settings(deadline=None, max_examples=25)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_order_is_independent_of_chunks(tmp_path_factory, kind, cut, start, seed):
    folder = tmp_path_factory.getbasetemp()
    file = folder / f"chunks.{kind}"
    if not file.exists():
        records = [{"problem": f"q{i}", "answer": str(i)} for i in range(7)]
        if kind == "jsonl":
            write_jsonl(file, records)
        else:
            parquet.write_table(pyarrow.Table.from_pylist(records), file, row_group_size=2)
    source = RowSource(file, image_key=None)
    assert source.rows(start, 20, seed) == source.rows(start, cut, seed) + source.rows(start + cut, 20 - cut, seed)


def test_jsonl_rows(jsonl):
    source = RowSource(jsonl, shuffle=False, metadata_keys=["level"])
    assert len(source) == 7
    row = source.rows(8, 1, seed=0)[0]
    assert (row.uid, row.question, row.answer, row.metadata) == ("rows.jsonl:2@1", "question 1", "1", {"level": 1})
    assert open_image(row.images[0], "test").getpixel((0, 0)) == (1, 0, 0)
    source.validate()


def test_parquet_rows_decode_embedded_images(parquet_file):
    source = RowSource(parquet_file, shuffle=False)
    rows = source.rows(0, 7, seed=0)
    assert [row.answer for row in rows] == list("0123456") and rows[0].images == ()
    assert [content_key(open_image(row.images[0], "row")) for row in rows[1:]] == [
        content_key(Image.new("RGB", (8, 8), (i, 0, 0))) for i in range(1, 7)
    ]
    source.validate()


def test_parquet_reads_only_the_row_groups_it_needs(parquet_file, monkeypatch):
    table = open_table(parquet_file)
    read, original = [], parquet.ParquetFile.iter_batches

    def spy(self, *arguments, row_groups, **options):
        read.extend(row_groups)
        return original(self, *arguments, row_groups=row_groups, **options)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", spy)
    assert [record.number for record in table.records([6, 0, 2, 6])] == [7, 1, 3, 7]
    assert read == [0, 2]


def test_blank_lines_keep_line_numbers(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"problem": "a", "answer": "1"}\n\n{"problem": "b", "answer": "2"}')
    assert [record.number for record in open_table(file).records([0, 1])] == [1, 3]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"answer": "1", "images": []}', r"'problem': the key is missing; the row has 'answer', 'images'"),
        ('{"problem": "a", "images": []}', r"'answer': the key is missing"),
        ('{"problem": "a", "answer": "1"}', r"'images': the key is missing"),
        ('{"problem": " ", "answer": "1", "images": []}', r"'problem': expected a non-empty text"),
        ('{"problem": "a", "answer": true, "images": []}', r"'answer': expected a non-empty text or a number, found True"),
        ('{"problem": "a", "answer": "1", "images": ["no.png"]}', r"'images': image file '.*no.png' does not exist"),
        ('{"problem": "a", "answer": "1", "images": 3}', r"'images': expected an image as a path"),
        ('{"problem": "<image>a<image>", "answer": "1", "images": ["pictures/0.png"]}', "'problem': 2 <image> markers for 1"),
        ('{"problem": "<image>", "answer": "1", "images": []}', "'problem': 1 <image> markers for 0"),
        (r'{"problem": "<|image_pad|>", "answer": "1", "images": null}', r"'problem': the text holds <\|image_pad\|>"),
        ('{"problem": "a", "answer": "1", "images": "' + "iVBO" * 5000 + '"}', r"'images': image file '.*' does not exist"),
        (r'{"problem": "half an emoji: \ud83d", "answer": "1", "images": []}', r"'problem': .* no valid Unicode"),
        ('{"problem": "a", "answer": NaN, "images": []}', r"'answer': expected a non-empty text or a number, found nan"),
        ('{"problem": ' + "[" * 100000, "not a JSON object"),
        ('{"problem": "a", ', "not a JSON object"),
        ("[1]", r"expected a JSON object, found list"),
    ],
)
def test_unusable_rows_name_file_row_and_key(jsonl, line, message):
    lines = jsonl.read_text().splitlines()
    jsonl.write_text("\n".join([*lines[:3], line, *lines[3:]]))
    source = RowSource(jsonl, shuffle=False)
    with pytest.raises(RowError, match=rf"rows.jsonl, row 4(, key|:) {message}"):
        source.rows(0, 8, seed=0)
    with pytest.raises(RowError, match=rf"1 of 8 rows cannot be used:\n.*rows.jsonl, row 4(, key|:) {message}"):
        source.validate()
    assert len(source.rows(4, 4, seed=0)) == 4, "the other rows stay usable"


def test_an_answer_may_be_a_number_of_any_length(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"problem": "a", "answer": {10**400}}}')
    assert RowSource(file, image_key=None).rows(0, 1, seed=0)[0].answer == str(10**400)


def test_validate_lists_all_bad_rows_and_looks_into_images(jsonl):
    (jsonl.parent / "pictures/2.png").write_text("text")
    (jsonl.parent / "pictures/5.png").unlink()
    with pytest.raises(RowError, match=r"2 of 7 rows(.|\n)*row 3, key 'images'.*2.png(.|\n)*row 6, key 'images'.*5.png"):
        RowSource(jsonl).validate()


def test_validate_refuses_images_that_would_end_the_training(jsonl, monkeypatch):
    Image.new("RGB", (402, 2)).save(jsonl.parent / "pictures/2.png")
    Image.new("RGB", (300, 300)).save(jsonl.parent / "pictures/5.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300 * 300 // 2 - 1)
    with pytest.raises(
        RowError, match=r"2 of 7 rows(.|\n)*row 3.*2.png' is 402×2 pixels(.|\n)*row 6.*5.png' cannot be decoded"
    ):
        RowSource(jsonl).validate()


def test_damaged_pages_of_a_parquet_file_are_named(parquet_file):
    damaged = bytearray(parquet_file.read_bytes())
    damaged[4:40] = b"\xff" * 36
    parquet_file.write_bytes(damaged)
    with pytest.raises(
        RowError, match=r"3 of 7 rows cannot be used:\n.*rows.parquet, row 1: row group 0 \(rows 1 to 3\): cannot be read"
    ):
        RowSource(parquet_file).validate()
    assert len(RowSource(parquet_file, shuffle=False).rows(3, 4, seed=0)) == 4


def test_damaged_embedded_images(tmp_path):
    table = pyarrow.table({"problem": ["a"], "answer": ["1"], "images": [[{"bytes": b"no picture", "path": None}]]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(RowError, match=r"rows.parquet, row 1, key 'images': image \(bytes\) cannot be decoded"):
        RowSource(tmp_path / "rows.parquet").validate()


def test_files_that_cannot_be_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl' does not exist"):
        RowSource(tmp_path / "nowhere.jsonl")
    for name, content, message in [
        ("rows.txt", "a,b", "expected one of .jsonl, .parquet, .json, .csv, .tsv, .arrow, found '.txt'"),
        ("rows.jsonl", "\n", "holds no rows"),
        ("rows.parquet", "text", "not a readable parquet file"),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            RowSource(tmp_path / name)


def test_metadata_that_the_journal_cannot_hold_are_refused_before_training(tmp_path):
    file = tmp_path / "rows.parquet"
    row = {"problem": "1+1?", "answer": "2", "images": None, "when": datetime(2026, 1, 1)}
    parquet.write_table(pyarrow.Table.from_pylist([row]), file)
    with pytest.raises(RowError, match=r"rows\.parquet.*when.*JSON"):
        RowSource(file, metadata_keys=["when"]).rows(0, 1, 0)
