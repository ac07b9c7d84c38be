"""Distributed checkpoints: Megatron's format for weights and optimizer, one JSON file for everything small that resumes.

A folder without `state.json` is unfinished and is never resumed from: that file is written last. Saving and loading are
collective; a checkpoint loads into any layout (`fully_reshardable`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing, parallel_state

from octopus_mcore.policy.optimizer_state import allocate_state, load_state
from octopus_mcore.policy.policy import Policy
from octopus_mcore.policy.residence import Part
from octopus_mcore.runtime.world import World

STATE_FILE = "state.json"


def save_checkpoint(path: Path, policy: Policy, state: Mapping[str, Any], world: World) -> None:
    """Writes weights, optimizer state and `state` (JSON values) to the folder `path`, replacing an unfinished one."""
    policy.residence.require(Part.PARAMETERS, Part.OPTIMIZER)
    if world.is_main:
        if path.exists():
            remove_checkpoint(path)
        path.mkdir(parents=True)
    world.barrier()
    dist_checkpointing.save(_sharded(policy, loading=False), str(path))
    world.barrier()
    if world.is_main:
        _write_state(path, {"version": policy.version, **state})
    world.barrier()


def load_checkpoint(path: Path, policy: Policy, with_optimizer: bool) -> dict[str, Any]:
    """Restores weights and version, with `with_optimizer` the optimizer too (it must be of the phase that saved it);
    returns `state`.

    Raises:
        FileNotFoundError: the checkpoint is unfinished or absent.
    """
    state = read_state(path)
    policy.residence.require(Part.PARAMETERS, Part.OPTIMIZER)
    if with_optimizer:
        allocate_state(policy.optimizer)
        loaded = dist_checkpointing.load(_sharded(policy, loading=True), str(path))
        _load_model(policy, loaded["model"])
        load_state(policy.optimizer, loaded["optimizer"])
    else:
        loaded = dist_checkpointing.load({"model": _model_state(policy)}, str(path))
        _load_model(policy, loaded["model"])
        if policy.optimizer is not None:
            policy.optimizer.reload_model_params()
    policy.version = state["version"]
    return state


def read_state(path: Path) -> dict[str, Any]:
    """The JSON part of a finished checkpoint. Raises FileNotFoundError for any other folder."""
    file = path / STATE_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{path} is no finished checkpoint: it has no {STATE_FILE}")
    return json.loads(file.read_text())


def is_finished(path: Path) -> bool:
    """Whether the folder is a checkpoint that can be resumed from."""
    return (path / STATE_FILE).is_file()


def finished_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints in a folder of them, oldest first; none where there is no such folder."""
    found = (path for path in folder.iterdir() if is_finished(path)) if folder.is_dir() else ()
    return sorted(found, key=lambda path: (len(path.name), path.name))


def remove_checkpoint(path: Path) -> None:
    """Deletes a checkpoint, finished or not. `state.json` goes first, so that a half deleted one does not look finished."""
    (path / STATE_FILE).unlink(missing_ok=True)
    shutil.rmtree(path)


def _sharded(policy: Policy, loading: bool) -> dict[str, Any]:
    model = _model_state(policy)
    optimizer = policy.optimizer.sharded_state_dict(
        {"model": model},
        is_loading=loading,
        metadata={
            "distrib_optim_sharding_type": "fully_reshardable",
            "distrib_optim_fully_reshardable_mem_efficient": False,
            "dp_cp_group": _replicas(),
        },
    )
    return {"model": model, "optimizer": optimizer}


def _model_state(policy: Policy) -> dict[str, Any]:
    """By virtual stage; tensors are known by names of the whole model, so another layout's stages find them."""
    return {
        f"stage{number}": chunk.sharded_state_dict(metadata={"dp_cp_group": _replicas()})
        for number, chunk in enumerate(policy.main.chunks)
    }


def _load_model(policy: Policy, state: Mapping[str, Any]) -> None:
    for number, chunk in enumerate(policy.main.chunks):
        chunk.load_state_dict(state[f"stage{number}"])


def _replicas() -> Any:
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def _write_state(path: Path, state: Mapping[str, Any]) -> None:
    draft = path / f"{STATE_FILE}.partial"
    with draft.open("w") as stream:
        json.dump(state, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    draft.rename(path / STATE_FILE)
