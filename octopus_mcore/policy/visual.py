"""The features of a pass's images: each distinct image goes through the vision tower once, whatever the number of micro-batches
that show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from octopus_mcore.experience.types import ProcessedImage
from octopus_mcore.models.micro_batch import Images
from octopus_mcore.models.vision import VisionTower
from octopus_mcore.policy.rows import Row, pixel_values


class PassFeatures:
    """Features of the images of one replica's micro-batches, on the ranks of the first stage.

    An image is encoded for the first micro-batch that shows it and forgotten after the last. Where it has one micro-batch
    alone, its features are part of that one's graph. Where it has several, each gets them as a leaf; what their backward passes
    leave there goes through the tower in one backward pass at the end (`backward`), so the tower keeps its activations for
    these images until then. Only groups that are cut, or pictures that prompts share, are of this kind.
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
        shown = [{image.key for row in rows for image in row.images} for rows in micro_batches]
        self._left = Counter(key for keys in shown for key in keys)
        self._several = {key for key, count in self._left.items() if count > 1}
        self._kept: dict[str, torch.Tensor] = {}
        self._pending: list[tuple[torch.Tensor, torch.Tensor]] = []

    def of(self, images: Images) -> torch.Tensor:
        """Features of a micro-batch's images in their order, [1 + levels, visual tokens, hidden]. Collective over the tensor-
        and context-parallel ranks; micro-batches come in the order of the plan."""
        missing = [place for place, key in enumerate(images.keys) if key not in self._kept]
        for several in (False, True):  # apart, because their backward passes come at different times
            places = [place for place in missing if (images.keys[place] in self._several) is several]
            if places:
                self._encode([images.keys[place] for place in places], images.grid_thw[places], several)
        features = torch.cat([self._kept[key] for key in images.keys], dim=1)
        for key in images.keys:
            self._left[key] -= 1
            if not self._left[key]:
                del self._kept[key]
        return features

    def backward(self) -> None:
        """The tower's backward pass for images of several micro-batches, after the last of these. Collective as `of` is."""
        if self._pending:
            torch.autograd.backward([features for features, _ in self._pending], [leaf.grad for _, leaf in self._pending])
            self._pending.clear()

    def _encode(self, keys: Sequence[str], grid_thw: torch.Tensor, several: bool) -> None:
        features = self._tower(pixel_values(keys, grid_thw, self._lookup).to(self._device), grid_thw)
        if several and features.requires_grad:
            leaf = features.detach().requires_grad_()
            self._pending.append((features, leaf))
            features = leaf
        sizes = (grid_thw.prod(dim=1) // self._tower.merge_unit).tolist()
        self._kept.update(zip(keys, features.split(sizes, dim=1), strict=True))
