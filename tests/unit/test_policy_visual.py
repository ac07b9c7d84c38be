"""Features of a pass's images: encoded once, gradients as if each micro-batch had encoded its own, activations freed early."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octopus_mcore.experience.types import ImageRef, ProcessedImage
from octopus_mcore.policy.rows import Row, pack_rows
from octopus_mcore.policy.visual import PassFeatures
from octopus_mcore.runtime.seeds import torch_generator
from tests.tiny import IMAGE_PAD

GRID = (1, 2, 4)


class Tower(torch.nn.Module):
    """Like `VisionTower` on one rank: patches [8 an image, 3] to features [levels, 2 an image, 5], not linear in its weight."""

    merge_unit = 4

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        weight = torch.randn(3, 5, generator=torch_generator("tower"), dtype=torch.float64)
        self.weight = torch.nn.Parameter(weight.to(dtype))
        self.seen: list[int] = []

    def forward(self, pixels: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(grid_thw))
        merged = pixels.to(self.weight.dtype).view(-1, 4, 3).sum(1)
        return torch.stack([(merged @ self.weight).tanh(), (merged @ self.weight).sin()])


def row(*keys: str) -> Row:
    tokens, images = [8], []
    for key in keys:
        images.append(ImageRef(key, len(tokens), GRID, 2))
        tokens += [IMAGE_PAD, IMAGE_PAD, 9]
    return Row("row", np.array(tokens), 1, tuple(images))


def store(keys: str) -> dict[str, ProcessedImage]:
    draw = np.random.default_rng(3)
    return {key: ProcessedImage(draw.standard_normal((8, 3), dtype=np.float32), GRID) for key in keys}


def loss_of(features: torch.Tensor, number: int) -> torch.Tensor:
    """Asks something different of every feature in every micro-batch."""
    weights = torch.arange(1.0, features.numel() + 1, dtype=features.dtype).view_as(features) + number
    return (features * weights.cos()).sum()


def run(tower: Tower, micro_batches: list[list[Row]], behind: int) -> list[int]:
    """Forward passes, each micro-batch's backward pass `behind` forward passes later, as in a pipeline; the number of the
    tower's graphs that were kept at each forward pass."""
    features = PassFeatures(tower, micro_batches, store("abcd"), torch.device("cpu"))
    waiting: list[torch.Tensor] = []
    held = []
    for number, rows in enumerate(micro_batches):
        images = pack_rows(rows, [np.ones(r.response_length, dtype=bool) for r in rows], 2).images
        if images is not None:
            waiting.append(loss_of(features.of(images), number))
        held.append(features.held)
        if len(waiting) > behind:
            waiting.pop(0).backward()
    for loss in waiting:
        loss.backward()
    features.backward()
    assert features.held == 0
    return held


@pytest.mark.parametrize("behind", [0, 1, 3])
@pytest.mark.parametrize(
    "micro_batches",
    [
        [[row("a")], [row("b")], [row("c", "d")]],
        [[row("a"), row("a")], [row("a", "b")], [row("b")], [], [row("c")]],
        [[row("a", "b")], [row()], [row("b", "a")], [row("a", "c")], [row("d"), row("c")]],
    ],
)
def test_gradients_are_those_of_micro_batches_that_encode_their_own(micro_batches: list[list[Row]], behind: int) -> None:
    tower, plain = Tower(), Tower()
    run(tower, micro_batches, behind)
    assert sum(tower.seen) == len({image.key for rows in micro_batches for one in rows for image in one.images})
    for number, rows in enumerate(micro_batches):
        alone = [[] for _ in micro_batches]
        alone[number] = rows
        features = PassFeatures(plain, alone, store("abcd"), torch.device("cpu"))
        images = pack_rows(rows, [np.ones(r.response_length, dtype=bool) for r in rows], 2).images
        if images is not None:
            loss_of(features.of(images), number).backward()
    torch.testing.assert_close(tower.weight.grad, plain.weight.grad, rtol=0, atol=1e-12)


def test_the_tower_keeps_activations_no_longer_than_its_image_is_under_way() -> None:
    """Six groups, each cut in two: with backward passes `behind` forward passes later, no more graphs are kept than that
    takes."""
    micro_batches = [[row(key)] for key in "aabbccdd"]
    for behind in (0, 1, 2):
        assert max(run(Tower(), micro_batches, behind)) <= 1 + (behind + 1) // 2


def test_gradients_of_many_micro_batches_add_up_in_float32() -> None:
    """In bfloat16, 1 + 2⁻⁹ is 1; four hundred times 2⁻⁹ is 0.78."""
    tower = Tower(torch.bfloat16)
    micro_batches = [[row("a")] for _ in range(401)]
    features = PassFeatures(tower, micro_batches, store("a"), torch.device("cpu"))
    images = pack_rows(micro_batches[0], [np.ones(3, dtype=bool)], 2).images
    for number in range(401):
        (features.of(images).sum() * (2**-9 if number else 1.0)).backward()
    features.backward()
    alone = Tower(torch.bfloat16)
    once = PassFeatures(alone, micro_batches[:1], store("a"), torch.device("cpu"))
    once.of(images).sum().backward()
    torch.testing.assert_close(tower.weight.grad, alone.weight.grad * (1 + 400 * 2**-9), rtol=0.02, atol=0.02)


def test_nothing_is_kept_where_nothing_is_trained() -> None:
    features = PassFeatures(Tower(), [[row("a")], [row("a")]], store("a"), torch.device("cpu"))
    images = pack_rows([row("a")], [np.ones(3, dtype=bool)], 2).images
    with torch.no_grad():
        first, second = features.of(images), features.of(images)
    assert torch.equal(first, second) and features.held == 0
    features.backward()
