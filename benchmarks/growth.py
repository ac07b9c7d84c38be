"""How the cost of our step grows: prompts, rows of a prompt (n), length and ranks, each doubled twice. A table and a plot.

    python benchmarks/growth.py --folder build/growth --plot docs/growth.png
    python benchmarks/growth.py --folder build/growth --axes ranks --layouts tensor=2 data=4

The model is a random Qwen3 (`--shape`), float32, one thread a rank; batches are groups as Octopus recombines them, as rows and
as prefix trees (`batch.share_prefixes` off and on; ranks: trees). `×` is the median of the paired ratios to the line before,
for ranks to one rank on the same batch: every repetition asks all sides in turn.

What the ranks here can show: that a layout's work is shared out and what it adds. What they cannot: how fast it is. All ranks
share this machine's cores, so more ranks than cores take turns, and messages between them are copies through gloo.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.random_policy import SHAPES, random_checkpoint
from benchmarks.recorded_batch import StepSettings, octopus_groups
from benchmarks.side_process import Side, check_equal, in_turn, sides

PROGRAM = Path(__file__).parent / "octopus_step.py"
AXES = ("prompts", "n", "length", "ranks")
LAYOUTS = tuple(f"{axis}={size}" for axis in ("tensor", "pipeline", "data") for size in (2, 4))


@dataclass(frozen=True)
class Point:
    """A measured place on an axis: `size` along it, under the name of a curve; what a step cost there, one number for each
    repetition in seconds, and its tokens as rows and as they were computed."""

    axis: str
    curve: str
    size: int
    seconds: tuple[float, ...]
    row_tokens: int
    tokens: int

    @property
    def median(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.seconds)

    def over(self, other: Point) -> float:
        """Median of the paired ratios to another point of the same run."""
        return statistics.median(mine / its for mine, its in zip(self.seconds, other.seconds, strict=True))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where checkpoint and batches are written")
    parser.add_argument("--plot", type=Path, help="a PNG of the table")
    parser.add_argument("--shape", choices=SHAPES, default="step")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=AXES)
    parser.add_argument("--layouts", nargs="+", default=LAYOUTS, help="AXIS=RANKS, one axis each")
    parser.add_argument("--prompts", type=int, default=1, help="groups of the smallest batch")
    parser.add_argument("--n", type=int, default=8, help="rows of a group in the smallest batch")
    parser.add_argument("--length", type=int, default=200, help="tokens of a row in the smallest batch, divided like 8:7:5")
    parser.add_argument("--max-tokens", type=int, default=3200, help="tokens of a micro-batch")
    parser.add_argument("--repetitions", type=int, default=2)
    return parser.parse_args()


class Batches:
    """Writes checkpoint, settings and batches."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._folder: Path = options.folder
        self._folder.mkdir(parents=True, exist_ok=True)
        checkpoint = random_checkpoint(options.shape, self._folder / f"{options.shape}-text", vision=False)
        # At a learning rate of 0 the order of batches plays no part: sides must agree wherever they got the same one.
        settings = StepSettings(str(checkpoint), max_tokens=options.max_tokens, learning_rate=0.0)
        self.settings = settings.save(self._folder / "growth.json")

    def path(self, prompts: int = 1, n: int = 1, length: int = 1) -> Path:
        """The batch with so many times the smallest one's prompts, rows and length."""
        options = self._options
        first, correction = 7 * options.length * length // 20, 5 * options.length * length // 20
        prompt = options.length * length - first - correction
        path = self._folder / f"{prompts}-{n}-{length}.npz"
        vocabulary = SHAPES[options.shape][6]
        groups = (options.prompts * prompts, options.n * n, prompt, first, correction)
        return octopus_groups(*groups, side=0, vocabulary=vocabulary).save(path)


def side(name: str, settings: Path, *arguments: str, ranks: int = 1) -> Callable[[], Side]:
    """How to start our step as a side."""
    return partial(Side, name, [sys.executable, PROGRAM, settings, *arguments], ranks)


def sizes(batches: Batches, options: argparse.Namespace) -> list[Point]:
    """Points along prompts, n and length, as rows and as trees."""
    axes = [axis for axis in options.axes if axis != "ranks"]
    places = [(axis, factor) for axis in axes for factor in (1, 2, 4)]
    paths = {place: str(batches.path(**{place[0]: place[1]})) for place in places}
    curves = {"rows": side("rows", batches.settings), "tree": side("tree", batches.settings, "--share-prefixes")}
    with sides(**curves) as running:
        steps = {(*place, curve): (running[curve], path) for place, path in paths.items() for curve in curves}
        return measure(steps, options.repetitions)


def ranks(batches: Batches, options: argparse.Namespace) -> list[Point]:
    """Points along ranks: trees in one rank, and in each layout, of which not more than one is alive at a time."""
    path, tree = str(batches.path(prompts=4)), "--share-prefixes"
    points = []
    with sides(one=side("one rank", batches.settings, tree)) as single:
        for layout in options.layouts:
            axis, size = layout.split("=")
            with sides(many=side(layout, batches.settings, tree, f"--{layout}", ranks=int(size))) as several:
                steps = {("ranks", 1, axis): (single["one"], path), ("ranks", int(size), axis): (several["many"], path)}
                points += measure(steps, options.repetitions)
    return points


def measure(steps: dict[tuple[str, int, str], tuple[Side, str]], repetitions: int) -> list[Point]:
    """Times steps in turn: (axis, size, curve) → (side, batch). The first round warms up. Equal batches must give equal loss
    and gradient norm."""
    found: dict[tuple, list[dict]] = {key: [] for key in steps}
    for order in in_turn(list(steps), repetitions + 1):
        for key in order:
            running, path = steps[key]
            found[key].append(running.ask(batch=path))
    for path in {path for _, path in steps.values()}:
        same = {str(key): found[key] for key, (_, its) in steps.items() if its == path}
        check_equal(same, reference=next(iter(same)))
    return [
        Point(
            axis,
            curve,
            size,
            tuple(each["seconds"] for each in answers[1:]),
            answers[0]["row_tokens"],
            answers[0]["tokens"],
        )
        for (axis, size, curve), answers in found.items()
    ]


def table(points: list[Point]) -> str:
    """Lines of the table; `×` against the point before on the same curve, for ranks against one rank in the same round."""
    lines = []
    last: dict[tuple[str, str], Point] = {}
    for point in points:
        before = last.get((point.axis, point.curve))
        last[point.axis, point.curve] = point
        grown = f"{point.over(before):.2f}" if before is not None and before.size < point.size else ""
        lines.append(
            f"{point.axis:>8} {point.size:>5} {point.curve:>9} {point.row_tokens:>11} {point.tokens:>9} "
            f"{1e3 * point.median:>9.0f} {grown:>7}"
        )
    return "\n".join(lines)


def plot(points: list[Point], path: Path) -> None:
    """One panel for each axis: the time of a step against its size, relative to the smallest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = list(dict.fromkeys(point.axis for point in points))
    figure, panels = pyplot.subplots(1, len(axes), figsize=(3.2 * len(axes), 3.2), layout="constrained", squeeze=False)
    for axis, panel in zip(axes, panels[0], strict=True):
        for curve in dict.fromkeys(point.curve for point in points if point.axis == axis):
            mine = [point for point in points if (point.axis, point.curve) == (axis, curve)]
            panel.plot(*_curve(mine), marker="o", label=curve)
        ideal = [1, 1 / 2, 1 / 4] if axis == "ranks" else [1, 2, 4]
        panel.plot([1, 2, 4], ideal, color="gray", linestyle=":", label="1 / ranks" if axis == "ranks" else "proportional")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        panel.set_xticks([1, 2, 4], ["1×", "2×", "4×"] if axis != "ranks" else ["1", "2", "4"])
        panel.set_title(axis)
        panel.set_ylabel("time of a step, relative")
        panel.legend(fontsize="small")
    figure.savefig(path, dpi=80)


def _curve(points: list[Point]) -> tuple[list[int], list[float]]:
    """Sizes and times relative to the first size, each a median of paired ratios."""
    first = min(point.size for point in points)
    sizes, ratios, base = [], [], None
    for point in points:
        if point.size == first:
            base = point
        if point.size != first or not sizes:
            sizes.append(point.size // first)
            ratios.append(point.over(base))
    return sizes, ratios


def main() -> None:
    options = parse()
    batches = Batches(options)
    print(
        f"shape {options.shape}, text; smallest batch {options.prompts} × {options.n} rows of {options.length} tokens, "
        f"micro-batches of {options.max_tokens}, float32, {os.cpu_count()} cores; median of {options.repetitions} repetitions"
    )
    print(f"{'axis':>8} {'size':>5} {'curve':>9} {'row tokens':>11} {'computed':>9} {'ms':>9} {'×':>7}", flush=True)
    points: list[Point] = []
    if any(axis != "ranks" for axis in options.axes):
        points += sizes(batches, options)
        print(table(points), flush=True)
    if "ranks" in options.axes:
        of_ranks = ranks(batches, options)
        print(table(of_ranks), flush=True)
        points += of_ranks
    if options.plot is not None:
        plot(points, options.plot)


if __name__ == "__main__":
    main()
