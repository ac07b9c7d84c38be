"""The section `model.fp8`: FP8 arithmetic of the decoder's linear layers, by Transformer-Engine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from octopus_mcore.config.section import Section


class FP8Config(Section):
    """FP8 for the matrix products of the decoder's linear layers. Attention, norms, embedding, head and the vision tower stay
    in bfloat16; master weights and moments in float32."""

    recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = "blockwise"
    """How values are scaled into FP8's range: `delayed` one factor a tensor, from the largest values of earlier steps;
    `tensorwise` one a tensor, from its own values; `blockwise` one for 128 × 128 weights or 128 activations (Hopper and newer);
    `mxfp8` one for 32 values (Blackwell)."""
    format: Literal["e4m3", "hybrid"] | None = None
    """`e4m3` for everything, or `hybrid`: gradients in E5M2. null takes what is usual: hybrid for `delayed` and
    `tensorwise`."""
    first_layers_bf16: int = Field(default=0, ge=0)
    """So many first decoder layers stay in bfloat16. Not with `delayed`."""
    last_layers_bf16: int = Field(default=0, ge=0)
    """So many last decoder layers stay in bfloat16. Not with `delayed`."""
    parameters: bool = False
    """Keep the linear layers' weights themselves in FP8, not in bfloat16 copied to FP8 for every step: less memory, and gathers
    of half the size. Engines, exports and checkpoints then get these weights, widened to bfloat16; the float32 master weights
    go on from exact values within a phase, and from the FP8 ones at the next phase."""

    @property
    def number_format(self) -> str:
        """`e4m3` or `hybrid`."""
        return self.format or ("hybrid" if self.recipe in ("delayed", "tensorwise") else "e4m3")

    @property
    def side_multiple(self) -> int:
        """Of what each side of a rank's weight matrix must be a multiple: the products read 16 bytes at a time, and MXFP8
        scales groups of 32."""
        return 32 if self.recipe == "mxfp8" else 16

    def token_multiple(self, tensor: int) -> int:
        """Of what the tokens on one rank must be a multiple.

        They are a side of the products too. Blocks of 128 are whole on every rank where tensor-parallel ranks gather them
        (Transformer-Engine 2.11: `assert_dim_for_all_gather`).
        """
        return 128 if self.recipe == "blockwise" and tensor > 1 else self.side_multiple
