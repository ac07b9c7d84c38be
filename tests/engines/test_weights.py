"""After a sync, every layout of the engine computes with the new weights and nothing else, whatever the transport."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from octopus_mcore.config.rollout import SGLangConfig
from octopus_mcore.data.processor import Processor
from octopus_mcore.models.weight_stream import WeightItem
from octopus_mcore.rollout.engine import EngineError, Phase
from octopus_mcore.rollout.served import ServedEngine
from octopus_mcore.rollout.sync import build_transport
from octopus_mcore.runtime.world import local_device
from tests.engines.reference import largest_difference, random_weights, reference_log_probs, requests, stream_of

TRANSPORTS = ("ipc", "collective", "disk")


def use(engine: ServedEngine, transport: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Processor:
    """Lets the engine receive by this transport; a processor whose images it sees."""
    processor = Processor.from_pretrained(folder, "", 500)
    config = SGLangConfig(transport=transport, sync_bucket_mb=1)
    monkeypatch.setattr(engine, "_images", processor.images)
    engine._transport.close()
    monkeypatch.setattr(engine, "_transport", build_transport(config, tmp_path, str(folder), local_device()))
    return processor


def check_sync(engine: ServedEngine, folder: Path, processor: Processor) -> list[dict[str, str]]:
    """Syncs two sets of weights in turn; responses must be those of Transformers with the same weights, on the same images."""
    sums = []
    for version, seed in enumerate((1, 2, 1), start=5):
        weights = random_weights(folder, seed)
        report = engine.update_weights(stream_of(weights), version)
        assert (report.tensors, report.bytes, report.version) == (
            len(weights),
            sum(t.nbytes for t in weights.values()),
            version,
        )
        asked = requests(processor, temperature=0.0)
        answers = asyncio.run(engine.generate(asked))
        assert {answer.version for answer in answers} == {version}
        expected = reference_log_probs(folder, weights, processor.images, asked, answers)
        assert largest_difference(expected, answers) <= 1e-4
        sums.append(engine._servers[0].checksums())
    assert sums[0] == sums[2] != sums[1]
    return sums


def test_every_transport_brings_the_same_bytes_to_a_tied_model(
    shared_engine: ServedEngine, tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sums = [
        check_sync(shared_engine, tied, use(shared_engine, transport, tied, tmp_path, monkeypatch)) for transport in TRANSPORTS
    ]
    assert all(one == sums[0] for one in sums)


def test_every_transport_brings_the_same_bytes_to_an_untied_model_on_two_ranks(
    split_engine: ServedEngine, untied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sums = [
        check_sync(split_engine, untied, use(split_engine, transport, untied, tmp_path, monkeypatch))
        for transport in TRANSPORTS
    ]
    assert all(one == sums[0] for one in sums)


def test_a_changed_vision_tower_is_seen_on_an_image_that_was_encoded_before(
    engine: ServedEngine, processor: Processor, tied: Path
):
    asked = requests(processor, temperature=0.0)
    before = asyncio.run(engine.generate(asked))
    old, new = random_weights(tied, 1), random_weights(tied, 2)
    mixed = {name: (new if ".visual." in name else old)[name] for name in old}
    engine.update_weights(stream_of(mixed), version=2)
    after = asyncio.run(engine.generate(asked))
    expected = reference_log_probs(tied, mixed, processor.images, asked, after)
    assert largest_difference(expected, after) <= 1e-4
    assert after[0].token_ids == before[0].token_ids, "a prompt without an image does not change"
    assert abs(after[1].log_probs[0] - before[1].log_probs[0]) > 1e-3, "the tower must matter for this test to say anything"


def test_the_check_passes_where_every_byte_arrives_and_names_the_tensor_where_one_does_not(
    split_engine: ServedEngine, untied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    processor = use(split_engine, "ipc", untied, tmp_path, monkeypatch)
    weights = random_weights(untied, 3)
    split_engine.expect_weights(stream_of(weights), version=3)
    with pytest.raises(RuntimeError, match="no weights"):
        asyncio.run(split_engine.generate(requests(processor)))
    split_engine.update_weights(stream_of(weights), version=3)
    assert asyncio.run(split_engine.generate(requests(processor)))[0].version == 3

    changed = dict(weights)
    name = "model.language_model.layers.1.mlp.down_proj.weight"
    changed[name] = weights[name].clone()
    changed[name][0, -1] += 1e-3  # a byte of the second rank's half
    split_engine.expect_weights(stream_of(weights), version=4)
    with pytest.raises(EngineError, match=r"1 of \d+ tensors.*rank 1: .*layers\.1\.mlp\.down_proj"):
        split_engine.update_weights(stream_of(changed), version=4)
    assert split_engine.health() == "no weights"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_incomplete_stream_leaves_the_engine_unusable_until_the_next_update(
    engine: ServedEngine, tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str
):
    processor = use(engine, transport, tied, tmp_path, monkeypatch)
    weights = random_weights(tied, 2)
    lacking = {name: tensor for name, tensor in weights.items() if name != "model.language_model.norm.weight"}
    with pytest.raises(ValueError, match=r"ended without model\.language_model\.norm\.weight"):
        engine.update_weights(stream_of(lacking), version=2)
    with pytest.raises(RuntimeError, match="no weights"):
        asyncio.run(engine.generate(requests(processor)))
    engine.update_weights(stream_of(weights), version=3)
    assert asyncio.run(engine.generate(requests(processor)))[0].version == 3


def test_the_stream_is_read_to_its_end_when_a_tensor_is_refused(engine: ServedEngine):
    read = []

    def stream():
        for number in range(3):
            read.append(number)
            yield [WeightItem("unknown", torch.zeros(1))]

    with pytest.raises(ValueError, match="does not have"):
        engine.update_weights(stream(), version=2)
    assert read == [0, 1, 2]
    assert engine.health() == "no weights"


def test_a_refusal_of_the_server_is_an_error_of_the_sync(engine: ServedEngine, tmp_path: Path):
    with pytest.raises(EngineError, match="update_weights_from_disk") as caught:
        engine._servers[0].load_folder(tmp_path / "nowhere", version=9)
    assert caught.value.phase is Phase.SYNC


def test_a_released_engine_generates_only_with_new_weights_and_its_caches(
    engine: ServedEngine, processor: Processor, tied: Path
):
    engine.release_memory()
    engine.release_memory()
    with pytest.raises(RuntimeError, match="memory released"):
        asyncio.run(engine.generate(requests(processor)))
    engine.update_weights(stream_of(random_weights(tied, 1)), version=3)
    with pytest.raises(RuntimeError, match="memory released"):
        asyncio.run(engine.generate(requests(processor)))
    engine.resume_memory()
    assert asyncio.run(engine.generate(requests(processor)))[0].version == 3


def test_a_broken_update_claims_no_version_and_the_next_one_begins_afresh(engine: ServedEngine, tied: Path):
    """Also where a trainer died in the middle of one: SGLang refuses to open a second update."""
    server, weights = engine._servers[0], random_weights(tied, 2)
    server.begin_update()
    lacking = {name: tensor for name, tensor in weights.items() if name != "model.language_model.norm.weight"}
    with pytest.raises(ValueError, match="ended without"):
        engine.update_weights(stream_of(lacking), version=7)
    server.check_version(1)
    engine.update_weights(stream_of(weights), version=8)
    server.check_version(8)
