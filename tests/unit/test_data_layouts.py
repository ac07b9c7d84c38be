"""Files in the layouts of published data: ViRL39K with its pass rates, and verl's rows as Ocean-R1 has them."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
import yaml
from PIL import Image

from octopus_mcore.data.images import open_image
from octopus_mcore.data.pass_rates import keeps, read_pass_rates
from octopus_mcore.data.rows import RowSource
from octopus_mcore.data.tables import Record, RowError

VIRL_RATES = [{"key": "PassRate_7BBase", "unlabelled": [-1, None]}, {"key": "PassRate_32BTrained"}]
"""VL-Rethinker's rule: 0 < 7B < 1, or unlabelled and 0 < 32B < 1."""

RATES = [
    # 7B, 32B, kept
    (0.5, 1.0, True),
    (0.125, 0.0, True),
    (0.0, 0.5, False),
    (1.0, 0.5, False),
    (-1.0, 0.5, True),
    (None, 0.875, True),
    (-1.0, 0.0, False),
    (None, 1.0, False),
]


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def virl39k(tmp_path):
    """A parquet file with the columns of `39Krelease.parquet`; the last row has no image."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(png())
    rows = [
        {
            "question": f"<image>What is {i}?" if i < len(RATES) - 1 else f"What is {i}?",
            "answer": rf"\boxed{{\frac{{{i}}}{{2}}}}",
            "PassRate_32BTrained": thirty_two,
            "PassRate_7BBase": seven,
            "category": "Spatial Reasoning" if i % 2 else "(GradeSchool) Geometric",
            "source": "MMK12",
            "qid": f"MMK12-{i}",
            "image": ["images/a.png"] if i < len(RATES) - 1 else [],
        }
        for i, (seven, thirty_two, _) in enumerate(RATES)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "39Krelease.parquet", row_group_size=3)
    return tmp_path / "39Krelease.parquet"


def virl(file, **options) -> RowSource:
    given = {"question_key": "question", "image_key": "image", "answer_boxed": True, "pass_rates": VIRL_RATES, "shuffle": False}
    return RowSource(file, **(given | {"metadata_keys": ["category", "source", "qid", "PassRate_7BBase"]} | options))


def test_virl39k(virl39k):
    source = virl(virl39k)
    expected = [i for i, (_, _, kept) in enumerate(RATES) if kept]
    assert len(source) == len(expected) == 4
    rows = source.rows(0, 5, seed=0)
    assert [row.uid for row in rows] == [f"39Krelease.parquet:{i + 1}@0" for i in expected] + ["39Krelease.parquet:1@1"]
    assert rows[0].answer == r"\frac{0}{2}" and rows[0].images == (str(virl39k.parent / "images/a.png"),)
    assert rows[2].metadata == {
        "category": "(GradeSchool) Geometric",
        "source": "MMK12",
        "qid": "MMK12-4",
        "PassRate_7BBase": -1.0,
    }
    assert source.notes == (f"{virl39k}: 4 of 8 rows kept by their pass rates (PassRate_7BBase, PassRate_32BTrained)",)
    source.validate()
    assert sorted(row.uid for row in virl(virl39k, shuffle=True).rows(0, 4, 7)) == sorted(row.uid for row in rows[:4])
    everything = virl(virl39k, pass_rates=[])
    assert len(everything) == 8 and everything.notes == () and everything.rows(7, 1, 0)[0].images == ()


def test_the_rule_of_the_documentation_is_this_one():
    page = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
    assert yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0]) == {"pass_rates": VIRL_RATES}


def test_rows_that_are_left_out_are_not_checked(virl39k):
    table = parquet.read_table(virl39k).to_pylist()
    table[2]["image"] = ["absent.png"]  # its rate of 0 leaves it out
    parquet.write_table(pyarrow.Table.from_pylist(table), virl39k)
    virl(virl39k).validate()
    with pytest.raises(RowError, match="1 of 8 rows.*\n.*row 3, key 'image'"):
        virl(virl39k, pass_rates=[]).validate()


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rates_that_are_no_rates_are_errors(tmp_path, kind):
    rows = [{"problem": "p", "answer": 1, "rate": rate} for rate in (0.5, -1.0, None, 1.5, math.nan, 0.25)]
    file = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)

    def opened(**rule) -> RowSource:
        return RowSource(file, image_key=None, shuffle=False, pass_rates=[{"key": "rate", **rule}])

    with pytest.raises(
        RowError, match="4 of 6 rows cannot be used:\n.*row 2, key 'rate': expected a pass rate between 0 and 1"
    ):
        opened()
    with pytest.raises(RowError, match=r"2 of 6 rows.*\n.*row 4.*found 1.5 \(declared unlabelled are \[-1, None\]\)\n.*row 5"):
        opened(unlabelled=[-1, None], then="drop")
    every = {"unlabelled": [-1, None, math.nan, 1.5]}
    assert [row.uid[-3] for row in opened(**every, then="keep", above=0.3).rows(0, 5, 0)] == list("12345")
    assert [row.uid[-3] for row in opened(**every, then="drop").rows(0, 2, 0)] == list("16")
    with pytest.raises(ValueError, match="keep none of the 6 rows"):
        opened(**every, then="drop", above=0.9)
    with pytest.raises(
        RowError, match="6 of 6 rows.*\n.*key 'rat': the key is missing; the row has 'answer', 'problem', 'rate'"
    ):
        RowSource(file, image_key=None, pass_rates=[{"key": "rat", "unlabelled": [None], "then": "keep"}])


def test_a_rate_may_be_a_boolean_nowhere():
    with pytest.raises(RowError, match="found True"):
        keeps(read_pass_rates([{"key": "r", "unlabelled": [1], "then": "keep"}]), Record({"r": True}, "f", 1))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"key": "r", "unlabelled": [-1]}], r"pass_rates\[0\]: there is no next rule for rows where 'r' is unlabelled"),
        (
            [{"key": "r", "abov": 0}],
            r"pass_rates\[0\]: expected a mapping with `key` and any of above, below, unlabelled, then",
        ),
        ([{"above": 0}], r"pass_rates\[0\]: expected a mapping with `key`"),
        ([{"key": "r", "above": 0.5, "below": 0.5}], r"pass_rates\[0\]: nothing lies between above=0.5 and below=0.5"),
        ([{"key": "r", "above": "0"}], "nothing lies between above='0'"),
        ([{"key": "r", "unlabelled": -1}], r"pass_rates\[0\].unlabelled: expected a list of numbers or null, found -1"),
        ([{"key": "r", "unlabelled": ["-1"], "then": "keep"}], r"unlabelled: expected numbers or null, found '-1'"),
        ([{"key": "r", "unlabelled": [-1], "then": "skip"}], "then: expected next, keep or drop, found 'skip'"),
        ([{"key": "r", "then": "drop"}], "then=drop has no effect: `unlabelled` names no value"),
        ({"key": "r"}, "pass_rates: expected a list of rules"),
    ],
)
def test_rules_that_cannot_be(rules, message):
    with pytest.raises(ValueError, match=message):
        read_pass_rates(rules)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [(r"\boxed{A}", "A"), (r" \boxed{ 3 } ", "3"), (r"so \boxed{1}, no, \boxed{\text{cm}^{2}}", r"\text{cm}^{2}")],
)
def test_a_truth_in_a_box(tmp_path, answer, truth):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"problem": "p", "answer": answer}) + "\n")
    assert RowSource(file, image_key=None, answer_boxed=True).rows(0, 1, 0)[0].answer == truth
    assert RowSource(file, image_key=None).rows(0, 1, 0)[0].answer == answer


@pytest.mark.parametrize("answer", ["3", r"\boxed{3", r"\boxed{ }"])
def test_a_truth_without_its_box(tmp_path, answer):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"problem": "p", "answer": answer}) + "\n")
    with pytest.raises(RowError, match=r"rows.jsonl, row 1, key 'answer': expected an answer in \\boxed{…}, found"):
        RowSource(file, image_key=None, answer_boxed=True).validate()


OCEAN = {
    "question_key": "prompt",
    "answer_key": "reward_model.ground_truth",
    "metadata_keys": {"reward_func": "extra_info.reward_func", "data_source": "data_source"},
}


def verl_row(i: int, **changes) -> dict:
    return {
        "data_source": "geoqa",
        "prompt": [{"role": "user", "content": f"<image> What is {i}?\nYou FIRST think."}],
        "images": [{"bytes": png(), "path": f"elsewhere/{i}.png"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": f"<answer>{i}</answer>"},
        "extra_info": {"index": i, "answer": f"{i}", "question": "?", "reward_func": "iou" if i % 2 else "acc"},
        **changes,
    }


def test_verl_rows(tmp_path):
    file = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([verl_row(i) for i in range(3)]), file)
    source = RowSource(file, shuffle=False, **OCEAN)
    row = source.rows(1, 1, seed=0)[0]
    assert row.question == "<image> What is 1?\nYou FIRST think." and row.answer == "<answer>1</answer>"
    assert row.metadata == {"reward_func": "iou", "data_source": "geoqa"} and open_image(row.images[0], "row").size == (8, 8)
    source.validate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward_model": {"style": "rule"}}, "'reward_model.ground_truth': the key is missing; the row has 'style'"),
        ({"reward_model": "rule"}, "'reward_model.ground_truth': the key is missing; 'ground_truth' is looked for in 'rule'"),
        ({"extra_info": {}}, "'extra_info.reward_func': the key is missing"),
        ({"prompt": []}, "'prompt': expected one message with role 'user', found"),
        ({"prompt": [{"role": "system", "content": "Be."}]}, "'prompt': expected one message with role 'user'"),
        ({"prompt": [{"role": "user", "content": "a"}] * 2}, "'prompt': expected one message with role 'user'"),
        ({"prompt": [{"role": "user", "content": None}]}, "'prompt': expected a non-empty text, found None"),
        ({"prompt": ["<image> What?"]}, "'prompt': expected one message with role 'user'"),
    ],
)
def test_verl_rows_that_cannot_be_used(tmp_path, changes, message):
    file = tmp_path / "train.jsonl"
    row = verl_row(0, prompt=[{"role": "user", "content": "What?"}]) | {"images": []} | changes
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(RowError, match=f"train.jsonl, row 1, key {message}"):
        RowSource(file, **OCEAN).rows(0, 1, 0)


def test_a_whole_name_goes_before_a_path():
    record = Record({"a.b": 1, "a": {"b": 2, "c": {"d": 3}}}, "file", 1)
    assert (record.get("a.b"), record.get("a.c.d")) == (1, 3)
