"""Octopus rollout augmentation: new rollouts from a first attempt of one native and the correction of another.

Paper: arXiv 2602.08503, §3.2 and Algorithm 1; the released program's rule is `selection="reference"` (docs/method.md §3).
Differences from the released program, all in the building of rows, not in the choice: halves are cut in the sampled ids,
a half takes part only with its own complete separator and a good format, and pairs that exceed the length limit are
left out *before* the choice.

Pairs of indices are chosen first; only the chosen ones are built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from octopus_mcore.config.buffer import RecombineConfig
from octopus_mcore.experience.statistics import TRANSITIONS, judgement_of, transition
from octopus_mcore.experience.types import AttemptGrade, Group, Judgement, Provenance, ResponseFacts, Rollout, Span, SpanKind
from octopus_mcore.runtime.seeds import numpy_generator

PairJudgement = Callable[[AttemptGrade, AttemptGrade | None, ResponseFacts], Judgement]
"""Judges a rollout from the grades of its first attempt and of its correction (None: there is no correction), and its facts."""

Pair = tuple[int, int]
"""First attempt of native i, correction of native j."""

Pools = Mapping[str, Sequence[Pair]]
"""Candidate pairs by transition (`wc`, `cc`, `cw`, `ww`)."""


def recombine(
    group: Group, config: RecombineConfig, max_response_tokens: int, pair_judgement: PairJudgement, seed: int, step: int
) -> Group:
    """The group with synthesised rollouts behind its natives, up to `config.target` rollouts in all.

    `max_response_tokens` bounds each joined response. The choice depends on (seed, step, uid) and the natives alone. When
    the pools hold too few pairs, `paper` and `random` return fewer rollouts; `reference` repeats natives.

    Raises:
        ValueError: a native has no judgement.
    """
    natives = group.natives
    right = [judgement_of(native).final_correct for native in natives]
    rng = numpy_generator(seed, step, group.prompt.uid, "recombine")
    pools = candidate_pools(natives, max_response_tokens, same=config.selection == "reference")
    chosen = SELECTIONS[config.selection](pools, right, config.target, rng)
    return replace(group, rollouts=natives + tuple(splice(natives, Provenance(*pair), pair_judgement) for pair in chosen))


def candidate_pools(natives: Sequence[Rollout], max_response_tokens: int, same: bool) -> dict[str, list[Pair]]:
    """All pairs (i, j) that may be built, by transition and in order of indices; `same` admits i = j.

    A first half may be used that is well formatted, has a filled box and stands before its own complete separator; a
    correction that is well formatted, has a filled box and was ended by the model itself rather than by the length limit.
    Each native is looked at once, so that a pair costs no more than a comparison of two integers.
    """
    firsts: list[tuple[int, int, bool]] = []
    corrections: list[tuple[int, int, bool]] = []
    for index, native in enumerate(natives):
        span = native.span(SpanKind.CORRECTION)
        if span is None:
            continue
        first, correction = judgement_of(native).attempts
        if _complete(first):
            firsts.append((index, span.start, first.correct))
        if native.finish_reason == "stop" and _complete(correction):
            corrections.append((index, len(native.token_ids) - span.start, correction.correct))
    pools: dict[str, list[Pair]] = {label: [] for label in TRANSITIONS}
    for i, head, first_correct in firsts:
        for j, tail, correct in corrections:
            if head + tail <= max_response_tokens and (same or i != j):
                pools[transition(first_correct, correct)].append((i, j))
    return pools


def select_paper(pools: Pools, right: Sequence[bool], target: int, rng: np.random.Generator) -> list[Pair]:
    """Algorithm 1: positives up to half of the group, wc before cc, then negatives at random, then what is left.

    `right` is the correctness of each native's final answer. In a uniform group (no native right, or all of them) the pairs are
    drawn at random.
    """
    if len(set(right)) < 2:
        return select_random(pools, right, target, rng)
    wanted = max(0, target - len(right))
    positives = _shuffled(pools["wc"], rng) + _shuffled(pools["cc"], rng)
    balance = min(wanted, max(0, target // 2 - sum(right)))
    chosen = positives[:balance]
    chosen += _shuffled([*pools["cw"], *pools["ww"]], rng)[: wanted - len(chosen)]
    return chosen + _shuffled(positives[balance:], rng)[: wanted - len(chosen)]


def select_random(pools: Pools, right: Sequence[bool], target: int, rng: np.random.Generator) -> list[Pair]:
    """Pairs drawn without regard to labels (the paper's «random augmentation» ablation, Table 3)."""
    everything = [pair for label in TRANSITIONS for pair in pools[label]]
    return _shuffled(everything, rng)[: max(0, target - len(right))]


def select_reference(pools: Pools, right: Sequence[bool], target: int, rng: np.random.Generator) -> list[Pair]:
    """The released program's rule: h wc, h cc, one cw, ww, more cw, leftovers, at last repeated natives.

    h = (wrong natives) // 2. A repeated native i is the pair (i, i).
    """
    wanted, half = max(0, target - len(right)), (len(right) - sum(right)) // 2
    wc, cc, cw, ww = (_shuffled(pools[label], rng) for label in TRANSITIONS)
    chosen = (wc[:half] + cc[:half])[:wanted]
    leftover = _shuffled(wc[half:] + cc[half:], rng)
    repeats = [(index % len(right), index % len(right)) for index in range(wanted)] if right else []
    for source in (cw[:1], ww, cw[1:], leftover, repeats):
        chosen += source[: wanted - len(chosen)]
    return chosen


SELECTIONS: Mapping[str, Callable[[Pools, Sequence[bool], int, np.random.Generator], list[Pair]]] = {
    "paper": select_paper,
    "reference": select_reference,
    "random": select_random,
}


def splice(natives: Sequence[Rollout], pair: Provenance, pair_judgement: PairJudgement) -> Rollout:
    """First attempt and separator of native i, exactly as sampled, then the correction of native j with its end token.

    The correction's log-probs come along but were measured behind another first attempt, so its span is not `behaviour_valid`.
    For i = j nothing changes its context: the rollout is the native with provenance.
    """
    first, second = natives[pair.first], natives[pair.correction]
    if pair.first == pair.correction:
        return replace(first, provenance=pair, signal=None)
    cut, tail = first.span(SpanKind.CORRECTION).start, second.span(SpanKind.CORRECTION)
    head = tuple(span for span in first.spans if span.end <= cut)
    token_ids = first.token_ids[:cut] + second.token_ids[tail.start :]
    return Rollout(
        token_ids=token_ids,
        log_probs=np.concatenate([first.log_probs[:cut], second.log_probs[tail.start :]]),
        spans=(*head, Span(SpanKind.CORRECTION, cut, len(token_ids), tail.version, behaviour_valid=False)),
        finish_reason=second.finish_reason,
        provenance=pair,
        judgement=pair_judgement(
            judgement_of(first).attempts[0],
            judgement_of(second).attempts[1],
            ResponseFacts(tokens=len(token_ids), finished=second.finish_reason == "stop"),
        ),
    )


def _complete(grade: AttemptGrade) -> bool:
    return grade.formatted and bool(grade.answer and grade.answer.strip())


def _shuffled(pairs: Sequence[Pair], rng: np.random.Generator) -> list[Pair]:
    return [pairs[index] for index in rng.permutation(len(pairs)).tolist()]
