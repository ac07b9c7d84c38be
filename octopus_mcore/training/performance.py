"""How well updates use the machine: tokens and operations per second, and their share of the device's peak."""

from __future__ import annotations

from collections.abc import Sequence

from octopus_mcore.models.costs.flops import Flops
from octopus_mcore.policy.policy import UpdateReport


def performance_metrics(reports: Sequence[UpdateReport], seconds: float, ranks: int, peak: float | None) -> dict[str, float]:
    """Metrics of a step's updates; none where nothing was trained.

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
    metrics = {"perf/tokens_per_second": sum(report.tokens for report in reports) / seconds}
    metrics |= {f"perf/{kind}_tflops_per_second_per_rank": rate / 1e12 for kind, rate in rates.items()}
    if peak is not None:
        metrics |= {"perf/mfu": rates["model"] / peak, "perf/hfu": rates["hardware"] / peak}
    return metrics
