"""Learning curves as a picture, from the records of `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Curve:
    """One metric of a panel. `evaluated` is its name in evaluations, drawn as points; None draws none."""

    metric: str
    label: str
    colour: str
    evaluated: str | None = None


_PANELS: dict[str, tuple[_Curve, ...]] = {
    "SFT loss": (_Curve("train/loss", "loss", "tab:blue"),),
    "Reward": (_Curve("train/reward", "reward", "tab:green"),),
    "Accuracy": (
        _Curve("train/first_accuracy", "first attempt", "tab:orange", "first_accuracy"),
        _Curve("train/final_accuracy", "last attempt", "tab:blue", "final_accuracy"),
    ),
    "Transitions": (
        _Curve("train/wrong_correct", "wrong → correct", "tab:green", "wrong_correct"),
        _Curve("train/correct_wrong", "correct → wrong", "tab:red", "correct_wrong"),
    ),
    "Share of responses with a correction": (
        _Curve("train/correction_share", "corrections", "tab:purple", "correction_share"),
    ),
    "Response length (tokens)": (_Curve("train/length", "length", "tab:brown", "length"),),
}


def plot_curves(records: Records, file: Path, *, title: str = "", evaluation: str | None = None) -> bool:
    """Draws the panels that have data into a PNG. Returns False, writing nothing, when no panel has any.

    Every training curve is drawn raw (faint) and smoothed (bold, centred moving average). `evaluation` is
    `<set>/T<temperature>`; its results are drawn as points. Dotted lines mark where phases begin.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        (name, curves) for name, curves in _PANELS.items() if any(len(_points(records, curve.metric)[0]) for curve in curves)
    ]
    if not panels:
        return False
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (name, curves) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step of the run", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        _draw_panel(axes, records, curves, evaluation)
    if title:
        figure.suptitle(title, fontsize=11)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    return True


def _draw_panel(axes: Axes, records: Records, curves: Sequence[_Curve], evaluation: str | None) -> None:
    for curve in curves:
        steps, values = _points(records, curve.metric)
        axes.plot(steps, values, color=curve.colour, alpha=0.25, linewidth=1)
        axes.plot(steps, _smoothed(values), color=curve.colour, linewidth=1.8, label=curve.label)
    starts = _phase_starts(records, [curve.metric for curve in curves])
    for curve in curves:
        if evaluation is not None and curve.evaluated is not None:
            steps, values = _points(records, f"eval/{evaluation}/{curve.evaluated}")
            shown = steps >= min(starts.values())
            label = f"{curve.label}, {evaluation}"
            axes.plot(steps[shown], values[shown], "o", color=curve.colour, markeredgecolor="black", markersize=5, label=label)
    _mark_phases(axes, starts)
    if axes.get_legend_handles_labels()[0][1:]:
        axes.legend(fontsize=7, framealpha=0.6)


def _phase_starts(records: Records, metrics: Sequence[str]) -> dict[str, int]:
    """Where on the step axis each phase begins that has one of these metrics."""
    starts: dict[str, int] = {}
    for record in records:
        if any(_shows(record, metric) for metric in metrics):
            starts.setdefault(record["phase"], record["total_step"] - record["step"])
    return starts


def _mark_phases(axes: Axes, starts: Mapping[str, int]) -> None:
    """A dotted line and the phase's name where a phase of this panel begins."""
    for phase, start in starts.items():
        axes.axvline(start, color="grey", linestyle=":", linewidth=1)
        where = {"transform": axes.get_xaxis_transform(), "ha": "left", "va": "bottom", "rotation": 90}
        axes.text(start, 0.02, phase, fontsize=7, color="grey", **where)


def _shows(record: Mapping[str, Any], metric: str) -> bool:
    """Whether a record has this metric. An RL loss does not count: advantages are centred, so it hovers about 0."""
    return record.get(metric) is not None and not (metric == "train/loss" and "train/reward" in record)


def _points(records: Records, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one metric."""
    found = [(record["total_step"], record[metric]) for record in records if _shows(record, metric)]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Centred moving average over a twentieth of the points; at the ends over what is there."""
    window = max(1, len(values) // 20) | 1
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
