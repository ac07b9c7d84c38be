"""Selective sample replay: rollouts without an advantage teach nothing, so those that have one are drawn in their place.

VL-Rethinker (arXiv 2504.08837 §3.2 and §4; docs/method.md §12). The unit is the single rollout, over all groups of the step;
advantages are those of the step that generated it. A rollout that was drawn k times is not copied: its signal says so
(`TrainingSignal.draws`), the trainer makes k rows of it, and their prefix tree computes them once. So a group keeps all its
rollouts in their places, drawn or not.

Every rank has all groups of a step and draws for all of them, so the choice is global and does not depend on the number of
ranks (the released program draws on each rank among its own prompts). It does not depend on the order of groups either.
Not reproduced: the generator that is seeded with 42 on every call; the missing epsilon that keeps positives without advantage
from ever being drawn among the current rollouts; and the loop without end where no rollout has an advantage: nothing is drawn
then, and the step makes no update.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from octopus_mcore.config.buffer import ReplayConfig
from octopus_mcore.experience.stages import StageContext
from octopus_mcore.experience.statistics import judgement_of
from octopus_mcore.experience.types import Group, Place, Prompt, Rollout
from octopus_mcore.runtime.seeds import numpy_generator

_ROUNDING = 1e-9
"""A mean that is taken off a reward which equals it may leave so much."""


def advantage_size(rollout: Rollout) -> float:
    """|A| of a rollout: the mean of its trained tokens' |advantage|, 0 where it trains none or where it is rounding.

    Raises:
        ValueError: the rollout has no training signal yet.
    """
    if rollout.signal is None:
        raise ValueError("the replay stage needs advantages: put an advantage stage before it")
    chosen = np.abs(rollout.signal.advantages[rollout.signal.policy_mask])
    size = float(chosen.mean(dtype=np.float64)) if len(chosen) else 0.0
    return size if size > _ROUNDING else 0.0


def draw(sizes: np.ndarray, count: int, config: ReplayConfig, rng: np.random.Generator) -> np.ndarray:
    """How often each of some rollouts is drawn, int64 [rollouts], `count` times in all (0 where there are none).

    While more are wanted than there are, all are taken once; the rest is drawn with replacement, p ∝ (|A| + epsilon)^alpha.
    `sizes` are their |A|, float64 [rollouts].
    """
    draws = np.zeros(len(sizes), dtype=np.int64)
    if not len(sizes) or count <= 0:
        return draws
    rounds = -(-count // len(sizes)) - 1
    weights = (sizes + config.epsilon) ** config.alpha
    rest = rng.choice(len(sizes), count - rounds * len(sizes), p=weights / weights.sum())
    return draws + rounds + np.bincount(rest, minlength=len(sizes))


def choose_within(sizes: np.ndarray, rewards: np.ndarray, config: ReplayConfig, rng: np.random.Generator) -> np.ndarray:
    """Mode `rollout`: how often each rollout of the step is drawn, int64 [rollouts]; the sizes are those of the released
    program's variant of 2025-04-18, which is the paper's.

    With N rows to leave, rollouts without advantage but a good reward are admitted up to `zero_advantage_positives` of those
    with one, and where these are fewer than N // 2, at most up to N // 2 in all. Where none has an advantage, N are drawn from
    all: an update without gradient.
    """
    wanted = config.rows_of(len(sizes))
    active, positives = _active(sizes), _positives(sizes, rewards, config, rng)
    if not len(active):
        return draw(sizes, wanted, config, rng)
    admitted = int(config.zero_advantage_positives * len(active))
    if len(active) < wanted // 2:
        admitted = min(admitted, wanted // 2 - len(active))
    return _draw_among(np.concatenate([active, positives[:admitted]]), wanted, sizes, config, rng)


def choose_filtered(sizes: np.ndarray, rewards: np.ndarray, config: ReplayConfig, rng: np.random.Generator) -> np.ndarray:
    """Mode `filter`: rollouts with an advantage fill the batch, uniformly; int64 [rollouts]. None where none has one."""
    uniform = config.model_copy(update={"alpha": 0.0})
    return _draw_among(_active(sizes), config.rows_of(len(sizes)), sizes, uniform, rng)


def choose_current(sizes: np.ndarray, rewards: np.ndarray, config: ReplayConfig, rng: np.random.Generator) -> np.ndarray:
    """Mode `persistent`, the step's own part: as many draws as there are rollouts with an advantage, and admitted positives,
    but at most the rows that leave; the pool gives the rest. int64 [rollouts]."""
    wanted, active = config.rows_of(len(sizes)), rng.permutation(_active(sizes))
    admitted = _positives(sizes, rewards, config, rng)[: int(config.zero_advantage_positives * len(active))]
    among = np.concatenate([active, admitted])[:wanted]
    return _draw_among(among, len(among), sizes, config, rng)


CHOICES = {"rollout": choose_within, "filter": choose_filtered, "persistent": choose_current}


def _reward_if_trained(rollout: Rollout) -> float:
    """A rollout's reward; below any where no token of it is trained (`buffer.mask_truncated`), for it could teach nothing."""
    return judgement_of(rollout).total if rollout.signal.policy_mask.any() else -np.inf


def _active(sizes: np.ndarray) -> np.ndarray:
    return np.flatnonzero(sizes)


def _positives(sizes: np.ndarray, rewards: np.ndarray, config: ReplayConfig, rng: np.random.Generator) -> np.ndarray:
    """Rollouts without advantage and with a good reward, in random order."""
    return rng.permutation(np.flatnonzero((sizes == 0) & (rewards > config.positive_reward)))


def _draw_among(
    among: np.ndarray, wanted: int, sizes: np.ndarray, config: ReplayConfig, rng: np.random.Generator
) -> np.ndarray:
    draws = np.zeros(len(sizes), dtype=np.int64)
    draws[among] = draw(sizes[among], wanted, config, rng)
    return draws


@dataclass(frozen=True)
class Kept:
    """A rollout in the pool: its prompt, its place in the group of the step that generated it (of no meaning later), the number
    of that step, and its |A|."""

    prompt: Prompt
    index: int
    rollout: Rollout
    born: int
    size: float


class Replay:
    """The buffer's stage of selective sample replay; it stands behind the advantages.

    Mode `persistent` keeps a pool. A step's rollouts with an advantage enter it before the pool is drawn from, so that they
    are candidates there too; what the pool gives of earlier steps comes as groups of their own, mixed among the step's. Such
    rollouts carry `old_log_probs`: what the trainer measured in their own step (`observe`), under the policy that generated
    them. Rollouts that enter the pool without being drawn are `kept`, so that they are measured all the same.

    The pool takes about 20 bytes per response token and its prompts.
    """

    def __init__(self, config: ReplayConfig):
        self._config = config
        self._steps = 0
        self._largest = 0
        self._pool: deque[Kept] = deque()
        self._metrics: dict[str, float] = {}

    def __call__(self, groups: Sequence[Group], ctx: StageContext) -> list[Group]:
        """All groups, with the number of draws on each rollout, and those of earlier steps that were drawn.

        Raises:
            ValueError: a rollout has no advantages yet; or the pool holds rollouts of a prompt that comes again under its uid.
        """
        rng = numpy_generator(ctx.seed, ctx.step, "replay")
        self._steps += 1
        in_order = sorted(range(len(groups)), key=lambda number: groups[number].prompt.uid)
        places = [(number, index) for number in in_order for index in range(len(groups[number].rollouts))]
        rollouts = [groups[number].rollouts[index] for number, index in places]
        sizes = np.array([advantage_size(rollout) for rollout in rollouts], dtype=np.float64)
        rewards = np.array([_reward_if_trained(rollout) for rollout in rollouts], dtype=np.float64)
        own = CHOICES[self._config.mode](sizes, rewards, self._config, rng)
        draws = dict(zip(places, own.tolist(), strict=True))
        earlier: list[tuple[Kept, int]] = []
        if self._config.mode == "persistent":
            self._take_in(groups, places, sizes)
            earlier = self._from_pool(self._config.rows_of(len(sizes)) - int(own.sum()), groups, draws, rng)
        self._metrics = self._count(sizes, draws, earlier)
        kept = {(kept.prompt.uid, kept.index) for kept in self._pool if kept.born == self._steps}
        current = [_marked(number, group, draws, kept) for number, group in enumerate(groups)]
        if not earlier:
            return current
        mixed = [*current, *_replayed(earlier)]
        return [mixed[number] for number in rng.permutation(len(mixed))]

    def observe(self, groups: Sequence[Group]) -> None:
        """Takes over what the trainer measured of the step's rollouts in the pool.

        Raises:
            ValueError: one of them was not measured.
        """
        by_uid = {group.prompt.uid: group for group in groups}
        self._pool = deque(self._measured(kept, by_uid) if kept.born == self._steps else kept for kept in self._pool)

    def metrics(self) -> dict[str, float]:
        """Of the last call. `replay/drawn`: rows that leave; `replay/replayed`: of these, draws of earlier steps' rollouts;
        `replay/duplicates`: draws of a rollout beyond its first; `replay/pool`: rollouts in the pool; `replay/age_mean`: mean
        age in steps of the replayed ones (left out where there are none); `replay/zero_advantage_share`: share of the step's
        rollouts without advantage, the paper's «saturation»."""
        return dict(self._metrics)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps, most rows that one of them left, and the pool as groups of rollouts of one prompt and step, the
        oldest first."""
        return {
            "steps": self._steps,
            "largest": self._largest,
            "pool": [_as_group(born, members) for born, members in _by_prompt(self._pool)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` gave.

        Raises:
            ValueError: the checkpoint's state is of another stage.
        """
        if set(state) != {"steps", "largest", "pool"}:
            raise ValueError(f"the replay stage's state has the keys steps, largest and pool, the checkpoint's {sorted(state)}")
        self._steps, self._largest = state["steps"], state["largest"]
        self._pool = deque(
            Kept(entry["group"].prompt, index, rollout, entry["born"], advantage_size(rollout))
            for entry in state["pool"]
            for index, rollout in enumerate(entry["group"].rollouts)
        )

    def _take_in(self, groups: Sequence[Group], places: Sequence[Place], sizes: np.ndarray) -> None:
        """The step's rollouts with an advantage enter the pool; the oldest leave it."""
        known = {kept.prompt.uid for kept in self._pool}
        if again := [group.prompt.uid for group in groups if group.prompt.uid in known]:
            raise ValueError(
                f"prompt {again[0]!r} comes again while its rollouts are in the replay pool; uids are unique in a run"
            )
        for (number, index), size in zip(places, sizes.tolist(), strict=True):
            if size:
                group = groups[number]
                self._pool.append(Kept(group.prompt, index, group.rollouts[index], self._steps, size))
        self._largest = max(self._largest, self._config.rows_of(len(sizes)))
        capacity = self._config.capacity or self._largest
        oldest = self._steps - (self._config.max_age or self._steps)
        while self._pool and (len(self._pool) > capacity or self._pool[0].born < oldest):
            self._pool.popleft()

    def _from_pool(
        self, wanted: int, groups: Sequence[Group], draws: dict[Place, int], rng: np.random.Generator
    ) -> list[tuple[Kept, int]]:
        """Draws from the pool: what falls on the step's own rollouts is added to `draws`, the others are handed back."""
        counts = draw(np.array([kept.size for kept in self._pool], dtype=np.float64), wanted, self._config, rng).tolist()
        numbers = {group.prompt.uid: number for number, group in enumerate(groups)}
        earlier = []
        for kept, count in zip(self._pool, counts, strict=True):
            if count and kept.born == self._steps:
                draws[numbers[kept.prompt.uid], kept.index] += count
            elif count:
                earlier.append((kept, count))
        return earlier

    def _measured(self, kept: Kept, groups: Mapping[str, Group]) -> Kept:
        group = groups.get(kept.prompt.uid)
        old = None if group is None else group.rollouts[kept.index].old_log_probs
        if old is None:
            raise ValueError(
                f"prompt {kept.prompt.uid}: rollout {kept.index} is kept for later steps, but the trainer has not measured it"
            )
        return replace(kept, rollout=replace(kept.rollout, old_log_probs=old))

    def _count(self, sizes: np.ndarray, draws: Mapping[Place, int], earlier: Sequence[tuple[Kept, int]]) -> dict[str, float]:
        counts = [*draws.values(), *(count for _, count in earlier)]
        replayed = sum(count for _, count in earlier)
        metrics = {
            "replay/drawn": sum(counts),
            "replay/replayed": replayed,
            "replay/duplicates": sum(count - 1 for count in counts if count),
            "replay/pool": len(self._pool),
        }
        if len(sizes):
            metrics["replay/zero_advantage_share"] = float((sizes == 0).mean())
        if replayed:
            metrics["replay/age_mean"] = sum((self._steps - kept.born) * count for kept, count in earlier) / replayed
        return {name: float(value) for name, value in metrics.items()}


def _marked(number: int, group: Group, draws: Mapping[Place, int], kept: Set[tuple[str, int]]) -> Group:
    """The group with its draws, and with `kept` on rollouts that are in the pool, named by uid and index."""
    return replace(
        group,
        rollouts=tuple(
            replace(
                rollout,
                signal=replace(rollout.signal, draws=draws[number, index], kept=(group.prompt.uid, index) in kept),
            )
            for index, rollout in enumerate(group.rollouts)
        ),
    )


def _by_prompt(pool: Sequence[Kept]) -> Iterator[tuple[int, list[Kept]]]:
    """The pool in order, rollouts of one prompt and step together."""
    for (born, _), members in groupby(pool, key=lambda kept: (kept.born, kept.prompt.uid)):
        yield born, list(members)


def _as_group(born: int, members: Sequence[Kept]) -> dict[str, Any]:
    return {"born": born, "group": Group(members[0].prompt, tuple(kept.rollout for kept in members))}


def _replayed(drawn: Sequence[tuple[Kept, int]]) -> list[Group]:
    """Groups of rollouts of earlier steps, each with its number of draws."""
    counts = {id(kept): count for kept, count in drawn}
    return [
        Group(
            members[0].prompt,
            tuple(replace(k.rollout, signal=replace(k.rollout.signal, draws=counts[id(k)], kept=False)) for k in members),
        )
        for _, members in _by_prompt([kept for kept, _ in drawn])
    ]
