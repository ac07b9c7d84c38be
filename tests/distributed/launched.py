"""Functions that started ranks run; a module of its own, because a started process imports it."""

from __future__ import annotations

import os
import time
from pathlib import Path

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_NTASKS")


def sum_of_ranks(offset: int) -> dict[str, object]:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.tensor([dist.get_rank() + offset])
    dist.all_reduce(total)
    print(f"this is rank {dist.get_rank()}")
    dist.destroy_process_group()
    return {"sum": int(total), "rank": int(os.environ["RANK"]), "threads": os.environ["OMP_NUM_THREADS"], "pid": os.getpid()}


def fail_on_rank_one(kind: str, file: str) -> None:
    if os.environ["RANK"] == "1":
        if kind == "exit":
            os._exit(3)
        raise {"input": ValueError, "bug": KeyError}[kind]("the image-token count is 3, expected 4")
    time.sleep(60)
    Path(file).write_text("rank 0 was not ended")
