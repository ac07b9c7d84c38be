"""Sampling of one token for each row of a batch, with random numbers that depend on a request's seed and the token index alone.

Inverse-transform sampling needs one uniform a token, so a counter-based hash of (seed, index) replaces a generator a
request: the draws of a request are the same whatever else is in the batch, on every device, and after a restart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from octopus_mcore.rollout.engine import SamplingParams

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def uniforms(seeds: np.ndarray, index: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for token `index` of requests with these seeds; uint64 [n] → float64 [n].

    SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) from a mixed seed, so that neighbouring seeds share no stream.
    """
    counter = np.array([index + 1], dtype=np.uint64)
    return (_mix(_mix(seeds) + counter * _GAMMA) >> np.uint64(11)) * 2.0**-53


def _mix(state: np.ndarray) -> np.ndarray:
    """SplitMix64's output function; arithmetic modulo 2⁶⁴."""
    state = state + _GAMMA
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))


def sample(logits: torch.Tensor, params: SamplingParams, uniform: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token of each row and its log-prob.

    Args:
        logits: [rows, vocabulary], any float dtype; computed with in float32.
        params: banned tokens get probability 0; temperature 0 takes the most probable token of the rest.
        uniform: float64 [rows], one number in [0, 1) a row; not read at temperature 0.

    Returns: Token ids, int64 [rows], and float32 [rows]: log-probs over the allowed tokens, temperature-scaled (at
        temperature 0 as if it were 1) and before truncation.
    """
    logits = ban(logits.float(), params.banned_token_ids)
    if params.temperature == 0:
        tokens = logits.argmax(dim=-1)
        return tokens, logits.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
    log_probs = (logits / params.temperature).log_softmax(dim=-1)
    probabilities = log_probs.exp().double()
    position = torch.from_numpy(uniform).to(logits.device)
    truncated = params.top_p < 1 or params.top_k is not None
    tokens = _truncated(probabilities, params, position) if truncated else _invert(probabilities, position)
    return tokens, log_probs.gather(1, tokens[:, None])[:, 0]


def ban(logits: torch.Tensor, banned: Sequence[int]) -> torch.Tensor:
    """The logits [rows, vocabulary] with −∞ for banned tokens."""
    if not banned:
        return logits
    return logits.index_fill(1, torch.tensor(banned, device=logits.device), float("-inf"))


def _truncated(probabilities: torch.Tensor, params: SamplingParams, position: torch.Tensor) -> torch.Tensor:
    """Samples among the most probable tokens whose mass first reaches `top_p` (Holtzman et al. 2020), at most `top_k` of them;
    always at least one."""
    ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    allowed = ordered.masked_fill(before >= params.top_p, 0.0)
    if params.top_k is not None:
        allowed[:, params.top_k :] = 0.0
    chosen = _invert(allowed, position)
    return tokens.gather(1, chosen[:, None])[:, 0]


def _invert(weights: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """The index where the cumulated weights (float64, unnormalised) pass `position`; an index of weight 0 is never chosen."""
    cumulated = weights.cumsum(dim=-1)
    # Uniforms are at most 1 − 2⁻⁵³, and no float64 times that rounds back to itself: the target stays below the total.
    target = position[:, None] * cumulated[:, -1:]
    # NaN weights would give an index behind the last one; the NaN log-prob of the index in range tells the engine.
    return torch.searchsorted(cumulated, target, right=True)[:, 0].clamp(max=weights.shape[1] - 1)
