"""Servers that never come up, or are not what was asked for: each is named, with what it said last."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from octopus_mcore.rollout.engine import EngineError, Phase
from octopus_mcore.rollout.served import ServedEngine
from octopus_mcore.rollout.sglang import SUPPORTED_VERSION
from tests.engines.conftest import serving
from tests.engines.wire import Wire


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


def test_another_version_is_refused_unless_it_is_asked_for(pair: ServedEngine, wire: Wire, tied: Path, tmp_path: Path):
    urls = [pair._servers[0]._url]
    for server_says, options in (("0.5.22", {}), ("0.5.22", {"allow_untested": True}), (SUPPORTED_VERSION, {})):
        wire.alter(pair._servers[0], "/server_info", lambda info, version=server_says: info | {"version": version})
        if server_says == SUPPORTED_VERSION or options:
            with serving("", tied, tmp_path, urls=urls, **options):
                continue
        with pytest.raises(EngineError, match=r"SGLang 0\.5\.22 is not supported, 0\.5\.23 is.*allow_untested"):
            with serving("", tied, tmp_path, urls=urls):
                pass


def test_a_server_of_another_size_is_refused(pair: ServedEngine, tied: Path, tmp_path: Path):
    with pytest.raises(EngineError, match=r"serves with tensor size 1, rollout\.sglang\.tensor=2"):
        with serving("", tied, tmp_path, urls=[pair._servers[0]._url], tensor=2):
            pass
