"""Servers that never come up: each is named, with what it said last."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from octopus_mcore.rollout.engine import EngineError, Phase
from tests.engines.conftest import serving


def test_a_server_that_ends_at_once_is_named_with_its_last_words(tied: Path, tmp_path: Path):
    with pytest.raises(EngineError, match='(?s)phase "start".*exit code 1.*No module named') as caught:
        with serving(sys.executable, tied, tmp_path):
            pass
    assert caught.value.phase is Phase.START


def test_a_server_that_does_not_come_up_in_time_is_ended(engine_python: str, tied: Path, tmp_path: Path):
    started = time.monotonic()
    with pytest.raises(EngineError, match="no answer within 1 s"):
        with serving(engine_python, tied, tmp_path, start_timeout_seconds=1):
            pass
    assert time.monotonic() - started < 30


def test_a_missing_environment_is_named(tied: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"rollout\.sglang\.python"):
        with serving(str(tmp_path / "no" / "python"), tied, tmp_path):
            pass


def test_a_url_at_which_nothing_answers_is_named(tied: Path, tmp_path: Path):
    with pytest.raises(EngineError, match="http://127.0.0.1:9"):
        with serving("", tied, tmp_path, urls=["http://127.0.0.1:9"], start_timeout_seconds=1):
            pass
