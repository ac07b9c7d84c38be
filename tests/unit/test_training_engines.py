"""Engines are started for runs that generate, and for no others; their servers on the devices that are theirs."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from octopus_mcore.config.rollout import SGLangConfig
from octopus_mcore.config.schema import Config
from octopus_mcore.rollout.sglang_launch import launch_command
from octopus_mcore.training.engines import Member, build_engine, build_seat, server_devices

SFT = {"kind": "sft", "source": {"target": "none:none"}, "steps": 1, "batch_size": 1}
REPLAYED = {"kind": "rl", "steps": 1, "prompts_per_step": 1, "rollout": {"replay": "elsewhere"}}
SAMPLED = {"kind": "rl", "steps": 1, "prompts_per_step": 1}
SETS = {"sets": {"v": {"source": {"target": "none:none"}, "size": 1}}}


def seat_of(folder: Path, phases: dict, evaluation: dict):
    """The only rank's seat in a run of SGLang servers, whose environment is missing."""
    rollout = {"engine": "sglang", "sglang": {"python": str(folder / "missing"), "colocated": False}}
    config = Config.model_validate(
        {
            "run": {"name": "test"},
            "model": {"path": str(folder)},
            "data": {"train": {"target": "none:none"}},
            "rollout": rollout,
            "eval": evaluation,
            "phases": phases,
        }
    )
    policy = SimpleNamespace(residence=SimpleNamespace(away=frozenset()))
    world = SimpleNamespace(
        is_replica_leader=True, device=torch.device("cpu"), rank=0, data_rank=0, all_gather=lambda value: [value]
    )
    progress = SimpleNamespace(activity=lambda text: None, note=lambda text: None)
    with ExitStack() as stack:
        return build_seat(config, policy, world, {}, folder / "engines", progress, stack)


def test_a_run_that_samples_nothing_needs_no_servers(tmp_path: Path) -> None:
    seat = seat_of(tmp_path, {"sft": SFT, "again": REPLAYED}, {})
    seat.sync()
    seat.make_room()
    assert seat.engine is None and seat.losses() == {"engine/lost": 0.0, "engine/restarts": 0.0}


@pytest.mark.parametrize(("phases", "evaluation"), [({"sft": SFT}, SETS), ({"again": REPLAYED, "rl": SAMPLED}, {})])
def test_evaluations_and_rollouts_need_them(tmp_path: Path, phases: dict, evaluation: dict, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("octopus_mcore.training.engines.build_engine", lambda *arguments: asked.append(arguments))
    seat_of(tmp_path, phases, evaluation)
    assert len(asked) == 1


# Two nodes of four GPUs, PP2 × DP4: stages of a replica lie four ranks apart in the world, so two replicas share a node.
MEMBERS = [
    Member(f"node{node}", 2 * node + replica, leads=stage == 0, device=f"GPU-{node}{stage}{replica}")
    for node in range(2)
    for stage in range(2)
    for replica in range(2)
]
LEADERS = [member for member in MEMBERS if member.leads]


def test_servers_use_the_devices_of_their_replicas_ranks() -> None:
    """Not the devices behind the leader's: those are other replicas'."""
    found = [server_devices(SGLangConfig(tensor=2), MEMBERS, leader) for leader in LEADERS]
    assert found == [["GPU-000", "GPU-010"], ["GPU-001", "GPU-011"], ["GPU-100", "GPU-110"], ["GPU-101", "GPU-111"]]
    assert server_devices(SGLangConfig(), MEMBERS, LEADERS[1]) == ["GPU-001"]


def test_devices_of_a_node_are_dealt_out_to_its_replicas() -> None:
    config = SGLangConfig(engines=2, devices=["4", "5", "6", "7"])
    assert [server_devices(config, MEMBERS, leader) for leader in LEADERS] == [["4", "5"], ["6", "7"]] * 2
    assert not config.shares_devices


def test_too_few_devices_are_named() -> None:
    with pytest.raises(ValueError, match=r"engines=2 × rollout\.sglang\.tensor=2 need 4 GPUs for replica 1 on node0.*have 2"):
        server_devices(SGLangConfig(engines=2, tensor=2), MEMBERS, LEADERS[1])
    with pytest.raises(ValueError, match=r"rollout\.sglang\.devices leaves 1"):
        server_devices(SGLangConfig(tensor=2, devices=["1", "2", "3"]), MEMBERS, LEADERS[1])


def test_devices_without_names_and_servers_elsewhere_need_no_dealing() -> None:
    assert server_devices(SGLangConfig(engines=3), [Member("laptop", 0, True, None)], Member("laptop", 0, True, None)) == []
    assert server_devices(SGLangConfig(urls=["http://a:1"]), MEMBERS, LEADERS[0]) == []


def test_a_server_sees_its_own_devices_and_gives_their_memory_back_only_where_it_shares_them() -> None:
    command, environment = launch_command(SGLangConfig(tensor=2), "model", "bfloat16", 1, "cuda", ["GPU-a", "GPU-b"], False)
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b" and "--enable-memory-saver" in command
    command, environment = launch_command(SGLangConfig(colocated=False), "model", "bfloat16", 1, "cuda", [], False)
    assert "CUDA_VISIBLE_DEVICES" not in environment and "--enable-memory-saver" not in command


def test_replicas_and_runs_that_name_one_folder_for_weights_do_not_share_it(tmp_path: Path, monkeypatch) -> None:
    folders = []

    def engine(config: SGLangConfig, *arguments: object, **options: object) -> SimpleNamespace:
        folders.append(config.weights_folder)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr("octopus_mcore.training.engines.ServedEngine", engine)
    for run in ("one", "two"):
        for replica in (0, 1):
            rollout = {"engine": "sglang", "sglang": {"weights_folder": "/shared"}}
            config = SimpleNamespace(
                rollout=Config.model_fields["rollout"].annotation.model_validate(rollout),
                run=SimpleNamespace(name=run),
                model=SimpleNamespace(dtype="float32"),
            )
            with ExitStack() as stack:
                build_engine(config, Path("model"), {}, torch.device("cpu"), tmp_path / run / f"replica-{replica}", stack)
    assert len(set(folders)) == 4 and all(folder.startswith("/shared/") for folder in folders)
