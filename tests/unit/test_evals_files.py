"""Files of benchmarks: VLMEvalKit's tables, parquet with images inside, JSON beside image folders; and what is wrong in
them."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from octopus_mcore.data.rows import Row
from octopus_mcore.data.tables import RowError
from octopus_mcore.evals import files
from octopus_mcore.evals.benchmark import Item
from tests.benchmark_files import png, write_json, write_parquet, write_tsv


def encoded(colour: int = 0) -> str:
    return base64.b64encode(png(colour)).decode()


def test_a_tsv_keeps_texts_as_they_are(tmp_path):
    row = {"index": 1, "question": 'two\nlines, a "quote"\tand a tabulator', "A": "None", "B": "NA", "C": "", "answer": "A"}
    (record,) = files.read_records(write_tsv(tmp_path / "x.tsv", [row]))
    assert record.get("question") == row["question"] and record.number == 2  # a line of the file
    assert files.options(record) == ("None", "NA")  # pandas, and so VLMEvalKit, would lose both
    assert files.optional(record, "C") is None and files.optional(record, "nothing") is None
    assert files.text(record, "answer") == "A"


def test_large_cells_are_read(tmp_path):
    (record,) = files.read_records(write_tsv(tmp_path / "x.tsv", [{"index": 0, "image": "x" * 300_000}]))
    assert len(record.get("image")) == 300_000


def test_json_as_a_list_and_by_name(tmp_path):
    as_list = files.read_records(write_json(tmp_path / "a.json", [{"pid": "7", "q": 1}]))
    by_name = files.read_records(write_json(tmp_path / "b.json", {"7": {"q": 1}}), "pid")
    assert as_list[0].fields == by_name[0].fields == {"pid": "7", "q": 1}


def test_parquet(tmp_path):
    rows = [{"pid": "1", "image": {"bytes": png(), "path": None}, "choices": ["a", "b"]}]
    records = files.read_records(write_parquet(tmp_path / "x.parquet", rows))
    assert files.items_of(records[0], "choices") == ("a", "b")
    assert files.ImageColumn(records).of(records[0]) == (png(),)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.json", "[1]", "row 1: expected a JSON object, found int"),
        ("x.json", "{", "not a readable JSON file"),
        ("x.json", '{"1": 2}', r"row 1 \('1'\): expected a JSON object, found int"),
        ("x.json", "{}", "holds no rows"),
        ("x.json", "[]", "holds no rows"),
        ("x.tsv", "index\tquestion\n1\n", "row 2: expected 2 cells as in the header, found 1"),
        ("x.tsv", "index\tquestion\n1\t2\t3\n", "row 2: expected 2 cells as in the header, found 3"),
        ("x.tsv", "index\tquestion\n", "holds no rows"),
        ("x.xlsx", "", "found '.xlsx'"),
    ],
)
def test_damaged_files_are_told(tmp_path, name, content, told):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=told):
        files.read_records(tmp_path / name, "pid")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        files.read_records(tmp_path / "no.tsv")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        files.find_file(tmp_path / "no", ["a.tsv"])
    with pytest.raises(FileNotFoundError, match="expected one of a.tsv, b.*json, found nothing"):
        files.find_file(tmp_path, ["a.tsv", "b*.json"])


def test_the_first_name_that_a_folder_holds(tmp_path):
    for name in ("b.tsv", "data-1.parquet"):
        (tmp_path / name).touch()
    assert files.find_file(tmp_path, ["a.tsv", "data-*.parquet", "b.tsv"]).name == "data-1.parquet"
    assert files.find_file(tmp_path / "b.tsv", ["a.tsv"]).name == "b.tsv"
    assert files.find_file(tmp_path / "*.tsv", ["a.tsv"]) == tmp_path / "*.tsv"
    (tmp_path / "data-2.parquet").touch()
    with pytest.raises(ValueError, match="several files fit 'data-.*data-1.parquet, data-2.parquet"):
        files.find_file(tmp_path, ["data-*.parquet"])


def test_images_in_base64_as_lists_and_by_reference(tmp_path):
    rows = [
        {"index": 0, "image": encoded(0)},
        {"index": 1, "image": "0"},
        {"index": 2, "image": str([encoded(0), encoded(9)])},
        {"index": 3, "image": "data:image/png;base64," + encoded(9)},
    ]
    records = files.read_records(write_tsv(tmp_path / "x.tsv", rows))
    images = files.ImageColumn(records)
    assert [images.of(record) for record in records] == [(png(0),), (png(0),), (png(0), png(9)), (png(9),)]
    assert images.of(records[1])[0] is images.of(records[0])[0]  # decoded once, kept once


@pytest.mark.parametrize("folder", [".", "images"])
def test_images_in_a_folder_beside_the_file(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "1.png").write_bytes(png())
    (record,) = files.read_records(write_json(tmp_path / "x.json", [{"image": "1.png"}]))
    (source,) = files.ImageColumn([record]).of(record)
    assert Path(source) == tmp_path / folder / "1.png"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("", "expected an image, found none"),
        ("nowhere.png", "not an image file below"),
        ("77", "not an image file below"),  # refers to a row that there is not
        ("!" * 2000, "not an image in base64"),
        (base64.b64encode(b"no picture" * 200).decode(), "cannot be decoded"),
        ("[3]", "expected an image, found 3"),
    ],
)
def test_what_is_no_image_is_told(tmp_path, value, told):
    (record,) = files.read_records(write_tsv(tmp_path / "x.tsv", [{"index": 0, "image": value}]))
    with pytest.raises(RowError, match=f"x.tsv, row 2, key 'image'.*{told}"):
        files.ImageColumn([record]).of(record)


def test_fields(tmp_path):
    fields = {"n": 3.0, "t": "3", "x": float("nan"), "bad": "2.5", "l": "['a', 1]", "j": '["a"]', "b": True, "e": " "}
    (record,) = files.read_records(write_json(tmp_path / "x.json", [fields]))
    assert files.whole_number(record, "n") == files.whole_number(record, "t") == 3
    assert files.whole_number(record, "x") is files.whole_number(record, "none") is None
    assert files.items_of(record, "l") == ("a", 1) and files.items_of(record, "j") == ("a",)
    assert files.items_of(record, "x") == files.items_of(record, "none") == files.items_of(record, "e") == ()
    for call, told in [
        (lambda: files.whole_number(record, "bad"), "key 'bad': expected a whole number, found '2.5'"),
        (lambda: files.items_of(record, "bad"), "expected a list, found '2.5'"),
        (lambda: files.text(record, "e"), "key 'e': expected a text or a number, found ' '"),
        (lambda: files.text(record, "none"), "key 'none': the key is missing; the row has 'b'"),
        (lambda: files.optional(record, "b"), "expected a text or a number, found True"),
        (lambda: files.one_of(record, "t", ["4", "5"]), "expected one of '4', '5', found '3'"),
    ]:
        with pytest.raises(RowError, match=told):
            call()


def test_options_keep_their_letters_around_a_blank_one(tmp_path):
    fields = {"A": "x", "B": "", "C": "z", "D": "", "answer": "c", "blank": "B", "beyond": "D", "long": "AC"}
    (record,) = files.read_records(write_tsv(tmp_path / "x.tsv", [fields]))
    choices = files.options(record)
    assert choices == ("x", "", "z") and files.lettered(choices) == "A. x\nC. z"
    assert files.lettered(choices, "({letter}) {text}") == "(A) x\n(C) z"
    assert files.letter_of(record, "answer", choices) == "C"
    for key in ("blank", "beyond", "long"):
        with pytest.raises(RowError, match=f"key '{key}': expected one of the options A to C"):
            files.letter_of(record, key, choices)
    with pytest.raises(RowError, match="the row has no options"):
        files.letter_of(record, "answer", ())


def test_every_bad_row_and_every_double_id_is_listed(tmp_path):
    rows = [{"id": "1"}, {"id": "2"}, {"no": "x"}, {"id": "1"}, {"id": "skip"}]
    records = files.read_records(write_json(tmp_path / "x.json", rows))

    def read(record):
        name = files.text(record, "id")
        return None if name == "skip" else Item(Row(f"b:{name}", "?", "!"))

    with pytest.raises(RowError) as error:
        files.read_items(records, read)
    told = str(error.value)
    assert "2 of 5 rows cannot be used" in told and "row 3, key 'id'" in told and "row 4: 'b:1' is also row 1" in told
    assert [item.row.uid for item in files.read_items([records[0], records[4]], read)] == ["b:1"]
    with pytest.raises(ValueError, match="none of the file's rows"):
        files.read_items([records[4]], read)
