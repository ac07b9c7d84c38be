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
from octopus_mcore.policy.policy import Policy
from octopus_mcore.runtime.world import World, join_world


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path)
    parser.add_argument("--share-prefixes", action="store_true")
    for axis in ("tensor", "pipeline", "data"):
        parser.add_argument(f"--{axis}", type=int, default=1)
    return parser.parse_args()


def serve(policy: Policy, world: World, settings: StepSettings, images: dict) -> None:
    """Answers requests on rank 0; the other ranks take part."""
    while request := world.broadcast(receive() if world.is_main else None):
        work = recorded_workload(RecordedBatch.load(Path(request["batch"])), settings)
        images |= work.images
        world.barrier()
        clock = Clock()
        report = policy.update(work.rows, work.objective, temperature=1.0, learning_rate=settings.learning_rate)
        world.barrier()
        measured = clock.read()
        if world.is_main:
            found = {"loss": report.losses["loss"], "grad_norm": report.grad_norm}
            counts = {"tokens": report.tokens, "row_tokens": sum(len(row) for row in work.rows)}
            answer(found | counts | measured)


def main() -> None:
    options = parse()
    settings = StepSettings.load(options.settings)
    layout = {axis: getattr(options, axis) for axis in ("tensor", "pipeline", "data")}
    config = step_config(settings, options.share_prefixes, layout)
    images: dict = {}
    with join_world(config.parallel, config.runtime) as world:
        banned = BANNED if hasattr(AutoConfig.from_pretrained(settings.checkpoint), "vision_config") else ()
        policy = Policy(config, world, images, banned)
        policy.begin_phase(config.optimizer, with_reference=False)
        if world.is_main:
            answer({})
        serve(policy, world, settings, images)


if __name__ == "__main__":
    main()
