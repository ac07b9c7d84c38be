"""How well updates use the machine: tokens and operations per second and their share of the device's peak, what prefix trees
saved, and how evenly the work was dealt out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octopus_mcore.models.costs.flops import Flops
from octopus_mcore.policy.policy import UpdateReport


def performance_metrics(reports: Sequence[UpdateReport], seconds: float, ranks: int, peak: float | None) -> dict[str, float]:
    """Metrics of a step's updates; none where nothing was trained.

    | key | value |
    |---|---|
    | `batch/update_tokens`, `batch/row_tokens` | tokens that were computed, and those of the rows, each counted whole |
    | `batch/useful` | computed tokens that are no padding, as a share |
    | `batch/repeated` | share of the computed tokens that are prefixes computed again, because a tree was cut |
    | `batch/rank_imbalance` | operations of the busiest rank over the mean |
    | `batch/micro_batch_imbalance` | operations of the heaviest micro-batch over the mean of those that are not empty |
    | `batch/micro_batches`, `batch/empty` | of each rank in an update; empty ones of all ranks, which only keep them in step |

    Shares, imbalances and micro-batches are means over the updates.

    Model operations are those that forward and backward need, hardware operations the executed ones, with everything that is
    computed again and with padding: MFU and HFU are their rates over the peak (`models.costs.flops`, PaLM, arXiv 2204.02311).

    Args:
        reports: the step's updates.
        seconds: wall time of these updates, optimizer included.
        ranks: of the world; all share the work.
        peak: operations per second of one device at best, None where that is not known.
    """
    if not reports or seconds <= 0:
        return {}
    total = sum((report.flops for report in reports), Flops())
    rates = {"model": total.model / seconds / ranks, "hardware": total.hardware / seconds / ranks}
    metrics = _batch_metrics(reports) | {"perf/tokens_per_second": sum(report.tokens for report in reports) / seconds}
    metrics |= {f"perf/{kind}_tflops_per_second_per_rank": rate / 1e12 for kind, rate in rates.items()}
    if peak is not None:
        metrics |= {"perf/mfu": rates["model"] / peak, "perf/hfu": rates["hardware"] / peak}
    return metrics


def _batch_metrics(reports: Sequence[UpdateReport]) -> dict[str, float]:
    balances = [report.balance for report in reports if report.balance is not None]
    if not balances:
        return {}
    values = {
        "useful": [balance.useful for balance in balances],
        "repeated": [balance.repeated / max(balance.tokens, 1) for balance in balances],
        "rank_imbalance": [balance.rank_imbalance for balance in balances],
        "micro_batch_imbalance": [balance.micro_batch_imbalance for balance in balances],
        "micro_batches": [balance.micro_batches for balance in balances],
        "empty": [balance.empty for balance in balances],
    }
    means = {f"batch/{name}": float(np.mean(numbers)) for name, numbers in values.items()}
    means |= {"batch/update_tokens": float(sum(report.tokens for report in reports))}
    return means | {"batch/row_tokens": float(sum(report.row_tokens for report in reports))}
