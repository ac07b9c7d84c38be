"""Our trainer's step as a side of a yardstick: `Policy.update` on a recorded batch, in any layout.

octopus_step.py SETTINGS [--share-prefixes] [--tensor N] [--pipeline N] [--data N]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import AutoConfig

from benchmarks.random_policy import recorded_workload, step_config
from benchmarks.recorded_batch import BANNED, RecordedBatch, StepSettings
from benchmarks.side_process import Clock, answer, receive
from octopus_mcore.config.schema import Config
from octopus_mcore.policy.policy import Policy
from octopus_mcore.runtime.world import World, join_world


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path)
    parser.add_argument("--share-prefixes", action="store_true")
    for axis in ("tensor", "pipeline", "data"):
        parser.add_argument(f"--{axis}", type=int, default=1)
    return parser.parse_args()


class OctopusStep:
    """Our policy in the world's layout, and steps on recorded batches. Collective."""

    def __init__(self, settings: StepSettings, config: Config, world: World) -> None:
        self._settings, self._world = settings, world
        self._images: dict = {}
        banned = BANNED if hasattr(AutoConfig.from_pretrained(settings.checkpoint), "vision_config") else ()
        self._policy = Policy(config, world, self._images, banned)
        self._policy.begin_phase(config.optimizer, with_reference=False)

    def __call__(self, batch: RecordedBatch) -> dict[str, float]:
        """One update, timed: loss, gradient norm, tokens as computed and as rows, seconds."""
        work = recorded_workload(batch, self._settings)
        self._images |= work.images
        self._world.barrier()
        clock = Clock()
        report = self._policy.update(work.rows, work.objective, temperature=1.0, learning_rate=self._settings.learning_rate)
        self._world.barrier()
        measured = clock.read()
        found = {"loss": report.losses["loss"], "grad_norm": report.grad_norm, "tokens": report.tokens}
        return found | {"row_tokens": sum(len(row) for row in work.rows)} | measured


def main() -> None:
    options = parse()
    settings = StepSettings.load(options.settings)
    layout = {axis: getattr(options, axis) for axis in ("tensor", "pipeline", "data")}
    config = step_config(settings, options.share_prefixes, layout)
    with join_world(config.parallel, config.runtime) as world:
        step = OctopusStep(settings, config, world)
        if world.is_main:
            answer({})
        while request := world.broadcast(receive() if world.is_main else None):
            found = step(RecordedBatch.load(Path(request["batch"])))
            if world.is_main:
                answer(found)


if __name__ == "__main__":
    main()
