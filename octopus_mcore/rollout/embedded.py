"""The embedded engine: the Hugging Face model inside the trainer's process, one per data-parallel replica, fed by the
weight stream.

It shares nothing with the policy but tensors that come through `update_weights`, so it also serves as an independent
reference for the Megatron model, and replacing it with a server engine changes nothing in the loop.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from os import PathLike

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.initialization import no_init_weights

from octopus_mcore.models.families import family_of, load_shape
from octopus_mcore.models.hf_folder import checked_items
from octopus_mcore.models.weight_stream import WeightStream
from octopus_mcore.rollout.engine import (
    UNATTENDED,
    Attendant,
    Generation,
    GenerationRequest,
    ImageLookup,
    Losses,
    SamplingParams,
    SyncReport,
)
from octopus_mcore.rollout.hf_decoder import ImageFeatures, Prefix, image_features, prefill
from octopus_mcore.rollout.sampling import sample, uniforms

_COMPACT_BELOW = 0.85
"""Finished rows leave the batch when fewer than this share of its rows still runs; leaving costs a copy of the cache."""


class EmbeddedEngine:
    """A `RolloutEngine` (see `rollout/engine.py`) for checkpoints of every family.

    Memory: the weights, the cache of at most `max_batch_size` responses, and the features of the images of one batch.
    Results depend on how requests are batched only through the rounding of sums; the random numbers do not.
    """

    def __init__(
        self,
        hf_config_path: str | PathLike,
        images: ImageLookup,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_batch_size: int = 512,
    ) -> None:
        """Builds the empty model. `images` is read during `generate`, so it may grow between calls.

        Raises:
            FileNotFoundError, ValueError: the folder holds no configuration of a known family.
        """
        self._config = load_shape(hf_config_path).hf
        self._family = family_of(self._config)
        self._images = images
        self._device = torch.device(device)
        self._dtype = dtype
        self._max_batch_size = max_batch_size
        self._version: int | None = None
        self._model: PreTrainedModel | None = None
        self._build()

    def resume_memory(self) -> None:
        """Nothing: a cache lives no longer than its generation."""

    def _build(self) -> None:
        """Takes the memory of the weights."""
        kind = AutoModelForImageTextToText if self._family.vision_tower else AutoModelForCausalLM
        with torch.device(self._device), no_init_weights():
            model = kind.from_config(self._config, dtype=self._dtype, attn_implementation="sdpa")
        model.tie_weights()
        self._model = model.eval().requires_grad_(False)

    @property
    def version(self) -> int | None:
        """The version of the weights; None where there are none."""
        return self._version

    def recover(self) -> None:
        """It lives and dies with the trainer: nothing is ever to be replaced."""

    def losses(self) -> Losses:
        """None, ever."""
        return Losses()

    def release_memory(self) -> None:
        """Frees the weights."""
        self._model = None
        self._version = None

    def health(self) -> str:
        """Says "ready", "no weights", or that the memory is released."""
        if self._model is None:
            return "memory released"
        return "no weights" if self._version is None else "ready"

    @torch.no_grad()
    def update_weights(self, stream: WeightStream, version: int) -> SyncReport:
        """Replaces all weights. The stream is iterated to its end even when a tensor is refused, because iterating is
        collective.

        Raises:
            ValueError: a tensor is unknown, comes twice, has another shape, is quantised, or is missing at the end.
        """
        started, tensors, size = time.perf_counter(), 0, 0
        self._version = None
        try:
            if self._model is None:
                self._build()
            own = {self._family.file_name(name): tensor for name, tensor in self._model.state_dict().items()}
            for item in checked_items(
                stream, {name: tensor.shape for name, tensor in own.items()}, self._tied, "weight update"
            ):
                own[item.name].copy_(item.tensor)
                tensors, size = tensors + 1, size + item.tensor.nbytes
        finally:
            for _ in stream:
                pass
        self._version = version
        return SyncReport(tensors, size, time.perf_counter() - started, version)

    async def generate(self, requests: Sequence[GenerationRequest], attendant: Attendant = UNATTENDED) -> list[Generation]:
        """Answers in the order of the requests.

        Raises:
            RuntimeError: no complete weights are loaded, or they give log-probs that are not finite.
            ValueError: placeholders and images of a request disagree.
            KeyError: an image is not in the lookup.
        """
        if self._version is None:
            raise RuntimeError(f"the embedded engine cannot generate: {self.health()}")
        answers: list[Generation | None] = [None] * len(requests)
        features: dict[str, ImageFeatures] = {}
        chunks = list(_chunks(requests, self._max_batch_size))
        with torch.inference_mode():
            for number, chunk in enumerate(chunks):
                later = {ref.key for rest in chunks[number:] for index in rest for ref in requests[index].images}
                here = dict.fromkeys(ref.key for index in chunk for ref in requests[index].images)
                features = {key: kept for key, kept in features.items() if key in later}
                features |= image_features(self._model, self._images, [key for key in here if key not in features])
                for index, answer in zip(chunk, self._run([requests[index] for index in chunk], features), strict=True):
                    answers[index] = answer
                attendant.finished(sum(answer is not None for answer in answers), len(answers))
        return answers

    @property
    def _tied(self) -> bool:
        return bool(self._config.tie_word_embeddings)

    def _run(self, requests: Sequence[GenerationRequest], features: dict[str, ImageFeatures]) -> list[Generation]:
        """Generates for requests of equal sampling parameters as one batch."""
        params = requests[0].sampling
        prefixes: dict[Prefix, int] = {}
        owner = [prefixes.setdefault(Prefix(request.token_ids, request.images), len(prefixes)) for request in requests]
        rows, logits = prefill(self._model, list(prefixes), features)
        owners = torch.tensor(owner, device=self._device)
        rows.select(owners)
        logits = logits[owners]

        record = _Record(requests, params, self._device)
        while True:
            tokens, log_probs = sample(logits, params, record.uniforms())
            keep = record.append(tokens, log_probs)
            if record.done:
                return record.generations(self._version)
            if keep is not None:
                rows.select(keep)
                tokens = tokens[keep]
            logits = rows.step(tokens)


class _Record:
    """What has been sampled for each request of a batch, and which request each running row belongs to.

    Finished rows stay in the batch, unrecorded, until `append` says which rows to keep.
    """

    def __init__(self, requests: Sequence[GenerationRequest], params: SamplingParams, device: torch.device) -> None:
        self._params = params
        self._stop = torch.tensor(params.stop_token_ids, dtype=torch.long, device=device)
        self._seeds = np.array([request.seed & (2**64 - 1) for request in requests], dtype=np.uint64)
        self._request = np.arange(len(requests))
        self._running = np.ones(len(requests), dtype=bool)
        self._length = np.zeros(len(requests), dtype=np.int64)
        self._stopped = np.zeros(len(requests), dtype=bool)
        self._columns: list[tuple[np.ndarray, torch.Tensor, torch.Tensor]] = []

    @property
    def done(self) -> bool:
        """Whether every request has its answer."""
        return not self._running.any() or len(self._columns) == self._params.max_new_tokens

    def uniforms(self) -> np.ndarray:
        """Uniform numbers of the rows for the token that comes now."""
        return uniforms(self._seeds[self._request], len(self._columns))

    def append(self, tokens: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor | None:
        """Records one token a row. Returns the rows to keep, if it is worth while to drop the finished ones."""
        self._columns.append((self._request, tokens, log_probs))
        self._length[self._request[self._running]] += 1
        stopped = self._running & torch.isin(tokens, self._stop).cpu().numpy()
        self._stopped[self._request[stopped]] = True
        self._running = self._running & ~stopped
        if self._running.mean() >= _COMPACT_BELOW:
            return None
        keep = np.flatnonzero(self._running)
        self._request, self._running = self._request[keep], self._running[keep]
        return torch.from_numpy(keep).to(tokens.device)

    def generations(self, version: int) -> list[Generation]:
        """The answers in the order of the requests.

        Raises:
            RuntimeError: a sampled token's log-prob is not finite.
        """
        token_ids = np.zeros((len(self._length), len(self._columns)), dtype=np.int64)
        log_probs = np.zeros(token_ids.shape, dtype=np.float32)
        for column, (requests, tokens, values) in enumerate(self._columns):
            token_ids[requests, column] = tokens.cpu().numpy()
            log_probs[requests, column] = values.cpu().numpy()
        sampled = np.arange(len(self._columns)) < self._length[:, None]
        if not np.isfinite(log_probs[sampled]).all():
            raise RuntimeError(
                f"the weights of version {version} gave log-probs that are not finite: they have diverged, or the sampling "
                f"temperature ({self._params.temperature:g}) is too small"
            )
        return [
            Generation(
                token_ids=tuple(token_ids[index, :length].tolist()),
                log_probs=log_probs[index, :length].copy(),
                finish_reason="stop" if self._stopped[index] else "length",
                version=version,
            )
            for index, length in enumerate(self._length.tolist())
        ]


def _chunks(requests: Sequence[GenerationRequest], size: int) -> Iterator[list[int]]:
    """Indices of requests that are decoded together: equal sampling parameters, prefixes of similar length, equal
    ones adjacent."""
    first: dict[tuple, int] = {}
    by_params: dict[SamplingParams, list[int]] = {}
    for index, request in enumerate(requests):
        first.setdefault((request.token_ids, request.images), index)
        by_params.setdefault(request.sampling, []).append(index)
    for indices in by_params.values():
        indices.sort(key=lambda i: (len(requests[i].token_ids), first[requests[i].token_ids, requests[i].images], i))
        yield from (indices[start : start + size] for start in range(0, len(indices), size))
