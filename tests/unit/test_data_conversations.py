"""Layouts by name, each on a file as it is published, and rows whose question and answer are turns of a conversation."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from octopus_mcore.data.row_reader import LAYOUTS, row_keys
from octopus_mcore.data.rows import RowSource
from octopus_mcore.data.sft import SFTFileSource
from octopus_mcore.data.tables import RowError
from tests.unit.test_data_layouts import png, verl_row

REASONED = (
    "<SUMMARY> I read the chart. </SUMMARY>\n\n<CAPTION> Two bars. </CAPTION>\n\n<REASONING> 3 > 2 </REASONING>\n\n"
    "<CONCLUSION> The left bar, {} </CONCLUSION>"
)


def llava_cot_row(i: int, **changes) -> dict:
    """A line of LLaVA-CoT-100k's train.jsonl."""
    turns = [{"from": "human", "value": f"Which bar is {i}?"}, {"from": "gpt", "value": REASONED.format(i)}]
    return {"id": f"chartqa/train/{i}", "image": f"chartqa/train/{i}.png", "conversations": turns, **changes}


@pytest.fixture
def llava_cot(tmp_path):
    (tmp_path / "chartqa/train").mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"chartqa/train/{i}.png")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(llava_cot_row(i)) + "\n" for i in range(3)))
    return tmp_path / "train.jsonl"


def test_llava_cot(llava_cot):
    source = RowSource(llava_cot, layout="llava_cot", shuffle=False, metadata_keys=["id"])
    source.validate()
    row = source.rows(1, 1, 0)[0]
    assert (row.question, row.answer, row.metadata) == ("Which bar is 1?", "The left bar, 1", {"id": "chartqa/train/1"})
    assert row.images == (str(llava_cot.parent / "chartqa/train/1.png"),)
    whole = RowSource(llava_cot, layout="llava_cot", shuffle=False, answer_tag=None).rows(1, 1, 0)[0]
    assert whole.answer == REASONED.format(1)


def test_of_a_longer_conversation_the_first_exchange_is_read(llava_cot):
    later = [{"from": "human", "value": "And which is not?"}, {"from": "gpt", "value": REASONED.format(99)}]
    llava_cot.write_text(json.dumps(llava_cot_row(0, conversations=llava_cot_row(0)["conversations"] + later)))
    row = RowSource(llava_cot, layout="llava_cot").rows(0, 1, 0)[0]
    assert (row.question, row.answer) == ("Which bar is 0?", "The left bar, 0")
    assert SFTFileSource(llava_cot, layout="llava_cot").rows(0, 1, 0)[0].pieces[0].text == REASONED.format(0)


def test_llava_cot_answers_a_supervised_phase(llava_cot):
    source = SFTFileSource(llava_cot, layout="llava_cot", shuffle=False)
    source.validate()
    row = source.rows(2, 1, 0)[0]
    assert (row.row.question, row.row.answer) == ("Which bar is 2?", "")
    assert [(piece.text, piece.weight) for piece in row.pieces] == [(REASONED.format(2), 1.0)]


def test_a_json_list_of_conversations_is_a_source(tmp_path):
    turns = llava_cot_row(4)["conversations"]
    (tmp_path / "talks.json").write_text(json.dumps([turns, turns]))
    row = RowSource(tmp_path / "talks.json", layout="llava_cot", image_key=None).rows(0, 1, 0)[0]
    assert (row.question, row.answer, row.images) == ("Which bar is 4?", "The left bar, 4", ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"conversations": []},
            "'conversations': expected a question and its answer, found a conversation that begins with nobody",
        ),
        ({"conversations": llava_cot_row(0)["conversations"][::-1]}, "begins with assistant, user"),
        ({"conversations": [{"from": "tool", "value": "x"}, {"from": "gpt"}]}, "begins with 'tool', assistant"),
        ({"conversations": ["?", "!"]}, "begins with None, None"),
        (
            {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "It is 3."}]},
            "'conversations': expected an answer in <CONCLUSION>…</CONCLUSION>, found …'It is 3.'",
        ),
        (
            {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "<CONCLUSION> </CONCLUSION>"}]},
            "expected an answer in <CONCLUSION>",
        ),
        ({"image": "chartqa/train/9.png"}, "'image': image file '.*9.png' does not exist"),
    ],
)
def test_conversations_that_cannot_be_used(llava_cot, changes, message):
    with llava_cot.open("a") as lines:
        lines.write(json.dumps(llava_cot_row(0, **changes)) + "\n")
    with pytest.raises(RowError, match=f"1 of 4 rows cannot be used:\n.*train.jsonl, row 4, key .*{message}"):
        RowSource(llava_cot, layout="llava_cot").validate()


def test_verl_and_ocean_r1_by_name(tmp_path):
    file = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([verl_row(i) for i in range(3)]), file)
    row = RowSource(file, layout="ocean_r1", shuffle=False, metadata_keys=["data_source"]).rows(1, 1, 0)[0]
    assert row.question == "<image> What is 1?\nYou FIRST think." and row.answer == "<answer>1</answer>"
    assert row.metadata == {"reward_func": "iou", "data_source": "geoqa"} and row.images == (png(),)
    assert RowSource(file, layout="verl", shuffle=False).rows(1, 1, 0)[0].metadata == {}
    other = RowSource(
        file, layout="verl", shuffle=False, answer_key="extra_info.answer", image_key=None, question_key="ability"
    )
    assert (other.rows(1, 1, 0)[0].question, other.rows(1, 1, 0)[0].answer) == ("math", "1")


def test_virl39k_and_easyr1_by_name(tmp_path):
    rows = [{"question": "<image>?", "answer": r"\boxed{3}", "image": [{"bytes": png()}], "PassRate_32BTrained": 0.5}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "39Krelease.parquet")
    row = RowSource(tmp_path / "39Krelease.parquet", layout="virl39k").rows(0, 1, 0)[0]
    assert (row.question, row.answer, len(row.images)) == ("<image>?", "3", 1)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"problem": "?", "answer": r"\boxed{3}", "images": None}))
    assert RowSource(tmp_path / "rows.jsonl", layout="easyr1").rows(0, 1, 0)[0].answer == r"\boxed{3}"


def test_options_that_go_together():
    assert row_keys("llava_cot", {"boxed": True}) == row_keys("llava_cot", {"boxed": True, "tag": None})
    assert row_keys("virl39k", {"tag": "answer"}).boxed is False
    assert row_keys("ocean_r1", {"metadata": {"kind": "ability"}}).metadata == {
        "reward_func": "extra_info.reward_func",
        "kind": "ability",
    }
    with pytest.raises(ValueError, match="answer_boxed and answer_tag='answer' are two ways"):
        row_keys("easyr1", {"boxed": True, "tag": "answer"})
    with pytest.raises(ValueError, match="layout: expected one of easyr1, verl, ocean_r1, virl39k, llava_cot, found 'trl'"):
        row_keys("trl", {})
    assert all(keys.columns for keys in LAYOUTS.values())


def test_an_unknown_option_of_an_sft_source_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'image_root'"):
        SFTFileSource(tmp_path / "x.jsonl", image_rot="x")
