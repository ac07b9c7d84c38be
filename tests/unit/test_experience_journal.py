import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.config.buffer import BufferConfig
from octopus_mcore.experience.buffer import build_buffer
from octopus_mcore.experience.journal import JournalError, append_groups, decode_group, encode_group, read_groups
from octopus_mcore.experience.stages import StageContext
from octopus_mcore.experience.types import Group, ImageRef, Prompt
from tests.experience_groups import group_of, pair_judgement, same_group

LABELS = st.lists(st.sampled_from(["wc", "cc", "cw", "ww", "c", "w"]), min_size=1, max_size=4)


def buffered(labels, uid="q") -> Group:
    return build_buffer(BufferConfig(mask="first"), 10**6, pair_judgement)([group_of(labels, uid)], StageContext(0, 0)).groups[
        0
    ]


@settings(deadline=None, max_examples=30)
@given(LABELS, st.lists(st.floats(width=32), min_size=1), st.booleans(), st.booleans())
def test_a_group_survives_the_journal_bit_by_bit(labels, floats, with_signal, measured):
    group = buffered(labels) if with_signal else group_of(labels)
    first = group.rollouts[0]
    odd = np.resize(np.array(floats, dtype=np.float32), len(first.token_ids))
    old = np.where(np.arange(len(odd)) % 3 == 0, np.nan, odd[::-1]).astype(np.float32) if measured else None
    if with_signal:
        first = replace(first, signal=replace(first.signal, draws=len(floats), kept=measured))
    group = replace(group, rollouts=(replace(first, log_probs=odd, old_log_probs=old), *group.rollouts[1:]))
    assert same_group(decode_group(encode_group(group)), group)


def test_nll_masks_survive_and_journals_of_before_them_read_as_none():
    group = buffered(["wc", "cw"])
    first = group.rollouts[0]
    marked = replace(first, signal=replace(first.signal, nll_mask=first.signal.policy_mask))
    group = replace(group, rollouts=(marked, *group.rollouts[1:]))
    assert same_group(decode_group(encode_group(group)), group)
    assert not same_group(buffered(["wc", "cw"]), group)
    row = json.loads(encode_group(buffered(["wc", "cw"])))
    for rollout in row["rollouts"]:
        assert rollout["signal"].pop("nll_mask") is None
    assert same_group(decode_group(json.dumps(row)), buffered(["wc", "cw"]))


def test_prompt_images_metadata_and_unjudged_rollouts_survive():
    prompt = Prompt("é-1", (1, 2, 2), "Où?", "là\n", (ImageRef("ab12", 1, (1, 2, 4), 2),), {"subject": "géo", "level": 3})
    group = Group(prompt, tuple(replace(rollout, judgement=None) for rollout in group_of(["cc"]).rollouts))
    assert same_group(decode_group(encode_group(group)), group)


def test_a_journal_of_before_the_trainers_log_probs_were_kept_still_reads():
    group = buffered(["wc", "cw"])
    row = json.loads(encode_group(group))
    for rollout in row["rollouts"]:
        assert rollout.pop("old_log_probs") is None
    assert same_group(decode_group(json.dumps(row)), group)


def test_a_line_is_json_where_tokens_were_not_measured():
    """JSON has no NaN: these are within the arrays' bytes, and a rollout of which nothing was measured holds null."""
    group = group_of(["cc", "ww"])
    part = np.full(len(group.rollouts[0].token_ids), np.nan, dtype=np.float32)
    part[2] = -0.5
    group = replace(group, rollouts=(replace(group.rollouts[0], old_log_probs=part), group.rollouts[1]))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    row = json.loads(encode_group(group), parse_constant=refuse)
    assert row["rollouts"][1]["old_log_probs"] is None
    first, second = decode_group(encode_group(group)).rollouts
    assert first.measured_mask().nonzero()[0].tolist() == [2] and first.old_log_probs[2] == -0.5
    assert second.old_log_probs is None and not second.measured_mask().any()


def test_old_log_probs_of_another_length_are_refused():
    group = group_of(["cc"])
    short = replace(group.rollouts[0], old_log_probs=np.zeros(3, dtype=np.float32))
    with pytest.raises(ValueError, match="token ids but 3 float values"):
        decode_group(encode_group(replace(group, rollouts=(short,))))


def test_append_and_read(tmp_path):
    path = tmp_path / "rollouts" / "step_0001.jsonl"
    groups = [buffered(["cc", "ww"], f"q{number}") for number in range(3)]
    append_groups(path, groups[:2])
    append_groups(path, groups[2:])
    assert all(same_group(*pair) for pair in zip(read_groups(path), groups, strict=True))
    row = json.loads(path.read_text().splitlines()[0])
    assert row["rollouts"][-1]["provenance"] in ({"first": 0, "correction": 1}, {"first": 1, "correction": 0})
    assert [span["kind"] for span in row["rollouts"][0]["spans"]] == ["first", "separator", "correction"]


def test_a_bad_row_is_named_by_file_and_line(tmp_path):
    path = tmp_path / "step.jsonl"
    append_groups(path, [group_of(["cc"], "a"), group_of(["ww"], "b")])
    lines = path.read_text().splitlines(keepends=True)
    spoilt = json.loads(lines[1])
    spoilt["rollouts"][0]["token_ids"].pop()
    for bad in ("{}\n", "not json\n", "[]\n", json.dumps(spoilt) + "\n"):
        path.write_text(lines[0] + bad)
        with pytest.raises(JournalError, match=r"step\.jsonl, line 2: not a journalled group"):
            list(read_groups(path))


def test_a_torn_line_is_told_and_cut_off_by_the_next_append(tmp_path):
    path = tmp_path / "step.jsonl"
    groups = [group_of(["cc"], "a"), group_of(["ww"], "b")]
    append_groups(path, groups)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(JournalError, match="line 2.*torn"):
        list(read_groups(path))
    append_groups(path, groups[1:])
    assert path.read_bytes() == whole
    path.write_bytes(whole[:50])
    append_groups(path, groups)
    assert path.read_bytes() == whole


def test_a_torn_line_longer_than_one_block_is_cut_off(tmp_path):
    path = tmp_path / "step.jsonl"
    append_groups(path, [group_of(["cc"], "a")])
    whole = path.read_bytes()
    path.write_bytes(whole + b"x" * 200_000)
    append_groups(path, [])
    assert path.read_bytes() == whole


def test_metadata_that_json_cannot_hold_is_named(tmp_path):
    prompt = replace(group_of(["cc"]).prompt, metadata={"image": object()})
    with pytest.raises(ValueError, match="'question-1'.*metadata"):
        append_groups(tmp_path / "step.jsonl", [Group(prompt, ())])
    assert not (tmp_path / "step.jsonl").exists()
