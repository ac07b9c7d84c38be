from contextlib import contextmanager


class FP8GlobalStateManager:
    FP8_ENABLED = False
    FP8_RECIPE = None

    @classmethod
    def is_fp8_enabled(cls):
        return cls.FP8_ENABLED

    @classmethod
    def get_fp8_recipe(cls):
        return cls.FP8_RECIPE


@contextmanager
def fp8_autocast(enabled=True, calibrating=False, fp8_recipe=None, fp8_group=None, _graph=False):
    state = FP8GlobalStateManager
    before = state.FP8_ENABLED, state.FP8_RECIPE
    state.FP8_ENABLED, state.FP8_RECIPE = enabled, fp8_recipe
    try:
        yield
    finally:
        state.FP8_ENABLED, state.FP8_RECIPE = before


@contextmanager
def fp8_model_init(enabled=True, recipe=None, preserve_high_precision_init_val=False):
    raise NotImplementedError("FP8 parameters have no stand-in")
    yield
