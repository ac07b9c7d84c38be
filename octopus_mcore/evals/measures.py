"""From predictions to numbers: rates of self-correction, pass@k, majority votes, tokens, and a benchmark's own metrics.

Every function is one of predictions alone, taken in the set's order. A question that could not be asked counts as wrong in all
accuracies, pass@k, votes and benchmark metrics; rates of corrections and lengths are of responses, of which it has none. So
does an answer on which the judge gave no verdict, but the rates leave its response out and tell its share as `unjudged`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from octopus_mcore.config.vocabulary import temperature_name
from octopus_mcore.evals.benchmark import Benchmark, Item
from octopus_mcore.evals.predictions import Answer, Prediction, Sample, judgement
from octopus_mcore.experience.statistics import rates, tally_judged

Choice = Callable[[Sample], Answer]
"""Which of a sample's answers is meant."""


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The probability that at least one of k different samples out of these is right: 1 − C(n − c, k) / C(n, k), the unbiased
    estimator of pass@k (Chen et al., arXiv 2107.03374, Eq. 1). Exact integers, so it neither overflows nor cancels."""
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise ValueError(
            f"pass@{k} of {right} right ones among {samples} samples: expected 0 ≤ right ≤ samples, 1 ≤ k ≤ samples"
        )
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def powers_up_to(samples: int) -> list[int]:
    """1, 2, 4, … up to the number of samples."""
    return [2**exponent for exponent in range(samples.bit_length())]


def vote(answers: Sequence[Answer]) -> Answer | None:
    """The answer that most samples give, by equality of the extracted texts without outer white space; of equally frequent ones
    the first sampled. Attempts without an answer do not vote; None where there is no vote."""
    votes = Counter(answer.answer.strip() for answer in answers if answer.answer is not None)
    if not votes:
        return None
    winner = max(votes, key=votes.__getitem__)  # a Counter keeps the order of first appearance
    return next(answer for answer in answers if answer.answer is not None and answer.answer.strip() == winner)


def set_metrics(
    predictions: Sequence[Prediction],
    temperatures: Sequence[float],
    forced_rounds: int = 0,
    benchmark: Benchmark | None = None,
    items: Mapping[str, Item] | None = None,
    costs: bool = False,
) -> dict[str, float]:
    """Metrics of one set by `T<temperature>/<metric>`, and by `T<temperature>/round<k>_<metric>` of the responses after forced
    round k, which compare the first attempt with the last:

    - those of `experience.statistics.rates`, over all responses;
    - with several samples `pass@k` for k = 1, 2, 4, … and `first_pass@k`, of the final and of the first answers, and
      `majority@n`: whether the answer that most of the n samples end with is right;
    - of a benchmark `final/<name>` and `first/<name>` for its own metrics, on each question's mean score;
    - with `costs` the tokens: `first_length` of the first attempts (`length` is the whole response's), and `cut_share`, the
      share of responses that the length limit cut.

    `items` are the benchmark's, by uid. NaN is the rate of nothing.
    """
    metrics: dict[str, float] = {}
    for temperature in temperatures:
        for forced in range(forced_rounds + 1):
            prefix = f"{temperature_name(temperature)}/" + (f"round{forced}_" if forced else "")
            found = dict(_rates(predictions, temperature, forced))
            choices = {"final": final_answer(forced)} if forced else {"first": first_answer, "final": final_answer(0)}
            for name, choice in choices.items():
                found |= _repeated(predictions, temperature, name, choice)
                if benchmark is not None:
                    own = benchmark.metrics([items[p.uid] for p in predictions], mean_scores(predictions, temperature, choice))
                    found |= {f"{name}/{key}": value for key, value in own.items()}
            if costs:
                found |= _costs(predictions, temperature, forced)
            metrics |= {prefix + name: value for name, value in found.items()}
    return metrics


def first_answer(sample: Sample) -> Answer:
    """The first attempt."""
    return sample.rounds[0].attempts[0]


def final_answer(forced: int) -> Choice:
    """The last attempt after so many forced rounds."""

    def choice(sample: Sample) -> Answer:
        first, last, _ = sample.after(forced)
        return first if last is None else last

    return choice


def mean_scores(predictions: Sequence[Prediction], temperature: float, choice: Choice) -> list[float]:
    """Each question's mean score over its samples; 0 where it could not be asked, or for want of a verdict."""
    return [_mean([choice(sample).score or 0.0 for sample in p.at(temperature)], nothing=0.0) for p in predictions]


def _rates(predictions: Sequence[Prediction], temperature: float, forced: int) -> Iterator[tuple[str, float]]:
    samples = _samples(predictions, temperature)
    found = rates(tally_judged((judgement(sample, forced), final_answer(forced)(sample).tokens) for sample in samples))
    asked = sum(prediction.error is None for prediction in predictions)
    for name, value in found.items():
        if asked < len(predictions) and name in ("first_accuracy", "final_accuracy"):
            value = value * asked / len(predictions) if asked else 0.0
        yield name, value


def _repeated(predictions: Sequence[Prediction], temperature: float, name: str, choice: Choice) -> dict[str, float]:
    """pass@k, and of the final answers the majority's; nothing for single samples."""
    answers = [[choice(sample) for sample in prediction.at(temperature)] for prediction in predictions]
    n = max(map(len, answers), default=0)
    if n < 2:
        return {}
    right = [sum(answer.right for answer in given) for given in answers]
    prefix = "first_" if name == "first" else ""
    found = {f"{prefix}pass@{k}": _mean([pass_at_k(n, count, k) for count in right]) for k in powers_up_to(n)}
    if name == "final":
        winners = [vote(given) for given in answers]
        found[f"majority@{n}"] = _mean([winner is not None and winner.right for winner in winners])
    return found


def _costs(predictions: Sequence[Prediction], temperature: float, forced: int) -> dict[str, float]:
    samples = _samples(predictions, temperature)
    first = [tokens for sample in samples if (tokens := first_answer(sample).tokens) is not None]
    cut = [sample.after(forced)[2].finish == "length" for sample in samples]
    return ({} if forced else {"first_length": _mean(first)}) | {"cut_share": _mean(cut)}


def _samples(predictions: Sequence[Prediction], temperature: float) -> list[Sample]:
    return [sample for prediction in predictions for sample in prediction.at(temperature)]


def _mean(values: Sequence[float], nothing: float = math.nan) -> float:
    return math.fsum(values) / len(values) if values else nothing
