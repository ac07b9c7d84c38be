"""A server's process: what it inherits from the rank that starts it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from octopus_mcore.rollout.process import ServerProcess

LAUNCHED = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "elsewhere", "MASTER_PORT": "1"}
ELASTIC = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "run", "GROUP_RANK": "0", "ROLE_WORLD_SIZE": "2"}


def test_a_server_knows_nothing_of_the_launch_of_its_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """With torchrun's agent store in the environment, no rank of SGLang opens the store at which they meet: each would wait for
    another until its deadline."""
    for name, value in {**LAUNCHED, **ELASTIC, "KEPT": "yes"}.items():
        monkeypatch.setenv(name, value)
    said = "import json, os; print(json.dumps(dict(os.environ)))"
    process = ServerProcess("a server", [sys.executable, "-c", said], {"ADDED": "too"}, tmp_path / "log")
    until = time.monotonic() + 60
    while process.ended() is None and time.monotonic() < until:
        time.sleep(0.02)
    found = json.loads((tmp_path / "log").read_text())
    assert (found["KEPT"], found["ADDED"]) == ("yes", "too")
    assert not found.keys() & (LAUNCHED.keys() | ELASTIC.keys())
