"""Real SGLang servers. Starting one takes 10 s on a quiet machine and a minute on a busy one, so tests share them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from octopus_mcore.config.rollout import SGLangConfig
from octopus_mcore.data.processor import Processor
from octopus_mcore.rollout.engine import GenerationRequest
from octopus_mcore.rollout.served import ServedEngine
from octopus_mcore.runtime.world import local_device
from tests.engines.faults import give
from tests.engines.reference import checkpoint, random_weights, requests, stream_of
from tests.engines.wire import Wire, tapped

LONG = 150
"""New tokens of a response that takes seconds. Not more: other batches round otherwise, and of some 10⁶ draws one differs."""


@pytest.fixture(scope="session")
def engine_python() -> str:
    """Python of the engine environment. Where `make test-engines` says that there is one, its absence is a failure."""
    named = os.environ.get("OCTOPUS_ENGINE_PYTHON")
    found = Path(named or ".venv-sglang/bin/python").absolute()
    if not found.is_file() and not named:
        pytest.skip("no engine environment: make test-engines sets it up")
    return str(found)


@contextmanager
def serving(python: str, folder: Path, logs: Path, deterministic: bool = False, **options: object) -> Iterator[ServedEngine]:
    """An engine for the checkpoint folder, without weights yet."""
    engine = ServedEngine(
        SGLangConfig(
            **{"python": python, "max_total_tokens": 16384, "timeout_seconds": 120, "sync_timeout_seconds": 120} | options
        ),
        str(folder),
        Processor.from_pretrained(folder, "", 500).images,
        dtype="float32",
        device=local_device(),
        deterministic=deterministic,
        folder=logs,
    )
    with closing(engine):
        yield engine


@pytest.fixture(scope="session")
def tied(digits_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose output matrix is its embedding."""
    return checkpoint(digits_checkpoint, tmp_path_factory.mktemp("engines") / "tied", tied=True, seed=1)


@pytest.fixture(scope="session")
def untied(digits_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with an output matrix of its own."""
    return checkpoint(digits_checkpoint, tmp_path_factory.mktemp("engines") / "untied", tied=False, seed=1)


@pytest.fixture(scope="session")
def shared_engine(engine_python: str, tied: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedEngine]:
    """One server of the tied checkpoint, for tests that leave it running."""
    with serving(engine_python, tied, tmp_path_factory.mktemp("shared engine"), sync_bucket_mb=1) as engine:
        yield engine


@pytest.fixture(scope="session")
def split_engine(engine_python: str, untied: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedEngine]:
    """One server of the untied checkpoint on two tensor-parallel ranks, for tests that leave it running."""
    with serving(engine_python, untied, tmp_path_factory.mktemp("split engine"), tensor=2, sync_bucket_mb=1) as engine:
        yield engine


@pytest.fixture(scope="session")
def shared_pair(engine_python: str, tied: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedEngine]:
    """Two deterministic servers of the tied checkpoint, which tests may end."""
    options = {"engines": 2, "sync_bucket_mb": 1, "max_restarts": 100}
    with serving(engine_python, tied, tmp_path_factory.mktemp("pair"), deterministic=True, **options) as engine:
        engine._images = Processor.from_pretrained(tied, "", 500).images
        yield engine


@pytest.fixture
def pair(shared_pair: ServedEngine, tied: Path) -> ServedEngine:
    """The two servers, both there, with weights of seed 1, version 1."""
    while any(place.version != 1 for place in shared_pair._places):
        shared_pair.recover()
        shared_pair.update_weights(stream_of(random_weights(tied, 1)), version=1)
    return shared_pair


@pytest.fixture
def pair_processor(shared_pair: ServedEngine, tied: Path) -> Processor:
    """A processor whose images the two servers see."""
    processor = Processor.from_pretrained(tied, "", 500)
    shared_pair._images = processor.images
    return processor


@pytest.fixture
def engine(shared_engine: ServedEngine, tied: Path) -> ServedEngine:
    """The shared engine with weights of seed 1, version 1."""
    shared_engine.update_weights(stream_of(random_weights(tied, 1)), version=1)
    return shared_engine


@pytest.fixture
def processor(shared_engine: ServedEngine, tied: Path, monkeypatch: pytest.MonkeyPatch) -> Processor:
    """A processor whose images the shared engine sees."""
    processor = Processor.from_pretrained(tied, "", 500)
    monkeypatch.setattr(shared_engine, "_images", processor.images)
    return processor


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """What lies between engines and servers."""
    return tapped(monkeypatch)


@pytest.fixture
def asked(pair_processor: Processor) -> list[GenerationRequest]:
    """Short requests and long ones, alternating; every one has its own seed."""
    return [
        replace(request, sampling=replace(request.sampling, max_new_tokens=4 if number % 2 else LONG), seed=number)
        for number, request in enumerate(requests(pair_processor, samples=4))
    ]


@pytest.fixture
def few(asked: list[GenerationRequest]) -> list[GenerationRequest]:
    """Short requests only."""
    return [replace(request, sampling=replace(request.sampling, max_new_tokens=6)) for request in asked[:8]]


@pytest.fixture
def outside(pair: ServedEngine, pair_processor: Processor, tied: Path, tmp_path: Path) -> Iterator[Callable[..., ServedEngine]]:
    """Makes an engine that was only told the URLs of the two servers; it has weights of seed 1, version 1."""
    with ExitStack() as stack:

        def make(**options: object) -> ServedEngine:
            urls = [server._url for server in pair._servers]
            options = {"urls": urls, "sync_bucket_mb": 1} | options
            engine = stack.enter_context(serving("", tied, tmp_path, deterministic=True, **options))
            engine._images = pair_processor.images
            give(engine, tied, 1)
            return engine

        yield make
    pair._forget_weights()  # other engines have been at its servers
