"""Recipes: names and fields that Megatron-Core sets. Pydantic's dataclasses, as the real ones: they pass over what they do not
know (Megatron-Core 0.16 gives `params_dtype` and `device` to a recipe)."""

from enum import Enum

from pydantic.dataclasses import dataclass


class Format(Enum):
    E4M3 = "e4m3"
    HYBRID = "hybrid"


@dataclass
class Recipe:
    fp8_format: Format = Format.E4M3
    fp8_dpa: bool = False

    def delayed(self):
        return isinstance(self, DelayedScaling)


@dataclass
class DelayedScaling(Recipe):
    margin: int = 0
    amax_history_len: int = 1024
    amax_compute_algo: str = "max"
    reduce_amax: bool = True
    fp8_mha: bool = False


class Float8CurrentScaling(Recipe):
    pass


class Float8BlockScaling(Recipe):
    pass


class MXFP8BlockScaling(Recipe):
    pass
