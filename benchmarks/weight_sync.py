"""Weight updates of a real SGLang server: bytes, seconds, and how many plain memory copies of the same bytes that is.

    python benchmarks/weight_sync.py                                        # 64, 256 and 512 MB of float32
    python benchmarks/weight_sync.py --layers 2 --buckets 1 --repetitions 1 # a quick look

On a machine with a GPU the trainer's tensors lie there, the server runs there, `ipc` sends CUDA-IPC handles and `collective`
uses NCCL; `--hidden 4096 --dtype bfloat16 --layers 8 32` is then a sensible size. Everything else is the same.

The model is random and has the digits' tokenizer; only its size matters. A copy is tensor by tensor into memory that was
touched before, timed before and after each update; the ratio is the median over repetitions of an update against its own two
copies, so that both meet the same machine, and "best" the smallest of these ratios: other programs cost an update more than a
copy, since it keeps two cores busy. The first repetition touches the memory and does not count. An update ends when the server
has the weights, has dropped its caches and says which version it serves. The last table shows how an update's time grows: what
it costs at any size, and each further GB, in seconds and in copies.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from octopus_mcore.config.rollout import SGLangConfig
from octopus_mcore.data.digits.checkpoint import create_checkpoint
from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.models.weight_stream import WeightItem
from octopus_mcore.rollout.served import ServedEngine
from octopus_mcore.rollout.sync import build_transport
from octopus_mcore.runtime.world import local_device

IN_BUCKETS = {"ipc": True, "collective": True, "disk": False}
"""All transports, and whether they send buckets, whose size then matters."""


@dataclass
class Times:
    """Seconds of updates, and of the copies beside them."""

    updates: list[float] = field(default_factory=list)
    copies: list[float] = field(default_factory=list)

    def typical(self) -> tuple[float, float]:
        """Seconds of an update and of a copy."""
        return statistics.median(self.updates), statistics.median(self.copies)

    def ratios(self) -> tuple[float, float]:
        """Of an update to a copy: typical and best."""
        ratios = [update / copy for update, copy in zip(self.updates, self.copies, strict=True)]
        return statistics.median(ratios), min(ratios)


class Copy:
    """One plain copy of all tensors on their device."""

    def __init__(self, tensors: dict[str, torch.Tensor], device: torch.device) -> None:
        self._pairs = [(torch.zeros_like(tensor), tensor) for tensor in tensors.values()]
        self._device = device

    def seconds(self) -> float:
        self._synchronize()
        started = time.perf_counter()
        for target, tensor in self._pairs:
            target.copy_(tensor)
        self._synchronize()
        return time.perf_counter() - started

    def _synchronize(self) -> None:
        torch.get_device_module(self._device).synchronize()


def choices(options: argparse.Namespace) -> Iterator[tuple[str, int | None]]:
    """Transports and bucket sizes in MB."""
    for transport in options.transports:
        yield from ((transport, bucket) for bucket in (options.buckets if IN_BUCKETS[transport] else [None]))


def measure(folder: Path, scratch: Path, options: argparse.Namespace) -> tuple[int, dict[tuple[str, int | None], Times]]:
    """Bytes of the model, and times by transport and bucket size."""
    device, source = local_device(), HFFolder(folder)
    dtype = getattr(torch, options.dtype)
    tensors = {name: source.tensor(name).to(device, dtype) for name in source.names()}
    copy = Copy(tensors, device)
    config = SGLangConfig(python=options.python, tensor=options.tensor, max_total_tokens=4096)
    engine = ServedEngine(config, str(folder), {}, dtype=options.dtype, device=device, deterministic=False, folder=scratch)
    times: dict[tuple[str, int | None], Times] = defaultdict(Times)
    with closing(engine):
        engine._transport.close()
        version = 0
        for name, bucket in choices(options):
            chosen = config.model_copy(update={"transport": name, "sync_bucket_mb": bucket})
            with closing(build_transport(chosen, scratch, str(folder), device)) as engine._transport:
                for repetition in range(options.repetitions + 1):
                    before, version = copy.seconds(), version + 1
                    stream = iter([[WeightItem(key, tensor)] for key, tensor in tensors.items()])
                    update = engine.update_weights(stream, version).seconds
                    if repetition:
                        times[name, bucket].updates.append(update)
                        times[name, bucket].copies.append((before + copy.seconds()) / 2)
    return sum(tensor.nbytes for tensor in tensors.values()), times


def print_growth(found: dict[int, dict[tuple[str, int | None], Times]]) -> None:
    """Fits a line through each transport's times over the sizes."""
    print("\n transport  bucket MB  s at any size  s per GB  copies per GB")
    sizes = np.array(list(found)) / 2**30
    for transport, bucket in next(iter(found.values())):
        rows = [times[transport, bucket].typical() for times in found.values()]
        slope, start = np.polyfit(sizes, [update for update, _ in rows], 1)
        copy = np.polyfit(sizes, [copy for _, copy in rows], 1)[0]
        print(f"{transport:>10} {bucket or '-':>10} {start:14.3f} {slope:9.3f} {slope / copy:14.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", default=".venv-sglang/bin/python", help="Python of the engine's environment")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 8, 17], help="decoder layers of about 30 MB each")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--transports", nargs="+", default=list(IN_BUCKETS), choices=list(IN_BUCKETS))
    parser.add_argument("--buckets", type=int, nargs="+", default=[64, 256, 512], help="bucket sizes in MB")
    parser.add_argument("--tensor", type=int, default=1, help="tensor-parallel size of the server")
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("      MB  transport  bucket MB        s    GiB/s   copy s   ratio    best")
    found: dict[int, dict[tuple[str, int | None], Times]] = {}
    for layers in options.layers:
        with tempfile.TemporaryDirectory() as scratch:
            heads = options.hidden // 64
            folder = create_checkpoint(
                Path(scratch) / "model", layers=layers, hidden=options.hidden, heads=heads, kv_heads=heads
            )
            size, found_here = measure(folder, Path(scratch), options)
        found[size] = found_here
        for (transport, bucket), times in found_here.items():
            (seconds, copy), (ratio, best) = times.typical(), times.ratios()
            print(
                f"{size / 2**20:8.0f} {transport:>10} {bucket or '-':>10} {seconds:8.3f} {size / seconds / 2**30:8.2f} "
                f"{copy:8.3f} {ratio:7.1f} {best:7.1f}",
                flush=True,
            )
    if len(found) > 1:
        print_growth(found)


if __name__ == "__main__":
    main()
