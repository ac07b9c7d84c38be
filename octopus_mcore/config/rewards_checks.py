"""What cannot work together in the section `rewards`."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from octopus_mcore.config.rewards import RewardConfig

WHOLE_RESPONSE_JUDGES = {
    "answer_tags_reference": ("ocean_reference", "iou_reference"),
    "rethinker_reference": ("rethinker_reference",),
}
"""Styles that hand over the whole response as the answer, and the judges that can read one."""

SECTIONS = ("custom", "http", "llm")
"""Judges that need a section, of the same name."""


def check_rewards(
    key: str, rewards: RewardConfig, max_response_tokens: int | None, read_elsewhere: Collection[str] = ()
) -> Iterator[str]:
    """Violations in the section at `key`, for responses of at most so many tokens (None: nobody can say). Judges' sections that
    are `read_elsewhere` need no row of this section's to have an effect."""
    if rewards.judge_key is not None and not rewards.judges_by_value:
        yield f"{key}.judge_key={rewards.judge_key!r} needs {key}.judges_by_value, the judge of each value of that field"
    if rewards.judge_key is None and rewards.judges_by_value:
        yield f"{key}.judges_by_value has no effect without {key}.judge_key, the metadata field that holds these values"
    if rewards.shaping == "reflection" and rewards.style != "reflection":
        yield (
            f"{key}.shaping=reflection rewards a reflection between two attempts, but {key}.style={rewards.style} knows none; "
            "take style reflection"
        )
    yield from _check_judges(key, rewards, read_elsewhere)
    if (overlong := rewards.overlong) is not None:
        begin = overlong.max_tokens - overlong.buffer_tokens
        if begin < 0:
            yield (
                f"{key}.overlong: buffer_tokens={overlong.buffer_tokens} is above max_tokens={overlong.max_tokens}, so the "
                "shortest response would be punished"
            )
        elif max_response_tokens is not None and begin >= max_response_tokens:
            yield (
                f"{key}.overlong has no effect: it begins beyond {begin} tokens (max_tokens − buffer_tokens), but no response "
                f"is longer than {max_response_tokens}"
            )


def _check_judges(key: str, rewards: RewardConfig, read_elsewhere: Collection[str]) -> Iterator[str]:
    """A judge of the user's own needs its section, one that reads whole responses a style that gives them, and the other way
    round."""
    used = {f"{key}.judges_by_value.{value}": name for value, name in rewards.judges_by_value.items()}
    if rewards.judge_key is None:
        used = {f"{key}.judge": rewards.judge}
    for name in SECTIONS:
        asking, section = [place for place, judge in used.items() if judge == name], getattr(rewards, name)
        if asking and section is None:
            yield f"{asking[0]}={name} needs the section {key}.{name}, which says what to ask"
        if section is not None and not asking and name not in read_elsewhere:
            yield f"{key}.{name} has no effect: no row is judged by {name} ({', '.join(f'{k}={v}' for k, v in used.items())})"
    readable = WHOLE_RESPONSE_JUDGES.get(rewards.style)
    for place, name in used.items():
        if readable is not None and name not in readable:
            yield (
                f"{place}={name} cannot read what {key}.style={rewards.style} gives it, a whole response; it goes with "
                f"{' or '.join(readable)}"
            )
        if readable is None and name.endswith("_reference"):
            styles = [style for style, judges in WHOLE_RESPONSE_JUDGES.items() if name in judges]
            yield f"{place}={name} reads whole responses; it needs {key}.style={styles[0]}, found {rewards.style}"
