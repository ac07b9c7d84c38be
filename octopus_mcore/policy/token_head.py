"""Log-probs of selected tokens without ever holding their logits: vocabulary-parallel, tiled, temperature-scaled.

The output matrix of V (padded) rows is split over the tensor-parallel ranks; rank r holds rows [r · V/tp, (r + 1) · V/tp). The
logits are made in tiles of some tokens × some vocabulary rows, reduced to a few numbers per token and dropped (the online
softmax of Milakov & Gimelshein 2018, arXiv 1805.02867); the backward pass makes them again. Vocabulary rows are the outer loop:
the gradient of a block of rows is finished before the next one begins, so no float32 copy of the whole matrix's gradient is
needed, and with `main_grad` no other copy either. Two collectives per call, none in the backward pass.

Bytes on a rank at the fullest moment, beyond arguments and a few numbers per token, for T tokens, R = V/tp rows, hidden size h,
tiles of t = `HeadLimits.tile` ≤ 4 M logits, and b bytes in the weight's dtype (`models.costs.head.head_bytes`, held by a test):

    forward   4t  (+ 4t with entropy)                  (+ bt where b < 4)
    backward  4t  (+ 4t where entropy has a gradient)  (+ bt where b < 4)  + 4Th for the gradient of the hidden states
              (where b < 4 also bTh to round it, or b times the r rows of a tile · h while these are added up, if that is more)
              + bRh for the gradient of the matrix, without `main_grad`
    between   4TR (instead of the forward pass's first 4t) where that is at most `HeadLimits.kept_bytes`, else nothing: the
              backward pass then makes no logits again. An evaluation pass keeps nothing
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from octopus_mcore.models.limits import HeadLimits

_NEVER, _FLOOR = -1e20, -1e18
"""The logit of a banned id, and what the search for the largest begins with: finite, so that no NaN comes of 0 · x or x − x,
and so far apart that a banned id has probability 0 exactly, even where a tile holds nothing else."""


def selected_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    vocab_size: int,
    banned: Tensor | None = None,
    tp_group: dist.ProcessGroup | None = None,
    with_entropy: bool = False,
    main_grad: Tensor | None = None,
    limits: HeadLimits | None = None,
) -> tuple[Tensor, Tensor | None]:
    """log softmax(hidden · weightᵀ / temperature) at the targets, over the true vocabulary without the banned ids.

    Args:
        hidden: [T, h] states of the selected tokens, whole on every tensor-parallel rank (gathered under sequence parallelism).
        weight: [V/tp, h] this rank's rows of the output matrix.
        targets: int64 [T] ids over the whole vocabulary, equal on all ranks of the group.
        temperature: divides the logits; log-probs everywhere in the trainer are scaled by it.
        vocab_size: number of true tokens; rows of the matrix from there on are padding and have probability 0.
        banned: int64 ids that sampling never yields (vision special tokens); they have probability 0 here too.
        tp_group: the group that shares the vocabulary; None where this rank holds all of it.
        with_entropy: also return the entropy of each token's distribution.
        main_grad: [V/tp, h] in float32, Megatron's buffer of the weight's gradient. The backward pass adds to it, as Megatron's
            own fused accumulation does, and autograd is given no gradient of `weight`.
        limits: of logits that exist at once; the project's own if None.

    Returns:
        log-probs [T] and entropies [T] in nats (None unless asked for), in float32 at least, equal on all ranks of the group.
        Logits are products in the weight's dtype, as engines make them, and everything after that is in float32 at least.

    The gradient with respect to `hidden` is PARTIAL on each tensor-parallel rank: it comes from this rank's vocabulary rows.
    The caller takes `hidden` from an operation whose backward pass sums over the group: Megatron's
    `gather_from_sequence_parallel_region(..., tensor_parallel_output_grad=True)` under sequence parallelism,
    `copy_to_tensor_model_parallel_region` otherwise. The gradient of `weight` is complete for this rank's rows.

    Raises:
        ValueError: a target is banned or outside the vocabulary (its log-prob would be −inf and poison a loss), shapes that do
            not fit, or a temperature that is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive; found {temperature}")
    if hidden.shape != (*targets.shape, weight.shape[1]) or targets.dim() != 1:
        raise ValueError(
            "expected hidden [T, h], weight [V/tp, h], targets [T]; "
            f"found {[*hidden.shape]}, {[*weight.shape]}, {[*targets.shape]}"
        )
    if main_grad is not None and main_grad.shape != weight.shape:
        raise ValueError(f"main_grad is {[*main_grad.shape]}, but weight is {[*weight.shape]}")
    banned = targets.new_empty(0) if banned is None else banned
    check_targets(targets, vocab_size, banned)
    learns = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    shard = _Shard.of(weight, vocab_size, banned, tp_group)
    tiles = _Tiles.of(len(targets), shard.rows, weight.shape[1], limits or HeadLimits(), learns)
    return _SelectedLogProbs.apply(hidden, weight, targets, shard, tiles, temperature, with_entropy, main_grad)


def check_targets(targets: Tensor, vocab_size: int, banned: Tensor) -> None:
    """Raises ValueError with the position and id of the first target that is outside [0, vocab_size) or banned."""
    wrong = (targets < 0) | (targets >= vocab_size)
    if len(banned):
        wrong |= torch.isin(targets, banned)
    if bool(wrong.any()):
        position = int(wrong.nonzero()[0])
        token = int(targets[position])
        reason = "banned" if 0 <= token < vocab_size else f"outside the vocabulary of {vocab_size}"
        raise ValueError(
            f"target {position} is token id {token}, which is {reason}: it has probability 0 and cannot be trained on; "
            "responses with such tokens must be excluded before the loss"
        )


@dataclass(frozen=True)
class _Shard:
    """This rank's part of the vocabulary: ids [start, start + rows), padding left out, and which of them are banned."""

    start: int
    rows: int
    banned: Tensor
    group: dist.ProcessGroup | None

    @staticmethod
    def of(weight: Tensor, vocab_size: int, banned: Tensor, group: dist.ProcessGroup | None) -> _Shard:
        rows = weight.shape[0]
        rank, size = (0, 1) if group is None else (group.rank(), group.size())
        if vocab_size > rows * size:
            raise ValueError(f"vocab_size {vocab_size} exceeds the output matrix of {size} × {rows} rows")
        return _Shard(rank * rows, max(min(vocab_size - rank * rows, rows), 0), banned, group if size > 1 else None)

    def ban(self, logits: Tensor, block: slice) -> None:
        """Overwrites the logits [C, rows of the block] of banned ids."""
        if len(self.banned):
            local = self.banned - (self.start + block.start)
            here = local[(local >= 0) & (local < logits.shape[1])]
            logits.index_fill_(1, here, _NEVER)

    def locate(self, targets: Tensor, block: slice) -> tuple[Tensor, Tensor]:
        """Indices [C, 1] of the targets in a block of this shard's rows (any for those elsewhere), and which [C] are in it."""
        local = targets - (self.start + block.start)
        inside = local.clamp(0, block.stop - block.start - 1)
        return inside[:, None], local == inside

    def reduce(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        """In place, over the group that shares the vocabulary."""
        if values.numel():
            dist.all_reduce(values, operation, group=self.group)
        return values


@dataclass(frozen=True)
class _Tiles:
    """How a call cuts [tokens, rows] logits: blocks of rows, each with parts of the tokens. `kept`: their products stay until
    the backward pass."""

    blocks: tuple[slice, ...]
    parts: tuple[slice, ...]
    kept: bool

    @staticmethod
    def of(tokens: int, rows: int, hidden: int, limits: HeadLimits, learns: bool) -> _Tiles:
        part, block = limits.tile(tokens, rows, hidden)
        kept = learns and limits.keeps(tokens, rows)
        return _Tiles(_slices(rows, block), _slices(tokens, part), kept)

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        return ((block, part) for block in self.blocks for part in self.parts)

    def buffer(self, like: Tensor, dtype: torch.dtype) -> _Buffer:
        """Room for one tile."""
        sizes = (max((x.stop - x.start for x in cuts), default=0) for cuts in (self.parts, self.blocks))
        return _Buffer(like.new_empty(next(sizes) * next(sizes), dtype=dtype))


@dataclass(frozen=True)
class _Buffer:
    """Memory that tile after tile is written to: fresh pages cost more than the arithmetic on them."""

    flat: Tensor

    def view(self, part: slice, block: slice) -> Tensor:
        """[tokens of the part, rows of the block], contiguous."""
        shape = (part.stop - part.start, block.stop - block.start)
        return self.flat[: shape[0] * shape[1]].view(shape)


class _SelectedLogProbs(torch.autograd.Function):
    """Inside, everything is in bits: x = logit / (temperature · ln 2), so that powers are of 2; on CPUs they cost a third of
    those of e. Per token it saves the largest x, Σ 2^x and the entropy, and the tiles' powers where these are kept."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        shard: _Shard,
        tiles: _Tiles,
        temperature: float,
        with_entropy: bool,
        main_grad: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        dtype, scale = _exact(weight), 1 / (temperature * math.log(2))
        # Σ 2^x and Σ x 2^x with x counted from the largest one so far.
        mass, moment, chosen = hidden.new_zeros((3, len(targets)), dtype=dtype)
        top = torch.full_like(mass, _FLOOR)
        products = _Products(hidden, weight, shard, tiles, None if tiles.kept else tiles.buffer(hidden, dtype))
        second = tiles.buffer(hidden, dtype) if with_entropy else None
        kept = []
        for block, part in tiles:
            logits = products.tile(block, part)
            index, here = shard.locate(targets[part], block)
            chosen[part] += logits.gather(1, index)[:, 0] * here
            base = torch.maximum(top[part], logits.amax(1) * scale)
            if block.start:
                _rebase(mass[part], moment[part], top[part] - base)
            top[part] = base
            bits = torch.add(-base[:, None], logits, alpha=scale, out=second.view(part, block) if with_entropy else logits)
            powers = torch.exp2(bits, out=logits)
            mass[part] += powers.sum(1)
            if with_entropy:
                moment[part] += bits.mul_(powers).sum(1)
            if tiles.kept:
                kept += [powers, base]
        if shard.group is not None:
            own, top = top, shard.reduce(top.clone(), dist.ReduceOp.MAX)
            _rebase(mass, moment, own - top)
            mass, moment, chosen = shard.reduce(torch.stack([mass, moment, chosen]), dist.ReduceOp.SUM)
        log_mass = mass.log2()
        entropy = (log_mass - moment / mass) * math.log(2) if with_entropy else None
        ctx.save_for_backward(hidden, weight, targets, top, mass, entropy, *kept)
        ctx.shard, ctx.tiles, ctx.temperature, ctx.main_grad = shard, tiles, temperature, main_grad
        ctx.set_materialize_grads(False)  # an entropy that is only reported then costs nothing in the backward pass
        return (torch.add(-top, chosen, alpha=scale) - log_mass) * math.log(2), entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_log_probs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, *_ = ctx.saved_tensors
        slopes = _Slopes(ctx, grad_log_probs, grad_entropy)
        exact = _exact(weight)
        grad_hidden = torch.zeros_like(hidden, dtype=exact) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] and ctx.main_grad is None else None
        total = ctx.main_grad if ctx.needs_input_grad[1] and grad_weight is None else grad_weight
        for block in ctx.tiles.blocks:
            # A product of all tokens is rounded once; several are added in float32 first.
            narrow = total is not None and total.dtype != exact and len(ctx.tiles.parts) > 1
            rows = None if total is None else torch.zeros_like(total[block], dtype=exact) if narrow else total[block]
            for part in ctx.tiles.parts:
                grad = slopes.of(block, part)
                if grad_hidden is not None:
                    _add_product(grad_hidden[part], grad, weight[block])
                if rows is not None:
                    _add_product(rows, grad.t(), hidden[part])
            if narrow:
                total[block] = rows
        grad_hidden = None if grad_hidden is None else grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_weight, None, None, None, None, None, None


class _Products:
    """Makes the logits of tiles: products in the weight's dtype, then float32 at least."""

    def __init__(self, hidden: Tensor, weight: Tensor, shard: _Shard, tiles: _Tiles, room: _Buffer | None) -> None:
        """`room` is where tiles are made; None gives each a place of its own. `narrow` is room for one in the weight's dtype,
        where that is another."""
        self._hidden, self._weight, self._shard, self._room = hidden, weight, shard, room
        self.narrow = None if _exact(weight) == weight.dtype else tiles.buffer(hidden, weight.dtype)

    def tile(self, block: slice, part: slice) -> Tensor:
        """Logits [C, rows of the block] before the temperature, to be overwritten."""
        hidden, weight = self._hidden[part], self._weight[block]
        if self._room is None:
            logits = weight.new_empty((len(hidden), len(weight)), dtype=_exact(weight))
        else:
            logits = self._room.view(part, block)
        if self.narrow is None:
            torch.mm(hidden, weight.t(), out=logits)
        else:
            logits.copy_(torch.mm(hidden, weight.t(), out=self.narrow.view(part, block)))
        self._shard.ban(logits, block)
        return logits


class _Slopes:
    """Gradients of the loss for the products, tile by tile in the order of the forward pass.

    ∂ log p_t / ∂x_j = [j = t] − p_j and ∂H / ∂x_j = −p_j (log p_j + H), x in nats. The second one needs x besides p, in a
    second tile; where only powers were kept, their logarithm is x.
    """

    def __init__(self, ctx: FunctionCtx, grad_log_probs: Tensor | None, grad_entropy: Tensor | None) -> None:
        hidden, weight, self._targets, self._top, mass, entropy, *kept = ctx.saved_tensors
        self._shard, self._scale = ctx.shard, 1 / (ctx.temperature * math.log(2))
        grad_log_probs = torch.zeros_like(mass) if grad_log_probs is None else grad_log_probs
        self._target = grad_log_probs / ctx.temperature
        self._constant, self._bent = -self._target / mass, None
        if grad_entropy is not None:
            bend = grad_entropy / ctx.temperature
            self._constant -= bend * (entropy - mass.log()) / mass
            self._bent = -bend * math.log(2) / mass
        self._kept = iter(kept) if kept else None
        self._room = ctx.tiles.buffer(hidden, mass.dtype)
        self._second = None if grad_entropy is None else ctx.tiles.buffer(hidden, mass.dtype)
        self._products = _Products(hidden, weight, ctx.shard, ctx.tiles, self._room)

    def of(self, block: slice, part: slice) -> Tensor:
        """[C, rows of the block] in the weight's dtype, good until the next call."""
        constant = self._constant[part, None]
        if self._second is not None:
            powers, bits = self._powers_and_bits(block, part)
            grad = bits.mul_(powers).mul_(self._bent[part, None]).addcmul_(powers, constant)
        elif self._kept is not None:
            powers, base = next(self._kept), next(self._kept)
            factor = constant * torch.exp2(base - self._top[part])[:, None]
            grad = torch.mul(powers, factor, out=self._room.view(part, block))
        else:
            logits = self._products.tile(block, part)
            grad = self._bits(logits, part, logits).exp2_().mul_(constant)
        index, here = self._shard.locate(self._targets[part], block)
        grad.scatter_add_(1, index, (self._target[part] * here)[:, None])
        narrow = self._products.narrow
        return grad if narrow is None else narrow.view(part, block).copy_(grad)

    def _bits(self, logits: Tensor, part: slice, out: Tensor) -> Tensor:
        """x of a tile less the token's largest."""
        return torch.add(-self._top[part, None], logits, alpha=self._scale, out=out)

    def _powers_and_bits(self, block: slice, part: slice) -> tuple[Tensor, Tensor]:
        """2^x and x of a tile, each to be overwritten."""
        room, second = self._room.view(part, block), self._second.view(part, block)
        if self._kept is None:
            bits = self._bits(self._products.tile(block, part), part, second)
            return torch.exp2(bits, out=room), bits
        powers, base = next(self._kept), next(self._kept)
        shift = (base - self._top[part])[:, None]
        # A power that has become 0 stands for any x far below; whatever is put for it is multiplied by 0.
        bits = torch.clamp(powers, min=torch.finfo(powers.dtype).tiny, out=second).log2_().add_(shift)
        return torch.mul(powers, shift.exp2(), out=room), bits


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left · right, the product in the operands' dtype."""
    if total.dtype == left.dtype:
        torch.addmm(total, left, right, out=total)
    else:
        total.add_(left @ right)


def _rebase(mass: Tensor, moment: Tensor, shift: Tensor) -> None:
    """Σ 2^x and Σ x 2^x for x + shift instead of x, shift ≤ 0; in place."""
    scale = shift.exp2()
    moment.add_(shift * mass).mul_(scale)
    mass.mul_(scale)


def _exact(weight: Tensor) -> torch.dtype:
    """Of sums and probabilities."""
    return torch.promote_types(weight.dtype, torch.float32)


def _slices(length: int, size: int) -> tuple[slice, ...]:
    return tuple(slice(start, min(start + size, length)) for start in range(0, length, size))
