"""A role: one set of weights in the run's layout (policy, reference;
critic and reward model later), with or without an optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import ChainedOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.transformer.transformer_config import TransformerConfig

from octopus_mcore.config.model_layout import padded_vocabulary
from octopus_mcore.config.schema import Config, OptimizerConfig
from octopus_mcore.models.checkpoint_folder import read_state
from octopus_mcore.models.decoder_config import check_layout, transformer_config
from octopus_mcore.models.families import family_of, load_shape
from octopus_mcore.models.family import ModelShape
from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.models.loading import load_weights, mark_split_parameters
from octopus_mcore.models.model import PolicyModel
from octopus_mcore.models.precision import check_chip
from octopus_mcore.models.weight_map import WeightEntry
from octopus_mcore.policy.model_state import load_model_state
from octopus_mcore.policy.offload import keep_readable, offload_to_host
from octopus_mcore.policy.optimizer_state import keep_padding
from octopus_mcore.runtime.world import World


class NonFiniteGradient(RuntimeError):
    """The gradient norm is NaN or infinite; no weight was changed."""


@dataclass(frozen=True)
class Role:
    """`chunks` are this rank's bare modules, one for each of its virtual stages; `trained` the same modules inside Megatron's
    DDP, none for a role that only computes."""

    name: str
    shape: ModelShape
    entries: tuple[WeightEntry, ...]
    chunks: tuple[PolicyModel, ...]
    trained: tuple[DistributedDataParallel, ...] = ()

    @property
    def megatron(self) -> TransformerConfig:
        """Megatron's configuration of the decoder."""
        return self.chunks[0].config

    @property
    def scheduled(self) -> list[torch.nn.Module]:
        """The modules that Megatron's schedules run."""
        return list(self.trained or self.chunks)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Of all chunks, in their order."""
        return chain.from_iterable(chunk.parameters() for chunk in self.chunks)

    def buffers(self) -> Iterator[torch.Tensor]:
        """Of all chunks, in their order."""
        return chain.from_iterable(chunk.buffers() for chunk in self.chunks)


def build_role(name: str, config: Config, world: World, trained: bool) -> Role:
    """Builds a role with the weights of the folder `model.path`, or of `model.checkpoint`. Collective over the world.

    Raises:
        FileNotFoundError, ValueError: the folder is incomplete, of another family, or the layout does not divide the model,
            or this GPU cannot compute the FP8 recipe.
    """
    check_chip(config.model.fp8)
    shape = load_shape(config.model.folder)
    check_layout(shape, config.parallel)
    megatron = transformer_config(shape.decoder, config.model, config.parallel)
    vocab_rows = padded_vocabulary(shape.decoder.vocab_size, config.parallel.tensor)
    virtual = range(config.parallel.virtual) if config.parallel.virtual > 1 else (None,)
    chunks = tuple(
        PolicyModel(shape, vocab_rows, megatron, config.model, world.device, stage).to(world.device) for stage in virtual
    )
    entries = tuple(family_of(shape.hf).weight_map(shape, vocab_rows))
    mark_split_parameters(chunks, entries)
    if config.model.checkpoint is None:
        load_weights(chunks, entries, HFFolder(config.model.folder))
    else:
        read_state(Path(config.model.checkpoint))  # refuses an unfinished one
        load_model_state(chunks, Path(config.model.checkpoint))
    if not trained:
        return Role(name, shape, entries, tuple(chunk.requires_grad_(False).eval() for chunk in chunks))
    parallel = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=True, fp8_param_gather=megatron.fp8_param
    )
    wrapped = tuple(DistributedDataParallel(megatron, parallel, chunk) for chunk in chunks)
    # The interleaved schedule takes one for each chunk, the others a single one.
    megatron.no_sync_func = wrapped[0].no_sync if len(wrapped) == 1 else [part.no_sync for part in wrapped]
    return Role(name, shape, entries, chunks, wrapped)


def build_optimizer(role: Role, config: OptimizerConfig) -> ChainedOptimizer:
    """A fresh distributed AdamW over the role's trained parameters. Norms and biases are not decayed.

    Raises:
        ValueError: `optimizer.offload` asks for what the installed libraries cannot do.
    """
    optimizer: ChainedOptimizer = get_megatron_optimizer(_optimizer_config(config, role.megatron), list(role.trained))
    for group in optimizer.param_groups:
        group["weight_decay"] *= group["wd_mult"]  # 0 for norms and biases; Megatron leaves this to its own scheduler
    keep_padding(optimizer)
    keep_readable(optimizer)
    return optimizer


def _optimizer_config(config: OptimizerConfig, megatron: TransformerConfig) -> MegatronOptimizerConfig:
    dtype = megatron.params_dtype
    built = MegatronOptimizerConfig(
        optimizer="adam",
        lr=config.lr,
        min_lr=config.min_lr,
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        adam_eps=config.eps,
        clip_grad=config.clip_grad,
        use_distributed_optimizer=True,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp8_recipe=megatron.fp8_recipe if megatron.fp8_param else None,
    )
    if config.offload:
        offload_to_host(built, config.offload)
    return built


def apply_update(optimizer: ChainedOptimizer, lr: float) -> float:
    """One optimizer step at learning rate `lr`; returns the gradient norm before clipping.

    Raises:
        NonFiniteGradient: and leaves the weights as they were.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    found_inf = optimizer.prepare_grads()
    norm = optimizer.get_grad_norm()
    if found_inf or not math.isfinite(norm):
        raise NonFiniteGradient(f"gradient norm is {norm}; the update was not made and the weights are those of the last step")
    optimizer.step()
    return float(norm)
