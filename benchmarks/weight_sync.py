"""Weight updates of a real SGLang server: bytes, seconds, and how many plain memory copies of the same bytes that is.

    python benchmarks/weight_sync.py                                        # 64 and 256 MB of float32, on a CPU
    python benchmarks/weight_sync.py --layers 2 --buckets 1 --repetitions 1 # a quick look

The model is random and has the digits' tokenizer; only its size matters. Each row is the median over repetitions; the copy is
timed between updates, tensor by tensor into memory that was touched before. An update ends when the server has the weights, has
dropped its caches and says which version it serves.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

import torch

from octopus_mcore.config.schema import SGLangConfig
from octopus_mcore.data.digits.checkpoint import create_checkpoint
from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.models.weight_stream import WeightItem
from octopus_mcore.rollout.served import ServedEngine
from octopus_mcore.rollout.sync import build_transport
from octopus_mcore.runtime.world import local_device


def copy_seconds(tensors: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> float:
    started = time.perf_counter()
    for name, tensor in tensors.items():
        targets[name].copy_(tensor)
    return time.perf_counter() - started


def measure(folder: Path, scratch: Path, options: argparse.Namespace) -> None:
    source = HFFolder(folder)
    tensors = {name: source.tensor(name) for name in source.names()}
    targets = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    config = SGLangConfig(python=options.python, tensor=options.tensor, max_total_tokens=4096)
    device = local_device()
    engine = ServedEngine(config, str(folder), {}, dtype="float32", device=device, deterministic=False, folder=scratch)
    with closing(engine):
        choices = [("ipc", bucket) for bucket in options.buckets] + [("disk", 0)]
        for transport, bucket in choices:
            chosen = config.model_copy(update={"transport": transport, "sync_bucket_mb": bucket})
            engine._transport = build_transport(chosen, scratch, str(folder), torch.device("cpu"))
            updates, copies = [], []
            for version in range(options.repetitions + 1):
                copies.append(copy_seconds(tensors, targets))
                stream = iter([[WeightItem(name, tensor) for name, tensor in tensors.items()]])
                updates.append(engine.update_weights(stream, version).seconds)
            seconds, copy = statistics.median(updates[1:]), statistics.median(copies[1:])  # the first one touches the memory
            print(
                f"{size / 2**20:8.0f} {transport:>9} {bucket or '-':>10} {seconds:8.3f} {size / seconds / 2**30:8.2f} "
                f"{copy:8.3f} {seconds / copy:7.1f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", default=".venv-sglang/bin/python", help="Python of the engine's environment")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 8], help="decoder layers of about 30 MB each")
    parser.add_argument("--buckets", type=int, nargs="+", default=[16, 64, 256], help="bucket sizes in MB")
    parser.add_argument("--tensor", type=int, default=1, help="tensor-parallel size of the server")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("      MB transport  bucket MB        s    GiB/s   copy s   ratio")
    for layers in options.layers:
        with tempfile.TemporaryDirectory() as scratch:
            folder = create_checkpoint(Path(scratch) / "model", layers=layers, hidden=1024, heads=16, kv_heads=16)
            measure(folder, Path(scratch), options)


if __name__ == "__main__":
    main()
