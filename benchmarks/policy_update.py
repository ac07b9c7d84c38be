"""A policy update of a random model in a real one's shape: tokens per second, operations per second and MFU, vision included.

    python benchmarks/policy_update.py --folder /scratch/random --shape 2b                       # one GPU
    torchrun --nproc-per-node 8 benchmarks/policy_update.py --folder /scratch/random --shape 8b --tensor 4 --recompute selective
    python benchmarks/policy_update.py --folder build/random --shape tiny --dtype float32 --rows 2    # tries the program out

Rows are packed as in training. MFU is the rate of the operations that forward and backward need over the device's dense peak
(`octopus_mcore/models/costs`); it is left out where the peak is not known.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.random_policy import add_options, config_of, single_rank, timed_updates, workload_of
from octopus_mcore.config.precision import FP8Config
from octopus_mcore.config.schema import RuntimeConfig
from octopus_mcore.models.costs.peaks import peak_flops
from octopus_mcore.policy.policy import Policy
from octopus_mcore.runtime.world import device_model, join_world
from octopus_mcore.training.performance import performance_metrics


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--layer-spec", choices=["local", "te"], default="local")
    parser.add_argument("--fp8", choices=["delayed", "tensorwise", "blockwise", "mxfp8"])
    for axis in ("tensor", "pipeline", "context", "virtual"):
        parser.add_argument(f"--{axis}", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    options = parse()
    single_rank()
    work = workload_of(options)
    layout = {axis: getattr(options, axis) for axis in ("tensor", "pipeline", "context", "virtual")}
    fp8 = FP8Config(recipe=options.fp8) if options.fp8 else None
    config = config_of(options, options.layer_spec, fp8, layout)
    with join_world(config.parallel, RuntimeConfig(threads=torch.get_num_threads())) as world:
        policy = Policy(config, world, work.images, (4, 5, 6, 7))
        policy.begin_phase(config.optimizer, with_reference=False)
        timed = timed_updates(policy, work, world, options.repetitions)
        peak = peak_flops(device_model(world.device), "fp8" if fp8 else options.dtype)
        if not world.is_main:
            return
        print(
            f"{world.size} × {device_model(world.device)}; shape {options.shape}, layout {layout}, {policy.precision.summary}"
        )
        print(f"{'tokens':<44} {timed.report.tokens}")
        print(f"{'ms':<44} {1e3 * timed.seconds:.1f}")
        print(f"{'peak MiB':<44} {timed.peak_bytes / 2**20:.0f}")
        for name, value in performance_metrics([timed.report], timed.seconds, world.size, peak).items():
            print(f"{name:<44} {value:.4g}")


if __name__ == "__main__":
    main()
