from contextlib import contextmanager

import torch


class CudaRNGStatesTracker:
    """A base class of Megatron's."""


@contextmanager
def activation_recompute_forward(activation_recompute=False, recompute_phase=False):
    yield


def is_fp8_activation_recompute_enabled():
    return False


def checkpoint(function, *args, distribute_saved_activations=False, get_rng_state_tracker=None, tp_group=None):
    from transformer_engine.pytorch.fp8 import FP8GlobalStateManager, fp8_autocast

    enabled, recipe = FP8GlobalStateManager.FP8_ENABLED, FP8GlobalStateManager.FP8_RECIPE

    def again(*inputs):
        with fp8_autocast(enabled=enabled, fp8_recipe=recipe):
            return function(*inputs)

    return torch.utils.checkpoint.checkpoint(again, *args, use_reentrant=True)
