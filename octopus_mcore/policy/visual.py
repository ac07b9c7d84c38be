"""The features of a pass's images: each distinct image goes through the vision tower once, whatever the number of micro-batches
that show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from octopus_mcore.experience.types import ProcessedImage
from octopus_mcore.models.micro_batch import Images
from octopus_mcore.models.vision import VisionTower
from octopus_mcore.policy.rows import Row, pixel_values


@dataclass(eq=False)
class _Shared:
    """Features that several micro-batches use: the tower's own with their graph, the leaf that these micro-batches read instead
    (in float32 at least: their gradients add up there), and how many of them have not had their backward pass."""

    features: torch.Tensor
    leaf: torch.Tensor
    waiting: int

    def __post_init__(self) -> None:
        self._hook = self.leaf.register_post_accumulate_grad_hook(self._arrived)

    def _arrived(self, _: torch.Tensor) -> None:
        """One micro-batch's gradient has been added to the leaf's."""
        self.waiting -= 1

    def backward(self) -> None:
        """Through the tower, with what is in the leaf."""
        self._hook.remove()  # it would keep all of this alive in a circle
        self.features.backward(self.leaf.grad.to(self.features.dtype))


class PassFeatures:
    """Features of the images of one replica's micro-batches, on the ranks of the first stage.

    An image is encoded for the first micro-batch that shows it, and its features are forgotten after the last. Where it has one
    micro-batch alone (groups that fit into one), its features are part of that one's graph. Where it has several (groups that
    are cut, pictures that prompts have in common), each reads them from a leaf; when all have had their backward passes, what
    these left there goes through the tower in one more. So the tower keeps its activations for an image from the first forward
    pass of its micro-batches to the last backward pass. How many it keeps at a time is the plan's affair, and not bounded.
    """

    def __init__(
        self,
        tower: VisionTower,
        micro_batches: Sequence[Sequence[Row]],
        lookup: Mapping[str, ProcessedImage],
        device: torch.device,
    ) -> None:
        self._tower = tower
        self._lookup = lookup
        self._device = device
        self._shown = [frozenset(image.key for row in rows for image in row.images) for rows in micro_batches]
        self._left = Counter(key for keys in self._shown for key in keys)
        self._several = {key for key, count in self._left.items() if count > 1}
        self._kept: dict[str, torch.Tensor] = {}
        self._shared: list[_Shared] = []

    def of(self, images: Images) -> torch.Tensor:
        """Features of a micro-batch's images in their order, [1 + levels, visual tokens, hidden]. Collective over the tensor-
        and context-parallel ranks; micro-batches come in the order of the plan."""
        self._finish(lambda shared: not shared.waiting)
        missing = [place for place, key in enumerate(images.keys) if key not in self._kept]
        for several in (False, True):  # apart, because their backward passes come at different times
            places = [place for place in missing if (images.keys[place] in self._several) is several]
            if places:
                self._encode([images.keys[place] for place in places], images.grid_thw[places], several)
        dtype = next(self._tower.parameters()).dtype
        features = torch.cat([self._kept[key].to(dtype) for key in images.keys], dim=1)
        for key in images.keys:
            self._left[key] -= 1
            if not self._left[key]:
                del self._kept[key]
        return features

    def backward(self) -> None:
        """What is left of the tower's backward passes, behind those of all micro-batches. Collective as `of` is."""
        self._finish(lambda shared: True)

    @property
    def held(self) -> int:
        """For how many calls of the tower its activations are kept here."""
        return len(self._shared)

    def _encode(self, keys: Sequence[str], grid_thw: torch.Tensor, several: bool) -> None:
        features = self._tower(pixel_values(keys, grid_thw, self._lookup).to(self._device), grid_thw)
        if several and features.requires_grad:
            leaf = features.detach().to(torch.promote_types(features.dtype, torch.float32)).requires_grad_()
            self._shared.append(_Shared(features, leaf, sum(not shown.isdisjoint(keys) for shown in self._shown)))
            features = leaf
        sizes = (grid_thw.prod(dim=1) // self._tower.merge_unit).tolist()
        self._kept.update(zip(keys, features.split(sizes, dim=1), strict=True))

    def _finish(self, ready: Callable[[_Shared], bool]) -> None:
        """The tower's backward pass for what is ready, in the order in which it was encoded."""
        finished = [shared for shared in self._shared if ready(shared)]
        self._shared = [shared for shared in self._shared if shared not in finished]
        for shared in finished:
            shared.backward()
