"""Log-probs of selected tokens without ever holding their logits: vocabulary-parallel, chunked, temperature-scaled.

The output matrix of V (padded) rows is split over the tensor-parallel ranks; rank r holds rows [r · V/tp, (r + 1) · V/tp). The
logits of a chunk of tokens are made, reduced to a few numbers per token and dropped; the backward pass makes them again. So the
peak is two or three buffers of chunk × V/tp, whatever the number of tokens (and one float32 gradient of the matrix); what is
saved for the backward pass is the hidden states and two numbers per token. Two collectives per call, none in the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def selected_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    vocab_size: int,
    banned: Tensor | None = None,
    tp_group: dist.ProcessGroup | None = None,
    chunk_size: int = 1024,
    with_entropy: bool = False,
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
        chunk_size: tokens whose logits exist at once.
        with_entropy: also return the entropy of each token's distribution.

    Returns:
        log-probs [T] and entropies [T] in nats (None unless asked for), in float32 at least, equal on all ranks of the group.
        Logits are products in the weight's dtype, as engines make them, and everything after that is in float32 at least.

    The gradient with respect to `hidden` is PARTIAL on each tensor-parallel rank: it comes from this rank's vocabulary rows.
    The caller takes `hidden` from an operation whose backward pass sums over the group: Megatron's
    `gather_from_sequence_parallel_region(..., tensor_parallel_output_grad=True)` under sequence parallelism,
    `copy_to_tensor_model_parallel_region` otherwise. The gradient of `weight` is complete for this rank's rows.

    Raises:
        ValueError: a target is banned or outside the vocabulary (its log-prob would be −inf and poison a loss), shapes that do
            not fit, or a temperature or chunk size that is not positive.
    """
    if temperature <= 0 or chunk_size < 1:
        raise ValueError(f"temperature and chunk_size must be positive; found {temperature=}, {chunk_size=}")
    if hidden.shape != (*targets.shape, weight.shape[1]) or targets.dim() != 1:
        raise ValueError(
            "expected hidden [T, h], weight [V/tp, h], targets [T]; "
            f"found {[*hidden.shape]}, {[*weight.shape]}, {[*targets.shape]}"
        )
    banned = targets.new_empty(0) if banned is None else banned
    check_targets(targets, vocab_size, banned)
    shard = _Shard.of(weight, vocab_size, banned, tp_group)
    log_probs, entropy = _SelectedLogProbs.apply(hidden, weight, targets, shard, temperature, chunk_size, with_entropy)
    return log_probs, entropy if with_entropy else None


def check_targets(targets: Tensor, vocab_size: int, banned: Tensor) -> None:
    """Raises ValueError with the position and id of the first target that is outside [0, vocab_size) or banned."""
    wrong = (targets < 0) | (targets >= vocab_size) | torch.isin(targets, banned)
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
    """This rank's part of the vocabulary: ids [start, start + rows), and which of its rows have probability 0."""

    start: int
    impossible: Tensor
    group: dist.ProcessGroup | None

    @staticmethod
    def of(weight: Tensor, vocab_size: int, banned: Tensor, group: dist.ProcessGroup | None) -> _Shard:
        rows = weight.shape[0]
        rank, size = (0, 1) if group is None else (group.rank(), group.size())
        if vocab_size > rows * size:
            raise ValueError(f"vocab_size {vocab_size} exceeds the output matrix of {size} × {rows} rows")
        ids = torch.arange(rank * rows, (rank + 1) * rows, device=weight.device)
        return _Shard(rank * rows, (ids >= vocab_size) | torch.isin(ids, banned), group if size > 1 else None)

    def logits(self, hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
        """Tempered logits of a chunk [C, V/tp], −inf at impossible ids; a fresh buffer that the caller may overwrite."""
        logits = torch.mm(hidden, weight.t())
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).div_(temperature)
        return logits.masked_fill_(self.impossible, -torch.inf)

    def local(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the targets in this shard (0 for those elsewhere), and which targets live here."""
        index = targets - self.start
        here = (index >= 0) & (index < self.impossible.shape[0])
        return index.masked_fill(~here, 0), here

    def reduce(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.group is not None and values.numel():
            dist.all_reduce(values, operation, group=self.group)
        return values


class _SelectedLogProbs(torch.autograd.Function):
    """Forward and backward in chunks. Per token it saves log Z and the entropy; logits are made anew in the backward pass."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        shard: _Shard,
        temperature: float,
        chunk_size: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        peak, mass, moment, chosen = hidden.new_zeros((4, len(targets)), dtype=dtype)
        index, here = shard.local(targets)
        for part in _chunks(len(targets), chunk_size):
            logits = shard.logits(hidden[part], weight, temperature)
            chosen[part] = logits.gather(1, index[part, None])[:, 0].masked_fill(~here[part], 0)
            # A shard may hold nothing but padding: a finite stand-in for its −inf keeps −inf − (−inf) out.
            peak[part] = logits.amax(1).clamp(min=torch.finfo(dtype).min)
            logits.sub_(peak[part, None])
            exponentials = logits.exp() if with_entropy else logits.exp_()
            mass[part] = exponentials.sum(1)
            if with_entropy:
                moment[part] = exponentials.mul_(logits.masked_fill_(shard.impossible, 0)).sum(1)
        top = shard.reduce(peak.clone(), dist.ReduceOp.MAX)
        # Shift each shard's Σ e^x and Σ x e^x from its own maximum to the common one.
        shift = peak - top
        scale = shift.exp()
        moment = torch.where(scale > 0, scale * (moment + shift * mass), 0)
        mass, moment, chosen = shard.reduce(torch.stack([scale * mass, moment, chosen]), dist.ReduceOp.SUM)
        log_normaliser = top + mass.log()
        entropy = mass.log() - moment / mass
        ctx.save_for_backward(hidden, weight, targets, log_normaliser, entropy)
        ctx.shard, ctx.temperature, ctx.chunk_size = shard, temperature, chunk_size
        ctx.set_materialize_grads(False)  # an entropy that is only reported then costs nothing in the backward pass
        if not with_entropy:
            ctx.mark_non_differentiable(entropy)
        return chosen - log_normaliser, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_log_probs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, log_normaliser, entropy = ctx.saved_tensors
        grad_log_probs = torch.zeros_like(entropy) if grad_log_probs is None else grad_log_probs
        index, here = ctx.shard.local(targets)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=log_normaliser.dtype) if ctx.needs_input_grad[1] else None
        for part in _chunks(len(targets), ctx.chunk_size):
            log_softmax = ctx.shard.logits(hidden[part], weight, ctx.temperature).sub_(log_normaliser[part, None])
            grad = log_softmax.exp()
            if grad_entropy is not None:  # ∂H/∂x_j = −p_j (log p_j + H)
                slope = (
                    log_softmax.masked_fill_(ctx.shard.impossible, 0).add_(entropy[part, None]).mul_(grad_entropy[part, None])
                )
                grad.mul_(slope.add_(grad_log_probs[part, None]).neg_())
            else:  # ∂ log p_t / ∂x_j = [j = t] − p_j
                grad.mul_(-grad_log_probs[part, None])
            grad.scatter_add_(1, index[part, None], (grad_log_probs[part] * here[part])[:, None])
            grad = grad.div_(ctx.temperature).to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight += grad.t() @ hidden[part]
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None, None


def _chunks(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
