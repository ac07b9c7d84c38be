"""A Hugging Face vision tower inside the first pipeline stage:
replicated weights, images shared out over tensor- and context-parallel ranks."""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region

from octopus_mcore.models.family import ModelShape


class VisionTower(torch.nn.Module):
    """Pixels of a micro-batch's distinct images → merged features and deepstack features on every rank of the stage.

    Each tensor- and context-parallel rank computes a contiguous run of images, balanced by patches, and the features are
    gathered. The decoder behind it is sequence-parallel wherever there are several tensor-parallel ranks, so each rank asks for
    features at its own tokens only: the gather's backward pass adds the ranks' gradients up for the rank that computed the
    image. `sequence_parallel` on the parameters makes Megatron add their gradients once over tensor-parallel ranks, and its DDP
    adds them over context- and data-parallel ranks. Clipping and checkpoints count replicated parameters once by themselves.
    """

    def __init__(
        self, tower: torch.nn.Module, shape: ModelShape, dtype: torch.dtype, frozen: bool, sequence_parallel: bool
    ) -> None:
        super().__init__()
        self.tower = tower
        self.levels = shape.vision.deepstack_levels
        self.merge_unit = shape.merge_size**2
        self.width = shape.decoder.hidden_size
        self.frozen = frozen
        for parameter in self.tower.parameters():
            # Parameters only: `module.to(dtype)` would round the rotary frequencies, which Transformers keeps in float32.
            parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(not frozen)
            parameter.sequence_parallel = sequence_parallel

    def forward(self, pixel_values: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        """Features of all images.

        Args:
            pixel_values: [patches of all images, patch features].
            grid_thw: int64 [images, 3].

        Returns:
            [1 + levels, visual tokens of all images, hidden]: the embedding-level features, then the deepstack ones.
        """
        patches = grid_thw.prod(dim=1).tolist()
        group = parallel_state.get_tensor_and_context_parallel_group()
        shares = image_shares(patches, group.size())
        first, last = shares[group.rank()]
        pixels = pixel_values[sum(patches[:first]) : sum(patches[:last])]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self._features(pixels, grid_thw[first:last])
        if len(shares) == 1:
            return features
        counts = [sum(patches[start:end]) // self.merge_unit for start, end in shares]
        return self._gather(features, counts, group)

    def _features(self, pixels: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        parameter = next(self.tower.parameters())
        if not len(grid_thw):
            # Without images, this rank still takes part in the gather's backward pass where the others do.
            empty = torch.zeros((1 + self.levels, 0, self.width), dtype=parameter.dtype, device=parameter.device)
            return empty.requires_grad_(not self.frozen)
        output = self.tower(pixels.to(parameter.dtype), grid_thw=grid_thw)
        deepstack = output.deepstack_features if self.levels else ()
        return torch.stack([output.pooler_output, *deepstack])

    @staticmethod
    def _gather(features: torch.Tensor, counts: list[int], group: torch.distributed.ProcessGroup) -> torch.Tensor:
        """All ranks' features, [levels, Σ counts, hidden], from this rank's [levels, its count, hidden]."""
        widest = max(counts)
        padded = torch.nn.functional.pad(features, (0, 0, 0, widest - features.shape[1]))
        flat = padded.transpose(0, 1).contiguous()
        gathered = gather_from_sequence_parallel_region(flat, tensor_parallel_output_grad=True, group=group)
        kept = [gathered[rank * widest : rank * widest + count] for rank, count in enumerate(counts)]
        return torch.cat(kept).transpose(0, 1)


def image_shares(patches: list[int], ranks: int) -> list[tuple[int, int]]:
    """Contiguous image ranges, one a rank, whose patch counts are as even as the image order allows."""
    total, cuts, done = sum(patches), [0], 0
    for rank in range(1, ranks):
        image = cuts[-1]
        while image < len(patches) and done + patches[image] / 2 <= total * rank / ranks:
            done += patches[image]
            image += 1
        cuts.append(image)
    cuts.append(len(patches))
    return list(zip(cuts, cuts[1:], strict=False))
