"""Mixtures: how much of each part, in what order, with which uids; and errors that name the part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.config.plugins import PluginError
from octopus_mcore.data.mixture import MixtureSource
from octopus_mcore.data.tables import RowError

SIZES = {"a": 5, "b": 10, "c": 30}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mixture")
    for name, size in SIZES.items():
        rows = [{"q": f"{name}{i}", "problem": f"{name}{i}", "answer": i, "level": i % 3} for i in range(size)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: folder / f"{name}.jsonl" for name in SIZES}


def part(file: Path, take: str, **options) -> dict:
    return {"path": str(file), "image_key": None, "take": take, **options}


def epoch(mixture: MixtureSource, number: int, seed: int = 0) -> list[str]:
    return [row.question for row in mixture.rows(number * len(mixture), len(mixture), seed)]


@pytest.mark.parametrize(
    ("take", "rows"),
    [
        ("all", range(10)),
        ("first:3", range(3)),
        ("end:3", range(7, 10)),
        ("first:10", range(10)),
        ("end:25%", range(7, 10)),  # 2.5 rows, so 3
        ("first:7%", range(1)),
    ],
)
def test_what_is_taken_of_a_part(files, take, rows):
    mixture = MixtureSource([part(files["b"], take)], shuffle=False)
    assert epoch(mixture, 0) == epoch(mixture, 1) == [f"b{i}" for i in rows]


@pytest.mark.parametrize(("take", "count"), [("random:4", 4), ("random:20%", 6), ("random:7%", 3), ("random:100%", 30)])
def test_random_parts_are_drawn_by_seed_and_stay_the_same_over_epochs(files, take, count):
    mixture = MixtureSource([part(files["c"], take)])
    drawn = [frozenset(epoch(mixture, 0, seed)) for seed in range(6)]
    assert {len(rows) for rows in drawn} == {count}
    assert len(set(drawn)) == (1 if count == 30 else 6), "another seed draws other rows"
    assert [frozenset(epoch(mixture, 3, seed)) for seed in range(6)] == drawn
    fixed = MixtureSource([part(files["c"], take)], seed=4)
    assert {frozenset(epoch(fixed, 0, seed)) for seed in range(6)} == {drawn[4]}, "a seed of its own, whatever the loop passes"


def test_equal_parts_draw_on_their_own(files):
    mixture = MixtureSource([part(files["c"], "random:5"), part(files["c"], "random:5")], shuffle=False)
    rows = epoch(mixture, 0)
    assert set(rows[:5]) != set(rows[5:])


def test_shares_of_whole_rows_are_not_rounded_up(tmp_path):
    """In floating point, 16.1 % of 1,000 is a little more than 161."""
    file = tmp_path / "thousand.jsonl"
    file.write_text('{"problem": "p", "answer": 1}\n' * 1000)
    assert [len(MixtureSource([part(file, f"random:{share}%")])) for share in (16.1, 32.7, 7, 16.11)] == [161, 327, 70, 162]


def test_epochs_shuffle_over_all_parts(files):
    mixture = MixtureSource([part(files["a"], "all"), part(files["b"], "first:5"), part(files["c"], "end:20%")])
    assert len(mixture) == 5 + 5 + 6
    first, second = epoch(mixture, 0), epoch(mixture, 1)
    assert sorted(first) == sorted(second) and first != second and first != epoch(mixture, 0, seed=1)
    assert first == epoch(MixtureSource([part(files["a"], "all"), part(files["b"], "first:5"), part(files["c"], "end:20%")]), 0)
    assert [question[0] for question in first] != sorted(question[0] for question in first), "parts are mixed"


@given(cut=st.integers(0, 40), start=st.integers(0, 40), seed=st.integers(0, 2))
@settings(deadline=None, max_examples=30)
def test_order_is_independent_of_chunks(files, cut, start, seed):
    mixture = MixtureSource([part(files["a"], "all"), part(files["b"], "random:40%")])
    whole = mixture.rows(start, 40, seed)
    assert whole == mixture.rows(start, cut, seed) + mixture.rows(start + cut, 40 - cut, seed)


def test_uids_are_unique_over_parts_and_epochs(files):
    mixture = MixtureSource([part(files["a"], "all"), part(files["a"], "first:3")])
    rows = mixture.rows(0, 3 * len(mixture), seed=0)
    assert len({row.uid for row in rows}) == len(rows) == 24
    assert mixture.rows(0, 8, 0)[0].uid.endswith("@0") and mixture.rows(16, 8, 0)[0].uid.endswith("@2")


def test_parts_keep_their_own_options(files):
    plugin = {
        "target": "octopus_mcore.data.rows:RowSource",
        "options": {
            "path": str(files["b"]),
            "image_key": None,
            "shuffle": False,
            "question_key": "q",
            "metadata_keys": ["level"],
            "answer_key": None,
        },
    }
    mixture = MixtureSource([part(files["a"], "first:1"), {"source": plugin, "take": "end:1"}], shuffle=False)
    first, second = mixture.rows(0, 2, seed=0)
    assert (first.question, first.answer, first.metadata) == ("a0", "0", {})
    assert (second.uid, second.question, second.answer, second.metadata) == ("1/b.jsonl:10@0", "b9", "", {"level": 0})


def test_mixtures_nest(files):
    inner = {"target": "octopus_mcore.data.mixture:MixtureSource", "options": {"shuffle": False}}
    inner["options"]["parts"] = [part(files["a"], "end:2"), part(files["b"], "first:2")]
    mixture = MixtureSource([{"source": inner, "take": "end:3"}], shuffle=False)
    assert epoch(mixture, 1) == ["a4", "b0", "b1"]
    mixture.validate()
    assert mixture.notes == (
        f"mixture of 4 rows: 2 of 5 of {files['a']}, 2 of 10 of {files['b']}",
        "mixture of 3 rows: 3 of 4 of octopus_mcore.data.mixture:MixtureSource",
    )


def test_validation_reads_what_is_taken(files, tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_text(files["a"].read_text() + '{"answer": 1}\n')
    MixtureSource([part(file, "first:5"), part(files["a"], "all")]).validate()
    with pytest.raises(RowError, match="1 of 1 rows cannot be used:\n.*row 6, key 'problem': the key is missing"):
        MixtureSource([part(files["a"], "all"), part(file, "end:1")]).validate()
    with pytest.raises(RowError, match="1 of 6 rows"):
        MixtureSource([part(file, "random:1")]).validate()
    drawn = {seed: MixtureSource([part(file, "random:1")], seed=seed) for seed in range(30)}
    bad = [seed for seed, mixture in drawn.items() if _fails(mixture)]
    assert 0 < len(bad) < 30, "with a seed of its own, what it draws is known"


def _fails(mixture: MixtureSource) -> bool:
    try:
        mixture.validate()
    except RowError:
        with pytest.raises(RowError):
            mixture.rows(0, 1, 0)
        return True
    mixture.rows(0, 1, 0)
    return False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"take": "some"}, r"parts\[0\].take: expected all, first:N, end:N, random:N or random:P%, found 'some'"),
        ({"take": 3}, r"parts\[0\].take: expected all"),
        ({"take": "random:-3"}, r"parts\[0\].take: expected all"),
        ({"take": "first:6"}, r"parts\[0\].take: 'first:6' asks for 6 rows, but .*a.jsonl has 5"),
        ({"take": "random:0"}, "asks for 0 rows"),
        ({"take": "random:0%"}, "asks for 0 rows"),
        ({"take": "random:101%"}, "asks for 6 rows"),
        ({"shuffle": True}, r"parts\[0\]: .*a.jsonl shuffles its rows, so that 'all' has no meaning; give it shuffle: false"),
        ({"sourc": {}}, r"parts\[0\].options: .*sourc"),
        ({"source": {}}, r"parts\[0\]: expected `take` and either `source` or `path`"),
        ({"path": "absent.jsonl"}, "absent.jsonl"),
    ],
)
def test_parts_that_cannot_be(files, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        MixtureSource([part(files["a"], "all") | change])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"target": "octopus_mcore.data.digits.sources:DigitsSource"}, r"parts\[0\]: .*DigitsSource is endless"),
        ({"target": "octopus_mcore.data.rows:Rows"}, r"parts\[0\].source.target: .*did you mean 'Row'"),
        ({"target": "octopus_mcore.data.rows:RowSource", "path": "x"}, r"parts\[0\].source: expected `target` and `options`"),
        ("rows", r"parts\[0\].source: expected `target` and `options`"),
    ],
)
def test_sources_that_cannot_be_parts(source, message):
    with pytest.raises((ValueError, PluginError), match=message):
        MixtureSource([{"source": source, "take": "first:3"}])


@pytest.mark.parametrize("parts", [[], "all", {"path": "x", "take": "all"}])
def test_no_parts(parts):
    with pytest.raises(ValueError, match="parts: expected a list of at least one part"):
        MixtureSource(parts)
