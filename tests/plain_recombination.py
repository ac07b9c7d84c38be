"""Recombination as plainly as it can be written: every pair is an object, judged and measured by itself.

The choices of `octopus_mcore.experience.recombine` are compared with these. What a run selected must never change with the
pace of the program, so this file changes only where the method does.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from octopus_mcore.config.buffer import RecombineConfig
from octopus_mcore.experience.recombine import PairJudgement
from octopus_mcore.experience.types import AttemptGrade, Group, Provenance, ResponseFacts, Rollout, Span, SpanKind
from octopus_mcore.runtime.seeds import key_bits

LABELS = ("wc", "cc", "cw", "ww")


def plain_recombine(
    group: Group, config: RecombineConfig, limit: int, pair_judgement: PairJudgement, seed: int, step: int
) -> Group:
    natives = [rollout for rollout in group.rollouts if rollout.provenance is None]
    right = [native.judgement.attempts[-1].correct for native in natives]
    rng = np.random.Generator(np.random.Philox(key=key_bits(seed, step, group.prompt.uid, "recombine")))
    pairs = plain_pairs(natives, limit, same=config.selection == "reference")
    pools = {label: [pair for pair in pairs if label_of(natives, pair) == label] for label in LABELS}
    choose = {"paper": _paper, "random": _random, "reference": _reference}[config.selection]
    chosen = choose(pools, right, config.target, rng)
    return replace(group, rollouts=(*natives, *(_join(natives, pair, pair_judgement) for pair in chosen)))


def plain_pairs(natives: Sequence[Rollout], limit: int, same: bool) -> list[Provenance]:
    """All pairs that may be built, in order of indices."""
    pairs = [Provenance(i, j) for i in range(len(natives)) for j in range(len(natives)) if same or i != j]
    return [pair for pair in pairs if _may_be_built(natives[pair.first], natives[pair.correction], limit)]


def label_of(natives: Sequence[Rollout], pair: Provenance) -> str:
    first, correction = natives[pair.first].judgement.attempts[0], natives[pair.correction].judgement.attempts[1]
    return "wc"[first.correct] + "wc"[correction.correct]


def _may_be_built(first: Rollout, second: Rollout, limit: int) -> bool:
    head, tail = _correction(first), _correction(second)
    if head is None or tail is None or second.finish_reason != "stop" or head.start + tail.end - tail.start > limit:
        return False
    return _usable(first.judgement.attempts[0]) and _usable(second.judgement.attempts[1])


def _usable(grade: AttemptGrade) -> bool:
    return grade.formatted and grade.answer is not None and grade.answer.strip() != ""


def _correction(rollout: Rollout) -> Span | None:
    found = [span for span in rollout.spans if span.kind == SpanKind.CORRECTION]
    return found[0] if found else None


def _paper(pools, right, target, rng):
    if all(right) or not any(right):
        return _random(pools, right, target, rng)
    wanted = max(0, target - len(right))
    positives = _shuffled(pools["wc"], rng) + _shuffled(pools["cc"], rng)
    balance = min(wanted, max(0, target // 2 - sum(right)))
    chosen = positives[:balance]
    chosen += _shuffled(pools["cw"] + pools["ww"], rng)[: wanted - len(chosen)]
    return chosen + _shuffled(positives[balance:], rng)[: wanted - len(chosen)]


def _random(pools, right, target, rng):
    return _shuffled(pools["wc"] + pools["cc"] + pools["cw"] + pools["ww"], rng)[: max(0, target - len(right))]


def _reference(pools, right, target, rng):
    wanted, half = max(0, target - len(right)), (len(right) - sum(right)) // 2
    wc, cc, cw, ww = (_shuffled(pools[label], rng) for label in LABELS)
    chosen = (wc[:half] + cc[:half])[:wanted]
    leftover = _shuffled(wc[half:] + cc[half:], rng)
    for source in (cw[:1], ww, cw[1:], leftover, [Provenance(k % len(right), k % len(right)) for k in range(wanted)]):
        chosen += source[: wanted - len(chosen)]
    return chosen


def _join(natives: Sequence[Rollout], pair: Provenance, pair_judgement: PairJudgement) -> Rollout:
    first, second = natives[pair.first], natives[pair.correction]
    if pair.first == pair.correction:
        return replace(first, provenance=pair, signal=None)
    head, tail = _correction(first).start, _correction(second)
    ids = list(first.token_ids)[:head] + list(second.token_ids)[tail.start :]
    return Rollout(
        token_ids=tuple(ids),
        log_probs=np.array([*first.log_probs[:head], *second.log_probs[tail.start :]], dtype=np.float32),
        spans=(*first.spans[:-1], Span(SpanKind.CORRECTION, head, len(ids), tail.version, behaviour_valid=False)),
        finish_reason=second.finish_reason,
        provenance=pair,
        judgement=pair_judgement(
            first.judgement.attempts[0],
            second.judgement.attempts[1],
            ResponseFacts(tokens=len(ids), finished=second.finish_reason == "stop"),
        ),
    )


def _shuffled(pairs: list[Provenance], rng: np.random.Generator) -> list[Provenance]:
    order = rng.permutation(len(pairs))
    return [pairs[place] for place in order]
