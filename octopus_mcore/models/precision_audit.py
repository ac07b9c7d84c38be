"""The precision audit: in which precision each linear layer *really* ran during a pass, held against the configuration.

Layers can be left in bfloat16 or float32 in silence (a missed recipe, a cast in between, autocast). So nothing here asks what
was configured, but what happened: for torch's own products the types of their operands as they reach the dispatcher, behind
every cast and autocast; for Transformer-Engine's layers, whose products torch cannot see, the state that their forward pass
left.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.fp8_utils import is_float8tensor
from megatron.core.tensor_parallel.layers import VocabParallelEmbedding
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from octopus_mcore.config.schema import ModelConfig
from octopus_mcore.models.loading import global_name
from octopus_mcore.models.model import PolicyModel
from octopus_mcore.models.safetensors_file import dtype_name

HEAD = "output_layer"
"""The head's name. Its product is the token head's business, on a weight that may be the embedding's."""

NOT_RUN = "not run"
_MOST_LISTED = 40

_RECIPES = {
    "DelayedScaling": "delayed",
    "Float8CurrentScaling": "tensorwise",
    "Float8BlockScaling": "blockwise",
    "MXFP8BlockScaling": "mxfp8",
}
"""Transformer-Engine's recipe classes (`common/recipe`) → the configuration's names."""

_CALLS = frozenset({"linear", "matmul", "__matmul__", "__rmatmul__", "mm", "addmm", "bmm", "baddbmm", "einsum"})
_CALLS |= {"conv1d", "conv2d", "conv3d", "_scaled_mm", "scaled_mm", "_grouped_mm", "grouped_mm"}
"""What Python calls for a product."""

_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "linear", "convolution", "_scaled_mm", "_grouped_mm"})
"""aten's operators behind linear layers and convolutions."""

_FP8_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(?:self_attention\.linear_(?:qkv|proj)|mlp\.(?:.+\.)?linear_fc[12])$")
"""The layers that FP8 is for; the first group is the number of the decoder layer."""


class PrecisionError(RuntimeError):
    """Linear layers ran in another precision than the configuration says."""


@dataclass(frozen=True)
class LayerPrecision:
    """How a linear layer ran: in which numbers its products were (`bfloat16`, `fp8 blockwise e4m3`, or several where operands
    or products differ), and in which its weights are kept."""

    arithmetic: str
    weights: str

    def __str__(self) -> str:
        return self.arithmetic if self.arithmetic == self.weights else f"{self.arithmetic}, weights kept in {self.weights}"


Seen = Mapping[str, LayerPrecision]
"""By global layer name, what one rank saw."""


class PrecisionWatch(TorchFunctionMode):
    """While entered, sees the products of all linear layers of a rank's model chunks.

    Calls that lead to a product run under a dispatch mode, which sees the operands behind every cast. It is on for nothing
    else: some of torch's tensor classes cannot be made under one. A product by a call that is not in `_CALLS` is not seen, and
    its layer counts as not run. Costs a Python call for every call of torch, so it is for one pass.
    """

    def __init__(self, chunks: Sequence[PolicyModel]) -> None:
        super().__init__()
        self._layers = {name: module for chunk in chunks for name, module in _linear_layers(chunk)}
        self._engine = {name for name, module in self._layers.items() if hasattr(module, "fp8_meta")}
        self._head = next((chunk.head_weight() for chunk in chunks if chunk.post_process), None)
        self._operands: dict[str, set[str]] = {name: set() for name in self._layers}
        if self._head is not None:
            self._operands[HEAD] = set()
        self._inside: list[str] = []
        self._hooks: list[Any] = []
        self._products = _Products(self._note)

    def __enter__(self) -> PrecisionWatch:
        for name, module in self._layers.items():
            self._hooks.append(module.register_forward_pre_hook(lambda *_, name=name: self._inside.append(name)))
            self._hooks.append(module.register_forward_hook(lambda module, *_, name=name: self._left(name, module)))
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._inside.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the call, watched where it leads to a product."""
        if getattr(func, "__name__", "") not in _CALLS:
            return func(*args, **(kwargs or {}))
        with self._products:
            return func(*args, **(kwargs or {}))

    def _note(self, operands: Sequence[torch.Tensor]) -> None:
        if (layer := self._layer_of(operands)) is not None and layer not in self._engine:
            self._operands[layer].add(_joined(dtype_name(operand.dtype) for operand in operands))

    def seen(self) -> Seen:
        """What ran how, on this rank."""
        kept = {name: _kept(module.parameters(recurse=False)) for name, module in self._layers.items()}
        if self._head is not None:
            kept[HEAD] = _kept([self._head])
        return {name: LayerPrecision(_joined(found) or NOT_RUN, kept[name]) for name, found in self._operands.items()}

    def _layer_of(self, operands: Sequence[torch.Tensor]) -> str | None:
        """The layer whose product this is: the innermost that is running, or the head by its weight's place in memory."""
        if self._inside:
            return self._inside[-1]
        if self._head is None:
            return None
        start = self._head.data_ptr()
        end = start + self._head.numel() * self._head.element_size()
        return HEAD if any(start <= operand.data_ptr() < end for operand in operands) else None

    def _left(self, name: str, module: nn.Module) -> None:
        self._inside.pop()
        if (arithmetic := transformer_engine_arithmetic(module)) is not None:
            self._operands[name].add(arithmetic)


class _Products(TorchDispatchMode):
    """Tells of the operands of each product."""

    def __init__(self, note: Callable[[Sequence[torch.Tensor]], None]) -> None:
        super().__init__()
        self._tell = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in _PRODUCTS:
            self._tell([value for value in args if isinstance(value, torch.Tensor)])
        return func(*args, **(kwargs or {}))


def transformer_engine_arithmetic(module: nn.Module) -> str | None:
    """What a Transformer-Engine layer's latest forward pass computed in; None for any other module.

    Read from what `TransformerEngineBaseModule.prepare_forward` sets in every pass (2.11: `fp8`, `fp8_meta["recipe"]`,
    `activation_dtype`).
    """
    if not hasattr(module, "fp8_meta"):
        return None
    if not module.fp8:
        return dtype_name(module.activation_dtype)
    recipe = module.fp8_meta["recipe"]
    known = (_RECIPES[base.__name__] for base in type(recipe).__mro__ if base.__name__ in _RECIPES)
    return f"fp8 {next(known, type(recipe).__name__)} {recipe.fp8_format.name.lower()}"


def expected_precision(layer: str, model: ModelConfig, layers: int) -> LayerPrecision:
    """What the configuration says of a linear layer by its global name, in a decoder of so many layers."""
    fp8, inside = model.fp8, _FP8_LAYER.match(layer)
    if fp8 is None or inside is None:
        return LayerPrecision(model.dtype, model.dtype)
    if not fp8.first_layers_bf16 <= int(inside[1]) < layers - fp8.last_layers_bf16:
        return LayerPrecision(model.dtype, model.dtype)
    return LayerPrecision(f"fp8 {fp8.recipe} {fp8.number_format}", "fp8" if fp8.parameters else model.dtype)


@dataclass(frozen=True)
class PrecisionReport:
    """What every linear layer of the model ran in, by global name, in the model's order."""

    layers: Mapping[str, LayerPrecision]

    @property
    def summary(self) -> str:
        """One line: how many layers of decoder, head and vision tower ran in what."""
        counts = Counter((_part(name), str(found)) for name, found in self.layers.items())
        return "; ".join(f"{count} linear layers of the {part}: {found}" for (part, found), count in counts.items())

    @property
    def text(self) -> str:
        """The full list, a layer a line."""
        return "".join(f"{name}\t{found}\n" for name, found in self.layers.items())


def audit(seen: Iterable[Seen], model: ModelConfig, layers: int) -> PrecisionReport:
    """Joins what all ranks saw, and holds it against the configuration.

    A vision tower that no image reached may be `not run`; anything else must run.

    Raises:
        PrecisionError: with every layer that ran in something else.
    """
    by_layer: dict[str, list[LayerPrecision]] = {}
    for rank in seen:
        for name, found in rank.items():
            by_layer.setdefault(name, []).append(found)
    joined = {name: _over_ranks(by_layer[name]) for name in sorted(by_layer, key=_order)}
    differences = []
    for name, found in joined.items():
        wanted = expected_precision(name, model, layers)
        if found != wanted and not (_part(name) == "vision tower" and found == LayerPrecision(NOT_RUN, wanted.weights)):
            differences.append(f"{name}: {found}; expected {wanted}")
    if differences:
        more = len(differences) - _MOST_LISTED
        listed = differences[:_MOST_LISTED] + ([f"… and {more} more"] if more > 0 else [])
        raise PrecisionError(
            f"{len(differences)} of {len(joined)} linear layers did not run in the precision that the configuration says "
            "(model.dtype, model.fp8):\n" + "\n".join(listed)
        )
    return PrecisionReport(joined)


def _linear_layers(chunk: PolicyModel) -> Iterator[tuple[str, nn.Module]]:
    """Modules that own a matrix, embeddings aside."""
    for name, module in chunk.named_modules():
        owns = any(parameter.dim() >= 2 for parameter in module.parameters(recurse=False))
        if owns and name != HEAD and not isinstance(module, nn.Embedding | VocabParallelEmbedding):
            yield global_name(chunk, name), module


def _over_ranks(found: Sequence[LayerPrecision]) -> LayerPrecision:
    """A layer's shards and replicas as one; ranks on which it did not run say nothing of its arithmetic."""
    ran = {entry.arithmetic for entry in found} - {NOT_RUN}
    return LayerPrecision(_joined(ran) or NOT_RUN, _joined(entry.weights for entry in found))


def _part(layer: str) -> str:
    return {"decoder": "decoder", "vision": "vision tower", HEAD: "head"}.get(layer.split(".")[0], "rest")


def _order(layer: str) -> tuple:
    """Vision tower, decoder, head; numbers by size."""
    place = ["vision tower", "decoder", "rest", "head"].index(_part(layer))
    return place, [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in layer.split(".")]


def _kept(parameters: Iterable[torch.Tensor]) -> str:
    return _joined("fp8" if is_float8tensor(value) else dtype_name(value.dtype) for value in parameters if value.dim() >= 2)


def _joined(names: Iterable[str]) -> str:
    """One name where all are the same, else all of them."""
    return " and ".join(sorted(set(names)))
