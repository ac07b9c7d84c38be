"""Prefill and one-token steps of a Hugging Face model of any family for many rows at once.

The modules are Transformers' own; the loop over decoder layers is here because the wrappers around it cost more than
a small model's arithmetic, and because rows that share a prompt shall share its prefill. Rows are left-padded, so
every row writes its next token into the same column of the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from octopus_mcore.experience.types import ImageRef
from octopus_mcore.rollout.engine import ImageLookup

_GROWTH = 64
"""Columns by which a full cache grows."""


@dataclass(frozen=True)
class Prefix:
    """What stands before the first new token: ids and images; rows with equal prefixes share their prefill."""

    token_ids: tuple[int, ...]
    images: tuple[ImageRef, ...]


@dataclass(frozen=True)
class ImageFeatures:
    """One image as the decoder reads it: `levels` [1 + deepstack levels, tokens, hidden], embedding-level features first."""

    levels: torch.Tensor
    grid_thw: tuple[int, int, int]


class KeyValueCache:
    """Keys and values of all layers for a changing set of rows; quacks like a Transformers cache where attention
    calls `update`."""

    def __init__(self, layers: int) -> None:
        self._keys: list[torch.Tensor | None] = [None] * layers
        self._values: list[torch.Tensor | None] = [None] * layers
        self._lengths = [0] * layers

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends [rows, heads, new, dim] and returns views of everything so far."""
        start, end = self._lengths[layer], self._lengths[layer] + key.shape[2]
        self._keys[layer] = _write(self._keys[layer], key, start)
        self._values[layer] = _write(self._values[layer], value, start)
        self._lengths[layer] = end
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def select(self, rows: torch.Tensor) -> None:
        """Keeps these rows, in this order; a row may be taken several times."""
        for layer, length in enumerate(self._lengths):
            self._keys[layer] = _select(self._keys[layer], rows, length)
            self._values[layer] = _select(self._values[layer], rows, length)


def _write(store: torch.Tensor | None, new: torch.Tensor, start: int) -> torch.Tensor:
    end = start + new.shape[2]
    if store is None or end > store.shape[2]:
        grown = new.new_empty((*new.shape[:2], end + _GROWTH, new.shape[3]))
        if store is not None:
            grown[:, :, :start] = store[:, :, :start]
        store = grown
    store[:, :, start:end] = new
    return store


def _select(store: torch.Tensor, rows: torch.Tensor, length: int) -> torch.Tensor:
    selected = store.new_empty((len(rows), *store.shape[1:]))
    selected[:, :, :length] = store[:, :, :length].index_select(0, rows)
    return selected


class Decoding:
    """Rows under way: their cache, which of its columns are padding, and each row's next position. Made by `prefill`."""

    def __init__(self, model: PreTrainedModel, cache: KeyValueCache, valid: torch.Tensor, next_position: torch.Tensor) -> None:
        self._model = model
        self._cache = cache
        self._valid = None if bool(valid.all()) else valid
        self._next_position = next_position

    def select(self, rows: torch.Tensor) -> None:
        """Keeps these rows, in this order; a row may be taken several times."""
        self._cache.select(rows)
        self._next_position = self._next_position[rows]
        if self._valid is not None:
            self._valid = self._valid[rows]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Appends one token to each row (int64 [rows]); returns the logits behind it, [rows, vocabulary]."""
        hidden = _decoder(self._model).embed_tokens(tokens[:, None])
        position_ids = self._next_position[:, None]
        mask = None
        if self._valid is not None:
            self._valid = torch.nn.functional.pad(self._valid, (0, 1), value=True)
            mask = self._valid[:, None, None, :]
        hidden = _decode(self._model, hidden, position_ids, mask, self._cache)
        self._next_position = self._next_position + 1
        return self._model.lm_head(hidden[:, -1])


def prefill(
    model: PreTrainedModel, prefixes: Sequence[Prefix], features: Mapping[str, ImageFeatures]
) -> tuple[Decoding, torch.Tensor]:
    """Reads the prefixes; returns their decoding state and the logits behind each, [prefixes, vocabulary].

    Raises:
        ValueError: a prefix is empty, or its image placeholders are not where its images say.
    """
    device = model.device
    width = max(len(prefix.token_ids) for prefix in prefixes)
    token_ids = torch.zeros((len(prefixes), width), dtype=torch.long)
    valid = torch.zeros((len(prefixes), width), dtype=torch.bool)
    image_token = getattr(model.config, "image_token_id", None)
    for row, prefix in enumerate(prefixes):
        _check(prefix, image_token)
        token_ids[row, width - len(prefix.token_ids) :] = torch.tensor(prefix.token_ids)
        valid[row, width - len(prefix.token_ids) :] = True
    placed = valid & (token_ids == (-1 if image_token is None else image_token))
    images = [features[ref.key] for prefix in prefixes for ref in prefix.images]
    position_ids, next_position = _positions(model, token_ids, valid, placed, images)

    hidden = _decoder(model).embed_tokens(token_ids.to(device))
    visual = None
    if images:
        where, levels = placed.to(device), torch.cat([image.levels for image in images], dim=1)
        hidden[where] = levels[0].to(hidden.dtype)
        visual = where, levels[1:]
    mask = None if bool(valid.all()) else _prefill_mask(valid).to(device)
    cache = KeyValueCache(len(_decoder(model).layers))
    hidden = _decode(model, hidden, position_ids.to(device), mask, cache, visual)
    return Decoding(model, cache, valid.to(device), next_position.to(device)), model.lm_head(hidden[:, -1])


def image_features(model: PreTrainedModel, images: ImageLookup, keys: Sequence[str]) -> dict[str, ImageFeatures]:
    """Features of the images `keys`, by one pass of the vision tower."""
    if not keys:
        return {}
    found = [images[key] for key in keys]
    pixels = torch.cat([torch.from_numpy(image.pixel_values) for image in found]).to(model.device, model.dtype)
    grid_thw = torch.tensor([image.grid_thw for image in found], device=model.device)
    output = model.model.visual(pixels, grid_thw=grid_thw)
    levels = torch.stack([output.pooler_output, *getattr(output, "deepstack_features", ())])
    merge = model.config.vision_config.spatial_merge_size
    parts = levels.split((grid_thw.prod(dim=1) // merge**2).tolist(), dim=1)
    return {key: ImageFeatures(part, image.grid_thw) for key, part, image in zip(keys, parts, found, strict=True)}


def _decoder(model: PreTrainedModel) -> torch.nn.Module:
    """Embedding, layers, rotary frequencies and final norm: the inner model of a vision model, a text model's only one."""
    return getattr(model.model, "language_model", model.model)


def _decode(
    model: PreTrainedModel,
    hidden: torch.Tensor,
    position_ids: torch.Tensor,
    mask: torch.Tensor | None,
    cache: KeyValueCache,
    visual: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Hidden states behind the final norm. `position_ids` are [rows, new] where all channels agree, else [3, rows, new];
    `visual` is the placeholders' mask and their deepstack features [levels, tokens, hidden]."""
    decoder = _decoder(model)
    angles = decoder.rotary_emb(hidden, position_ids)
    for index, layer in enumerate(decoder.layers):
        hidden = layer(hidden, attention_mask=mask, past_key_values=cache, position_embeddings=angles)
        if visual is not None and index < len(visual[1]):
            hidden[visual[0]] += visual[1][index].to(hidden.dtype)
    return decoder.norm(hidden)


def _positions(
    model: PreTrainedModel,
    token_ids: torch.Tensor,
    valid: torch.Tensor,
    placed: torch.Tensor,
    images: Sequence[ImageFeatures],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the tokens and each row's next position [rows], by Transformers' own rule: of a text model [rows, width],
    of a vision model the three channels [3, rows, width]."""
    if not hasattr(model.model, "get_rope_index"):
        return (valid.cumsum(dim=1) - 1).clamp(min=0), valid.sum(dim=1)
    grids = torch.tensor([image.grid_thw for image in images]) if images else None
    position_ids, delta = model.model.get_rope_index(token_ids, placed.int(), image_grid_thw=grids, attention_mask=valid)
    return position_ids, valid.sum(dim=1) + delta[:, 0]


def _prefill_mask(valid: torch.Tensor) -> torch.Tensor:
    """Causal mask over real columns, bool [rows, 1, width, width]. Padding sees itself: a row of all False is NaN in some
    attention kernels."""
    width = valid.shape[1]
    causal = torch.ones((width, width), dtype=torch.bool).tril()
    return ((causal & valid[:, None, :]) | torch.eye(width, dtype=torch.bool))[:, None]


def _check(prefix: Prefix, image_token: int | None) -> None:
    if not prefix.token_ids:
        raise ValueError("a generation request without tokens: there is nothing to continue")
    spans = [prefix.token_ids[ref.offset : ref.offset + ref.num_tokens] for ref in prefix.images]
    wanted = sum(ref.num_tokens for ref in prefix.images)
    if any(set(span) != {image_token} for span in spans) or prefix.token_ids.count(image_token) != wanted:
        raise ValueError(
            f"a generation request has {prefix.token_ids.count(image_token)} image placeholders (token {image_token}), but its "
            f"{len(prefix.images)} images stand for {wanted} of them, at {[ref.offset for ref in prefix.images]}"
        )
