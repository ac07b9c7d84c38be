"""Distributed checkpoints: Megatron's format for weights and optimizer, one JSON file for everything small that resumes, and
what makes the weights a Hugging Face folder again (see `models.checkpoint_folder`).

A folder without `state.json` is unfinished and is never resumed from: that file is written last. Saving and loading are
collective; a checkpoint loads into any layout (`fully_reshardable`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing

from octopus_mcore.models.checkpoint_folder import HF_FOLDER, STATE_FILE, is_finished, read_state, write_state
from octopus_mcore.models.hf_folder import copy_companions
from octopus_mcore.policy.model_state import load_model_state, model_state, present, replicas, set_model_state, widen
from octopus_mcore.policy.optimizer_state import allocate_state, begin_state, load_state
from octopus_mcore.policy.policy import Policy
from octopus_mcore.policy.residence import Part
from octopus_mcore.runtime.world import World


def save_checkpoint(
    path: Path,
    policy: Policy,
    state: Mapping[str, Any],
    world: World,
    write_more: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Writes weights, optimizer state and `state` (JSON values) to the folder `path`, replacing an unfinished one.
    `write_more` adds what else belongs there; it is called on the main rank, before the checkpoint is finished."""
    policy.residence.require(Part.PARAMETERS, Part.OPTIMIZER)
    if world.is_main:
        if path.exists():
            remove_checkpoint(path)
        path.mkdir(parents=True)
    world.barrier()
    begin_state(policy.optimizer)
    saved = _sharded(policy, loading=False)
    widen(saved["model"])
    dist_checkpointing.save(saved, str(path))
    world.barrier()
    if world.is_main:
        (path / HF_FOLDER).mkdir()
        copy_companions(policy.hf_folder, path / HF_FOLDER)
        write_more(path)
        write_state(path, {"version": policy.version, **state})
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
        wanted = _sharded(policy, loading=True)
        loaded = dist_checkpointing.load({**wanted, "model": present(wanted["model"], path)}, str(path))
        set_model_state(policy.main.chunks, loaded["model"])
        load_state(policy.optimizer, loaded["optimizer"])
    else:
        load_model_state(policy.main.chunks, path)
        if policy.optimizer is not None:
            policy.optimizer.reload_model_params()
    policy.version = state["version"]
    return state


def finished_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints in a folder of them, oldest first; none where there is no such folder."""
    found = (path for path in folder.iterdir() if is_finished(path)) if folder.is_dir() else ()
    return sorted(found, key=lambda path: (len(path.name), path.name))


def remove_checkpoint(path: Path) -> None:
    """Deletes a checkpoint, finished or not. `state.json` goes first, so that a half deleted one does not look finished."""
    (path / STATE_FILE).unlink(missing_ok=True)
    shutil.rmtree(path)


def _sharded(policy: Policy, loading: bool) -> dict[str, Any]:
    model = model_state(policy.main.chunks)
    optimizer = policy.optimizer.sharded_state_dict(
        {"model": model},
        is_loading=loading,
        metadata={
            "distrib_optim_sharding_type": "fully_reshardable",
            "distrib_optim_fully_reshardable_mem_efficient": False,
            "dp_cp_group": replicas(),
        },
    )
    return {"model": model, "optimizer": optimizer}
