"""Recombination against a straight implementation, and the seconds of every stage of the experience buffer; one core.

    python benchmarks/recombination.py                                         # 512 prompts × 8 rollouts × 3000 tokens → 8192

Sides, all on the same judged natives, with the same rule and the same draws:

- `recombine`: the buffer's stage. Pairs of indices are chosen, the chosen ones are joined as ids, with log-probs, spans,
  provenance and judgement.
- `halves`: as the released program builds rows. Every response is decoded and cut in its text, each half is encoded again, all
  n × n pairs are built as arrays of ids, then some of them are chosen. (The released program decodes every response two or
  three times and copies each pair into a list; here each is decoded once and nothing is copied again.)
- `pairs`: the same, but each pair's joined text is encoded by itself, which is what re-encoding costs where rows are to have
  the tokens that their text has: a half that is encoded alone loses merges across the cut (docs/method.md §1).

The straight sides make ids alone: no log-probs, spans or judgements, and no grading on any side. They run on a few prompts;
ratios are taken per prompt, in pairs of one repetition, and the table shows medians. Responses are sequences of words that are
one token each, so that re-encoding gives the sampled tokens; before anything is timed, the rollouts of all sides are compared.
The garbage collector is on, and has just run when a timing begins.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from octopus_mcore.config.buffer import BufferConfig, RecombineConfig
from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.experience.buffer import Buffer, buffer_metrics, build_buffer
from octopus_mcore.experience.recombine import SELECTIONS, Pair, recombine
from octopus_mcore.experience.spans import SEPARATOR
from octopus_mcore.experience.stages import StageContext
from octopus_mcore.experience.statistics import TRANSITIONS, transition
from octopus_mcore.experience.types import AttemptGrade, Group, Prompt, Rollout, Span, SpanKind
from octopus_mcore.rewards.shaping import judged_by
from octopus_mcore.runtime.seeds import numpy_generator

END = "<|im_end|>"
OPEN, CLOSE = "<think>", "</think>"
BOX = {True: "\n\n\\boxed{42}", False: "\n\n\\boxed{13}"}
PIECES = r"\n+|\\boxed\{|\}|</?self-correction>|\d| ?[A-Za-z]+|."
"""Pieces that never merge with each other, so that a half has the same tokens alone and behind another one."""
SEED, STEP = 0, 1
JUDGE = judged_by(RewardConfig())

Rows = list[np.ndarray]
"""Ids of the rollouts that a straight implementation chose."""


@dataclass(frozen=True)
class Language:
    """A tokenizer, and the ids of its words that are one token each."""

    tokenizer: PreTrainedTokenizerFast
    words: np.ndarray

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


def language(vocabulary: int) -> Language:
    """A byte-level BPE trained on random words of 2 to 8 letters."""
    generator = numpy_generator("recombination words")
    words = {
        "".join(generator.choice(list("abcdefghijklmnoprstuvw"), size=generator.integers(2, 9))) for _ in range(vocabulary)
    }
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    special = [AddedToken(END, special=True, normalized=False)]
    special += [AddedToken(token, special=False, normalized=False) for token in (OPEN, CLOSE)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    text = "".join(f" {word}" for word in sorted(words))
    bpe.train_from_iterator([text, f"{OPEN}{CLOSE}{BOX[True]}{SEPARATOR}{OPEN}{CLOSE}{BOX[False]}"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, clean_up_tokenization_spaces=False)
    whole = [ids[0] for word in sorted(words) if len(ids := tokenizer.encode(f" {word}", add_special_tokens=False)) == 1]
    return Language(tokenizer, np.array(whole))


def make_groups(prompts: int, natives: int, tokens: int, speech: Language) -> list[Group]:
    """Judged natives of exactly `tokens` ids, cut between a third and two thirds; the share of right attempts varies."""
    return [_group(number, natives, tokens, speech) for number in range(prompts)]


def _group(number: int, natives: int, tokens: int, speech: Language) -> Group:
    generator = numpy_generator("recombination prompt", number)
    share = generator.random()
    rollouts = [_native(generator, tokens, *(generator.random(2) < share).tolist(), speech) for _ in range(natives)]
    return Group(Prompt(f"prompt-{number}", tuple(speech.encode(" what is it")), "what is it", "42"), tuple(rollouts))


def _native(generator: np.random.Generator, tokens: int, first: bool, correction: bool, speech: Language) -> Rollout:
    cut = int(generator.integers(tokens // 3, 2 * tokens // 3))
    separator = speech.encode(SEPARATOR)
    behind = cut + len(separator)
    ids = [*_attempt(generator, cut, first, speech), *separator]
    ids += [*_attempt(generator, tokens - behind - 1, correction, speech), *speech.encode(END)]
    kinds = (SpanKind.FIRST, 0, cut), (SpanKind.SEPARATOR, cut, behind), (SpanKind.CORRECTION, behind, tokens)
    grades = [AttemptGrade(right, True, "42" if right else "13", f"text {generator.random()}") for right in (first, correction)]
    log_probs = -generator.random(tokens, dtype=np.float32)
    return Rollout(tuple(ids), log_probs, tuple(Span(*kind) for kind in kinds), "stop", judgement=JUDGE(*grades))


def _attempt(generator: np.random.Generator, length: int, right: bool, speech: Language) -> list[int]:
    """Ids of a think block and a box, `length` in all."""
    begin, end = speech.encode(OPEN), speech.encode(f"{CLOSE}{BOX[right]}")
    return [*begin, *generator.choice(speech.words, size=length - len(begin) - len(end)).tolist(), *end]


def ours(groups: Sequence[Group], config: RecombineConfig, limit: int) -> list[Group]:
    """The stage of the buffer."""
    return [recombine(group, config, limit, JUDGE, SEED, STEP) for group in groups]


def halves(groups: Sequence[Group], config: RecombineConfig, limit: int, speech: Language) -> list[Rows]:
    """Each half encoded once, all pairs built, then the choice."""

    def joined(texts: list[list[str]]) -> dict[Pair, np.ndarray]:
        firsts, corrections = ([np.array(speech.encode(text)) for text in side] for side in zip(*texts, strict=True))
        separator = np.array(speech.encode(SEPARATOR))
        return {(i, j): np.concatenate([firsts[i], separator, corrections[j]]) for i, j in product(range(len(texts)), repeat=2)}

    return [_straight(group, config, limit, speech, joined) for group in groups]


def pairs(groups: Sequence[Group], config: RecombineConfig, limit: int, speech: Language) -> list[Rows]:
    """Each pair's joined text encoded by itself, then the choice."""

    def joined(texts: list[list[str]]) -> dict[Pair, np.ndarray]:
        return {
            (i, j): np.array(speech.encode(texts[i][0] + SEPARATOR + texts[j][1]))
            for i, j in product(range(len(texts)), repeat=2)
        }

    return [_straight(group, config, limit, speech, joined) for group in groups]


Joined = Callable[[list[list[str]]], dict[Pair, np.ndarray]]
"""From the texts of all first attempts and corrections to the ids of all pairs."""


def _straight(group: Group, config: RecombineConfig, limit: int, speech: Language, joined: Joined) -> Rows:
    texts = [speech.tokenizer.decode(list(native.token_ids)).split(SEPARATOR) for native in group.natives]
    grades = [native.judgement.attempts for native in group.natives]
    rows = joined(texts)
    pools: dict[str, list[Pair]] = {label: [] for label in TRANSITIONS}
    for (i, j), ids in rows.items():
        if len(ids) <= limit and (config.selection == "reference" or i != j):
            pools[transition(grades[i][0].correct, grades[j][1].correct)].append((i, j))
    right = [attempts[-1].correct for attempts in grades]
    rng = numpy_generator(SEED, STEP, group.prompt.uid, "recombine")
    return [rows[pair] for pair in SELECTIONS[config.selection](pools, right, config.target, rng)]


def check_equal(groups: Sequence[Group], config: RecombineConfig, limit: int, speech: Language) -> int:
    """How many synthesised rollouts were compared.

    Raises:
        AssertionError: a straight side chose other pairs, or made other ids of them.
    """
    expected = [
        [rollout.token_ids for rollout in group.rollouts if rollout.synthesised] for group in ours(groups, config, limit)
    ]
    for side in (halves, pairs):
        found = [[tuple(row.tolist()) for row in rows] for rows in side(groups, config, limit, speech)]
        if found != expected:
            raise AssertionError(f"the straight side {side} and the buffer's stage made different rollouts")
    return sum(map(len, expected))


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds of one run. What it returns is freed outside."""
    gc.collect()
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    spent = time.perf_counter() - wall, time.process_time() - processor
    del result
    return spent


def stage_seconds(buffer: Buffer, groups: Sequence[Group], target: int) -> dict[str, float]:
    """Wall seconds of each stage of the buffer on what the one before it gave, and of the metrics."""
    spent, given = {}, list(groups)
    for name, stage in buffer.stages.items():
        gc.collect()
        start = time.perf_counter()
        given = stage(given, StageContext(SEED, STEP))
        spent[name] = time.perf_counter() - start
    start = time.perf_counter()
    buffer_metrics(groups, given, target)
    return spent | {"metrics": time.perf_counter() - start}


def print_memory(buffer: Buffer, groups: Sequence[Group]) -> None:
    """What the rollouts hold per token and in all, and what the buffer allocates beyond its input."""
    tracemalloc.start()
    rollouts = [rollout for group in buffer(groups, StageContext(SEED, STEP)).groups for rollout in group.rollouts]
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    tokens = sum(len(rollout.token_ids) for rollout in rollouts)
    held = {
        "token ids": sum(np.asarray(rollout.token_ids).nbytes for rollout in rollouts),
        "log-probs": sum(rollout.log_probs.nbytes for rollout in rollouts),
        "masks": sum(rollout.signal.policy_mask.nbytes + rollout.signal.kl_mask.nbytes for rollout in rollouts),
    }
    print(f"\nmemory of {len(rollouts)} rollouts, {tokens} tokens")
    for name, size in held.items():
        print(f"{name:<28}{size / 2**20:>10.1f} MiB {size / tokens:>8.2f} bytes/token")
    print(f"{'added by the buffer':<28}{kept / 2**20:>10.1f} MiB (at most {peak / 2**20:.1f} at one time)")


def measure(groups: Sequence[Group], config: RecombineConfig, speech: Language, options: argparse.Namespace) -> None:
    """The table of sides, then the table of stages."""
    limit, few = 2 * options.tokens, list(groups[: options.straight_prompts])
    sides = {
        "recombine": (len(groups), lambda: ours(groups, config, limit)),
        "halves": (len(few), lambda: halves(few, config, limit, speech)),
        "pairs": (len(few), lambda: pairs(few, config, limit, speech)),
    }
    buffer = build_buffer(BufferConfig(recombine=config, mask=options.mask), limit, JUDGE)
    print(f"{check_equal(few, config, limit, speech)} synthesised rollouts of {len(few)} prompts are the same on all sides\n")
    runs = [{name: seconds(work) for name, (_, work) in sides.items()} for _ in range(options.repetitions)]
    print(f"{'side':<12}{'prompts':>8}{'wall s':>10}{'CPU s':>10}{'ms/prompt':>12}{'ratio':>9}")
    for name, (prompts, _) in sides.items():
        wall, processor = (statistics.median(run[name][clock] for run in runs) for clock in (0, 1))
        ratio = statistics.median(run[name][0] / prompts / run["recombine"][0] * len(groups) for run in runs)
        print(f"{name:<12}{prompts:>8}{wall:>10.3f}{processor:>10.3f}{1e3 * wall / prompts:>12.3f}{ratio:>9.1f}")
    stages = [stage_seconds(buffer, groups, config.target) for _ in range(options.repetitions)]
    print("\n" + "".join(f"{name:>12}" for name in ("stage", *stages[0], "all")))
    medians = [statistics.median(run[name] for run in stages) for name in stages[0]]
    print(f"{'wall s':>12}" + "".join(f"{value:>12.3f}" for value in (*medians, sum(medians))))
    print_memory(buffer, groups)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--natives", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--target", type=int, default=16)
    parser.add_argument("--selection", choices=sorted(SELECTIONS), default="paper")
    parser.add_argument("--mask", choices=["none", "first", "changed"], default="first")
    parser.add_argument("--straight-prompts", type=int, default=4, help="prompts on which the straight sides are timed")
    parser.add_argument("--vocabulary", type=int, default=4000)
    parser.add_argument("--repetitions", type=int, default=7)
    return parser.parse_args()


def main() -> None:
    options = parse()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    speech = language(options.vocabulary)
    groups = make_groups(options.prompts, options.natives, options.tokens, speech)
    print(
        f"{options.prompts} prompts × {options.natives} rollouts × {options.tokens} tokens → groups of {options.target}, "
        f"selection {options.selection}; {len(speech.tokenizer)} tokens in the vocabulary, one core, "
        f"median of {options.repetitions}; ratio = time per prompt over recombine's"
    )
    measure(groups, RecombineConfig(target=options.target, selection=options.selection), speech, options)


if __name__ == "__main__":
    main()
