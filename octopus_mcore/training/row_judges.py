"""Before training: does every row say by what it is to be judged, and is there a judge of one's own where one is asked for?"""

from __future__ import annotations

from collections.abc import Iterator

from octopus_mcore.config.layout import source_of
from octopus_mcore.config.plugins import load_plugin
from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.config.schema import Config
from octopus_mcore.data.rows import PromptSource
from octopus_mcore.rewards.custom import found_target
from octopus_mcore.rewards.rows import asks_rows, require_installed, row_judge
from octopus_mcore.training.session import prompt_seed

_CHUNK = 256
_LISTED = 20


def validate_row_judges(config: Config) -> None:
    """Reads the rows of every RL phase whose judging depends on them (`rewards.rows`), where the source can count them.

    Raises:
        ValueError: rows that cannot be judged; names the phase, and of the first 20 the row, the field and the value. Or a
            package is not installed, or there is no such function as `rewards.custom` names.
    """
    for name, phase in config.phases.items():
        if phase.kind != "rl":
            continue
        require_installed(phase.rewards)
        if phase.rewards.custom is not None:
            found_target(phase.rewards.custom)
        if not asks_rows(phase.rewards):
            continue
        key, plugin = source_of(config, name, phase)
        source = load_plugin(plugin, key)
        if hasattr(source, "__len__") and (problems := list(_problems(source, phase.rewards, prompt_seed(config, key)))):
            listed = "\n".join(problems[:_LISTED])
            more = f"\n… and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
            raise ValueError(f"{key}: phases.{name} cannot judge {len(problems)} of {len(source)} rows:\n{listed}{more}")


def _problems(source: PromptSource, rewards: RewardConfig, seed: int) -> Iterator[str]:
    for start in range(0, len(source), _CHUNK):
        for row in source.rows(start, min(_CHUNK, len(source) - start), seed):
            try:
                row_judge(rewards, row.uid, row.answer, row.metadata)
            except ValueError as error:
                yield str(error)
