"""FP8 recipes side by side: time and memory of an update, and how far log-probs are from those of the first side.

    python benchmarks/fp8.py --folder /scratch/random                                   # a GPU with Transformer-Engine
    python benchmarks/fp8.py --folder build/random --shape tiny --sides local --dtype float32 --rows 2   # tries the program out

A side is `local` or `te` (in --dtype), or a recipe of `model.fp8`. All start from the same random checkpoint. Δ is |log-prob −
log-prob of the first side|, before any update; random weights say nothing of a trained model's Δ. Every side's precision audit
must pass.
"""

from __future__ import annotations

import argparse
import gc

import torch

from benchmarks.random_policy import add_options, config_of, distance, single_rank, timed_updates, workload_of
from octopus_mcore.config.precision import FP8Config
from octopus_mcore.config.schema import RuntimeConfig
from octopus_mcore.policy.policy import Policy
from octopus_mcore.runtime.world import device_model, join_world

RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--sides", nargs="+", choices=["local", "te", *RECIPES], default=["te", "local", *RECIPES[:3]])
    parser.add_argument("--first-bf16", type=int, default=0, help="first layers in bfloat16 (not with delayed)")
    parser.add_argument("--last-bf16", type=int, default=0, help="last layers in bfloat16 (not with delayed)")
    parser.add_argument("--parameters", action="store_true", help="keep FP8 parameters")
    return parser.parse_args()


def fp8_of(side: str, options: argparse.Namespace) -> FP8Config | None:
    if side not in RECIPES:
        return None
    layers = {} if side == "delayed" else {"first_layers_bf16": options.first_bf16, "last_layers_bf16": options.last_bf16}
    return FP8Config(recipe=side, parameters=options.parameters, **layers)


def main() -> None:
    options = parse()
    single_rank()
    work = workload_of(options)
    first = None
    for side in options.sides:
        config = config_of(options, "local" if side == "local" else "te", fp8_of(side, options))
        with join_world(config.parallel, RuntimeConfig(threads=torch.get_num_threads())) as world:
            policy = Policy(config, world, work.images, (4, 5, 6, 7))
            log_probs = policy.log_probs(work.rows, work.selections, temperature=1.0)
            policy.begin_phase(config.optimizer, with_reference=False)
            timed = timed_updates(policy, work, world, options.repetitions)
            if first is None:
                first = (log_probs, timed.seconds)
                print(
                    f"{device_model(world.device)}; shape {options.shape}, {timed.report.tokens} tokens, {options.dtype}, ",
                    end="",
                )
                print(f"median of {options.repetitions} updates; Δ against {side}")
                print(f"{'side':>12} {'ms':>10} {'ratio':>8} {'peak MiB':>10} {'mean Δ':>10} {'max Δ':>10}  audit")
            mean, largest = distance(log_probs, first[0])
            print(
                f"{side:>12} {1e3 * timed.seconds:>10.1f} {timed.seconds / first[1]:>8.2f} {timed.peak_bytes / 2**20:>10.0f} "
                f"{mean:>10.2e} {largest:>10.2e}  {policy.precision.summary}",
                flush=True,
            )
            del policy
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
