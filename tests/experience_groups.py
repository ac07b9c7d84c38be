"""Groups for tests of the experience buffer, made on the real path: texts → token ids → spans → judge."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.experience.spans import SEPARATOR, SpanFinder
from octopus_mcore.experience.types import Group, Prompt, ResponseFacts, Rollout, Span, SpanKind
from octopus_mcore.rewards.judge import Judge, Response
from octopus_mcore.runtime.seeds import numpy_generator

TRUTH = "42"
QWEN_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""The pre-tokenizer of Qwen2 to Qwen3: it lets `}` and the blank line behind it become one token."""

EXACT = RewardConfig(judge="exact", workers=0)


def attempt(answer: str, thought: str = "so") -> str:
    return f"<think>\n{thought}\n</think>\n\n\\boxed{{{answer}}}"


def answered(correct: bool) -> str:
    return TRUTH if correct else "13"


@cache
def qwen_like_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen's pre-tokenizer, trained on responses, so that `}\\n\\n` is one token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    special = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[AddedToken(token, special=True) for token in special]
        + [AddedToken(token, special=False) for token in ("<think>", "</think>")],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([attempt("12") + SEPARATOR + attempt("34")] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def encode(text: str) -> tuple[int, ...]:
    return tuple(qwen_like_tokenizer().encode(text, add_special_tokens=False))


@cache
def finder() -> SpanFinder:
    return SpanFinder(qwen_like_tokenizer())


def native(
    text: str, version: int = 3, finish_reason: str = "stop", config: RewardConfig = EXACT, truth: str = TRUTH
) -> Rollout:
    """A judged native whose text is `text` (and the end token, if it stopped)."""
    token_ids = encode(text + ("<|im_end|>" if finish_reason == "stop" else ""))
    spans = finder().find(token_ids, version)
    response = Response(
        finder().attempt_texts(token_ids, spans), truth, ResponseFacts(extra_corrections=finder().extra_corrections(token_ids))
    )
    log_probs = -numpy_generator("log-probs", text).random(len(token_ids), dtype=np.float32)
    with Judge(config) as judge:
        return Rollout(token_ids, log_probs, spans, finish_reason, judgement=judge.judge([response])[0])


def labelled(label: str, number: int = 0, config: RewardConfig = EXACT) -> Rollout:
    """A native with transition `wc`, `cc`, `cw` or `ww`, or a single right (`c`) or wrong (`w`) attempt.

    `number` varies text and length.
    """
    halves = [
        attempt(answered(letter == "c"), f"way {number}" + " on" * (number + place)) for place, letter in enumerate(label)
    ]
    return native(SEPARATOR.join(halves), config=config)


def group_of(labels: Sequence[str], uid: str = "question-1", config: RewardConfig = EXACT) -> Group:
    """A group of natives with these labels."""
    prompt = Prompt(uid, encode("What is it?"), "What is it?", TRUTH)
    return Group(prompt, tuple(labelled(label, number, config) for number, label in enumerate(labels)))


def rewarded(rewards: Sequence[float], uid: str = "question-1") -> Group:
    """A group of single attempts with these rewards."""
    group = group_of(["c"] * len(rewards), uid)
    judgements = [replace(r.judgement, total=reward) for r, reward in zip(group.rollouts, rewards, strict=True)]
    return replace(group, rollouts=tuple(replace(r, judgement=j) for r, j in zip(group.rollouts, judgements, strict=True)))


def rethought(
    first: str, trigger: str, second: str, truth: str = TRUTH, finish_reason: str = "stop", version: int = 3
) -> Rollout:
    """A judged rollout whose first attempt was thought over behind a trigger, as forced rethinking makes it."""
    end = "<|im_end|>" if finish_reason == "stop" else ""
    parts = [encode(first), encode(trigger), encode(second + end)]
    ends = np.cumsum([len(part) for part in parts]).tolist()
    kinds = (SpanKind.FIRST, SpanKind.INJECTED, SpanKind.CORRECTION)
    spans = tuple(
        Span(kind, start, stop, version, kind != SpanKind.INJECTED)
        for kind, start, stop in zip(kinds, [0, *ends], ends, strict=False)
    )
    token_ids = sum(parts, ())
    log_probs = -numpy_generator("log-probs", first, second).random(len(token_ids), dtype=np.float32)
    log_probs[spans[1].start : spans[1].end] = np.nan
    with Judge(EXACT) as judge:
        judgement = judge.judge([Response((first, second), truth, ResponseFacts(rethought=True))])[0]
    return Rollout(token_ids, log_probs, spans, finish_reason, judgement=judgement)


def pair_judgement(first, correction, facts):
    """The reward table with its default values."""
    from octopus_mcore.rewards.shaping import judged_by

    return judged_by(EXACT)(first, correction, facts)


def same_rollout(a: Rollout, b: Rollout) -> bool:
    """Equality of rollouts, arrays included, bit by bit."""
    plain = all(
        getattr(a, name) == getattr(b, name) for name in ("token_ids", "spans", "finish_reason", "provenance", "judgement")
    )
    arrays = [(a.log_probs, b.log_probs)]
    if (a.old_log_probs is None) != (b.old_log_probs is None):
        return False
    if a.old_log_probs is not None:
        arrays.append((a.old_log_probs, b.old_log_probs))
    if a.signal is not None and b.signal is not None:
        plain = plain and (a.signal.draws, a.signal.kept) == (b.signal.draws, b.signal.kept)
        names = ["policy_mask", "kl_mask", "advantages", "nll_mask"]
        if a.signal.nll_mask is None or b.signal.nll_mask is None:
            plain = plain and a.signal.nll_mask is b.signal.nll_mask
            names.remove("nll_mask")
        arrays += [(getattr(a.signal, name), getattr(b.signal, name)) for name in names]
    return (
        plain
        and (a.signal is None) == (b.signal is None)
        and all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in arrays)
    )


def same_group(a: Group, b: Group) -> bool:
    pairs = zip(a.rollouts, b.rollouts, strict=False)
    return a.prompt == b.prompt and len(a.rollouts) == len(b.rollouts) and all(same_rollout(*pair) for pair in pairs)
