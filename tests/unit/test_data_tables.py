"""Every kind of file behind `open_table`: the same records from each, in any order, with errors that name file and row."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.data.rows import RowSource
from octopus_mcore.data.tables import RowError, open_table

ROWS = [{"problem": f"question {i}", "answer": str(i), "level": {"of": i}, "images": [{"bytes": b"%d" % i}]} for i in range(7)]
PLAIN = [{"problem": f"question {i}", "answer": str(i)} for i in range(7)]


def ipc(rows, file: Path, form=pyarrow.ipc.new_stream, rows_per_batch: int = 3, **options) -> Path:
    """An arrow file; the stream form is what Hugging Face's datasets write."""
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(file), "wb") as sink, form(sink, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=rows_per_batch)
    return file


def written(kind: str, rows, folder: Path, name: str = "rows") -> Path:
    file = folder / f"{name}.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "json":
        file.write_text(json.dumps(rows, indent=1))
    elif kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=3)
    elif kind == "arrow":
        ipc(rows, file)
    else:
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, rows[0], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return file


KINDS = ["jsonl", "json", "parquet", "arrow", "csv", "tsv"]


@given(indices=st.lists(st.integers(0, 6), max_size=12))
@settings(deadline=None, max_examples=20)
@pytest.mark.parametrize("kind", KINDS)
def test_records_of_every_kind_in_any_order(tmp_path_factory, kind, indices):
    folder = tmp_path_factory.getbasetemp()
    file = folder / f"any.{kind}"
    table = open_table(file if file.exists() else written(kind, PLAIN, folder, "any"))
    records = table.records(indices)
    assert len(table) == 7 and [record.fields for record in records] == [PLAIN[i] for i in indices]
    first = 2 if kind in ("csv", "tsv") else 1  # a header line
    assert [(record.file, record.number) for record in records] == [(file, i + first) for i in indices]


@pytest.mark.parametrize("form", [pyarrow.ipc.new_stream, pyarrow.ipc.new_file])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_both_forms_of_arrow(tmp_path, form, compression):
    options = {"options": pyarrow.ipc.IpcWriteOptions(compression=compression)}
    table = open_table(ipc(ROWS, tmp_path / "data.arrow", form, **options))
    assert [record.fields for record in table.records([6, 0, 3])] == [ROWS[6], ROWS[0], ROWS[3]]


def test_arrow_files_that_are_none(tmp_path):
    file = ipc(ROWS, tmp_path / "cut.arrow")
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(ValueError, match="cut.arrow is not a readable arrow file"):
        open_table(file)
    file.write_bytes(b"no arrow here, only text of some length")
    with pytest.raises(ValueError, match="cut.arrow is not a readable arrow file"):
        open_table(file)


cells = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=12)


@given(
    rows=st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=8), delimiter=st.sampled_from(",\t"), bom=st.booleans()
)
@settings(deadline=None, max_examples=150)
def test_cells_of_any_text_come_back(tmp_path_factory, rows, delimiter, bom):
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter).writerows([("a", "b", "c"), *rows])
    file = tmp_path_factory.getbasetemp() / ("cells.csv" if delimiter == "," else "cells.tsv")
    file.write_bytes(stream.getvalue().encode("utf-8-sig" if bom else "utf-8"))
    table = open_table(file)
    assert [tuple(record.fields.values()) for record in table.records(range(len(table)))] == rows
    lines = stream.getvalue().split("\n")
    for record, row in zip(table.records(range(len(table))), rows, strict=True):
        begun = io.StringIO(newline="")
        csv.writer(begun, delimiter=delimiter).writerow(row)
        assert lines[record.number - 1] == begun.getvalue().split("\n")[0], "a row's number is the line on which it begins"


def test_a_cell_may_be_an_image_in_base64(tmp_path):
    image = "iVBORw0KGgo" * 40_000
    written("tsv", [{"index": "0", "image": image}, {"index": "1", "image": f'"{image}\n'}], tmp_path)
    assert [record.get("image") for record in open_table(tmp_path / "rows.tsv").records([1, 0])] == [f'"{image}\n', image]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: expected a line of column names"),
        (b"a,b\n", "holds no rows"),
        (b"a,a\n1,2\n", r"column names must be distinct and not empty, found 'a' in \['a', 'a'\]"),
        (b"a,\n1,2\n", "column names must be distinct and not empty, found ''"),
        (b'a,b\n1,2\n"3,4\n5,6\n', r"rows.csv, row 3: the cells cannot be told apart: unexpected end of data"),
    ],
)
def test_csv_files_that_are_no_tables(tmp_path, content, message):
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_table(tmp_path / "rows.csv")


def test_rows_of_a_csv_file_that_cannot_be_used(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_bytes(b'a,b\n1,2\n\n3\n"4"5,6\n\xff,8\n"a ""quoted""\nend",10\n11,12\n13\r"14",15\n16,17\n"18"19,20')
    table = open_table(file)
    assert len(table) == 9 and table.records([7])[0].fields == {"a": "16", "b": "17"}
    assert [record.number for record in table.records([0, 4, 5])] == [2, 7, 9]
    assert table.records([4])[0].fields == {"a": 'a "quoted"\nend', "b": "10"}
    for index, message in [
        (1, "rows.csv, row 4: expected 2 cells as in the header, found 1"),
        (2, "rows.csv, row 5: the cells cannot be told apart"),
        (3, "rows.csv, row 6: not UTF-8"),
        (6, "rows.csv, row 10: the cells cannot be told apart: new-line character seen in unquoted field"),
        (8, "rows.csv, row 12: the cells cannot be told apart"),
    ]:
        with pytest.raises(RowError, match=message):
            table.records([index])


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=4), values, max_size=3), min_size=1, max_size=6),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    bom=st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_json_lists_of_any_objects(tmp_path_factory, rows, indent, ascii_only, bom):
    file = tmp_path_factory.getbasetemp() / "list.json"
    rows = json.loads(json.dumps(rows))
    try:
        text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
        file.write_bytes(f"  {text}\n".encode("utf-8-sig" if bom else "utf-8"))
    except UnicodeEncodeError:  # half a surrogate pair has an escape and no UTF-8
        return
    table = open_table(file)
    assert [record.fields for record in table.records(range(len(table)))] == rows


def test_a_json_list_of_conversations(tmp_path):
    file = tmp_path / "talks.json"
    turns = [{"from": "human", "value": "é?"}, {"from": "gpt", "value": "è"}]
    file.write_text(json.dumps([turns, {"id": 1}, 3, turns[:1]], ensure_ascii=False))
    table = open_table(file)
    assert [r.fields for r in table.records([3, 0, 1])] == [{"conversations": turns[:1]}, {"conversations": turns}, {"id": 1}]
    with pytest.raises(RowError, match="talks.json, row 3: expected a JSON object, found int"):
        table.records([2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a list of objects, found ''"),
        ('{"1": {}}', "expected a list of objects, found '{\"1\": {}}'; JSONL files end in .jsonl"),
        ('[{"a": 1} {"a": 2}]', "expected , or ] behind element 1, found"),
        ('[{"a": 1}, ]', "is not a readable JSON list: Expecting value"),
        ('[{"a": 1}', "expected , or ] behind element 1"),
        ('[{"a": 1}] more', "expected nothing behind the list, found 'more'"),
        ("[" * 100_000, "is not a readable JSON list"),
        ("[]", "holds no rows"),
    ],
)
def test_json_files_that_are_no_lists(tmp_path, text, message):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        open_table(tmp_path / "rows.json")


def test_a_packed_file_says_what_to_do(tmp_path):
    (tmp_path / "rows.jsonl.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="found '.gz'; unpack it first"):
        open_table(tmp_path / "rows.jsonl.gz")


@given(cuts=st.lists(st.integers(0, 7), max_size=3), indices=st.lists(st.integers(0, 6), min_size=1, max_size=9))
@settings(deadline=None, max_examples=15)
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "csv"])
def test_shards_are_one_table(tmp_path_factory, kind, cuts, indices):
    folder = tmp_path_factory.mktemp("shards")
    ends = [0, *sorted({cut for cut in cuts if 0 < cut < 7}), 7]
    for number, (start, end) in enumerate(zip(ends, ends[1:], strict=False)):
        written(kind, PLAIN[start:end], folder, f"train-{number:05}-of-{len(ends) - 1:05}")
    for table in (open_table(folder), open_table(f"{folder}/*-of-*.{kind}"), open_table(folder, "train")):
        records = table.records(indices)
        assert len(table) == 7 and [record.fields for record in records] == [PLAIN[i] for i in indices]
        assert all(open_table(record.file).records([0])[0].number <= record.number for record in records)
        assert table.boundaries()[0] == 0 and table.boundaries()[-1] == 7


def test_rows_of_shards_are_named_by_their_file(tmp_path):
    for name in ("a", "b/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        written("jsonl", PLAIN[:2], tmp_path, name)
    source = RowSource(f"{tmp_path}/**/*.jsonl", image_key=None, shuffle=False)
    assert [row.uid for row in source.rows(0, 4, 0)] == ["a.jsonl:1@0", "a.jsonl:2@0", "b/c.jsonl:1@0", "b/c.jsonl:2@0"]
    (tmp_path / "b/c.jsonl").write_text('{"problem": "x"}\n')
    with pytest.raises(RowError, match=r"b/c.jsonl, row 1, key 'answer': the key is missing"):
        RowSource(f"{tmp_path}/**/*.jsonl", image_key=None).validate()


def test_splits_are_not_mixed(tmp_path):
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        written("parquet", PLAIN[: len(name) - 17], tmp_path, name)
    with pytest.raises(ValueError, match="holds the splits 'test', 'train': expected `split` to name one, found none"):
        open_table(tmp_path)
    with pytest.raises(ValueError, match="expected `split` to name one, found 'dev'"):
        open_table(f"{tmp_path}/*", "dev")
    train = open_table(tmp_path, "train")
    assert train.records([0])[0].file.name == "train-00000-of-00001.parquet"
    with pytest.raises(ValueError, match="split 'train' has no effect: .* is one file"):
        open_table(tmp_path / "train-00000-of-00001.parquet", "train")


def test_folders_that_are_no_tables(tmp_path):
    with pytest.raises(ValueError, match="holds no .parquet, .jsonl, .arrow, .csv, .tsv file"):
        open_table(tmp_path)
    written("csv", PLAIN, tmp_path)
    written("jsonl", PLAIN, tmp_path)
    with pytest.raises(ValueError, match=r"holds files of several kinds \(.csv, .jsonl\)"):
        open_table(tmp_path)
    with pytest.raises(FileNotFoundError, match="no data file matches .*part-"):
        open_table(f"{tmp_path}/part-*")


def save_to_disk(folder: Path, rows, files: list[str], split: str = "train") -> Path:
    """What `datasets.Dataset.save_to_disk` writes: shards in the stream form, `state.json`, `dataset_info.json`."""
    folder.mkdir(parents=True)
    share = -(-len(rows) // len(files))
    for number, name in enumerate(files):
        ipc(rows[number * share : (number + 1) * share], folder / name)
    state = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": "2f7b3a6e5d1c4b90",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True))
    (folder / "dataset_info.json").write_text(json.dumps({"citation": "", "features": {}}))
    return folder


def test_a_saved_dataset_in_the_order_of_its_description(tmp_path):
    files = ["data-00001-of-00002.arrow", "data-00000-of-00002.arrow"]
    folder = save_to_disk(tmp_path / "saved", ROWS, files)
    table = open_table(folder)
    assert [record.fields for record in table.records(range(7))] == ROWS
    assert [(r.file.name, r.number) for r in table.records([0, 6])] == [(files[0], 1), (files[1], 3)]
    assert open_table(folder, "train").records([1])[0].fields == ROWS[1]
    with pytest.raises(ValueError, match="split 'test' is not in it"):
        open_table(folder, "test")
    (folder / files[1]).unlink()
    with pytest.raises(FileNotFoundError, match="state.json' names|names 'data-00000-of-00002.arrow', which is missing"):
        open_table(folder)


def test_a_saved_dataset_dict_needs_its_split(tmp_path):
    for split, rows in (("train", ROWS), ("test", ROWS[:2])):
        save_to_disk(tmp_path / split, rows, ["data-00000-of-00001.arrow"], split)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert (len(open_table(tmp_path, "train")), len(open_table(tmp_path, "test"))) == (7, 2)
    with pytest.raises(ValueError, match="is a DatasetDict: expected `split` to be one of 'train', 'test', found none"):
        open_table(tmp_path)
    with pytest.raises(ValueError, match="found 'dev'"):
        open_table(tmp_path, "dev")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["test"]}')
    assert len(open_table(tmp_path)) == 2


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("{}", "state.json does not describe a saved dataset"),
        ("[]", "state.json does not describe a saved dataset"),
        ('{"_data_files": []}', "expected a list in '_data_files'"),
        ('{"_data_files": [{"filename": "x"}], "_indices_data_files": [{"filename": "i"}]}', "flatten_indices"),
    ],
)
def test_descriptions_of_saved_datasets_that_cannot_be_read(tmp_path, state, message):
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(ValueError, match=message):
        open_table(tmp_path)


def test_a_row_group_is_read_no_further_than_needed(tmp_path, monkeypatch):
    rows = [{"problem": str(i)} for i in range(2000)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "big.parquet")
    table, decoded = open_table(tmp_path / "big.parquet"), []
    original = parquet.ParquetFile.iter_batches

    def spy(self, *arguments, **options):
        for batch in original(self, *arguments, **options):
            decoded.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", spy)
    assert [record.fields["problem"] for record in table.records([300, 5])] == ["300", "5"]
    assert decoded == [256, 256]


def test_columns_of_one_name_are_refused(tmp_path):
    """A record would silently hold the last of them."""
    columns = [pyarrow.array(["q"]), pyarrow.array(["1"]), pyarrow.array(["2"])]
    table = pyarrow.Table.from_arrays(columns, names=["problem", "answer", "answer"])
    parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match="column names must be distinct, found 'answer' more than once"):
        open_table(tmp_path / "rows.parquet")
