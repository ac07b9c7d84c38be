"""Linear layers and norms with the real constructors, in plain torch, for one tensor-parallel rank."""

import pickle

import torch
from torch.nn import functional

from transformer_engine.pytorch.fp8 import FP8GlobalStateManager


def _rounded(values):
    """To FP8 and back, one factor a tensor; gradients go straight through."""
    factor = values.detach().abs().amax().clamp(min=1e-12) / 448
    low = (values.detach() / factor).to(torch.float8_e4m3fn).to(values.dtype) * factor
    return values + (low - values.detach())


def _mark_split(tensor, dim):
    tensor.tensor_model_parallel, tensor.partition_dim, tensor.partition_stride = True, dim, 1


class _Base(torch.nn.Module):
    """What the audit and checkpoints read of `TransformerEngineBaseModule`."""

    def __init__(self, in_features, out_features, bias, return_bias, params_dtype, device, tp_size, init_method, mode):
        super().__init__()
        assert tp_size == 1, "the stand-in has no tensor parallelism"
        self.fp8 = False
        self.fp8_meta = {}
        self.activation_dtype = None
        self.in_features, self.out_features, self.use_bias, self.return_bias = in_features, out_features, bias, return_bias
        self.tp_size, self.sequence_parallel, self.parallel_mode = tp_size, False, mode
        self.weight = torch.nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=params_dtype))
        init_method(self.weight)
        _mark_split(self.weight, 1 if mode == "row" else 0)
        if bias:
            self.bias = torch.nn.Parameter(torch.zeros(out_features, device=device, dtype=params_dtype))
            if mode == "column":
                _mark_split(self.bias, 0)
        else:
            self.bias = torch.empty(0, dtype=params_dtype)

    def _product(self, values):
        assert values.dtype == self.weight.dtype, "Data types for parameters must match when outside of autocasted region."
        self.fp8, self.activation_dtype = FP8GlobalStateManager.is_fp8_enabled(), values.dtype
        weight, bias = self.weight, self.bias if self.use_bias and not self.return_bias else None
        if self.fp8:
            self.fp8_meta["recipe"] = FP8GlobalStateManager.get_fp8_recipe()
            for operand in (values, weight):
                assert operand.shape[:-1].numel() % 8 == 0 and operand.shape[-1] % 16 == 0, f"FP8 dims={list(operand.shape)}"
            values, weight = _rounded(values), _rounded(weight)
        out = functional.linear(values, weight, bias)
        return (out, self.bias) if self.return_bias else out

    def get_extra_state(self):
        if not self.fp8:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(bytearray(pickle.dumps({"recipe": type(self.fp8_meta["recipe"]).__name__})), dtype=torch.uint8)

    def set_extra_state(self, state):
        self.restored = None if state is None or state.numel() == 0 else pickle.loads(state.numpy().tobytes())


class Linear(_Base):
    def __init__(
        self,
        in_features,
        out_features,
        sequence_parallel=False,
        fuse_wgrad_accumulation=False,
        tp_group=None,
        tp_size=1,
        get_rng_state_tracker=None,
        rng_tracker_name=None,
        init_method=None,
        bias=True,
        return_bias=False,
        params_dtype=None,
        parallel_mode=None,
        parameters_split=None,
        device="cuda",
        ub_overlap_ag=False,
        ub_overlap_rs=False,
        ub_overlap_rs_dgrad=False,
        ub_bulk_dgrad=False,
        ub_bulk_wgrad=False,
        ub_name=None,
        delay_wgrad_compute=False,
        symmetric_ar_type=None,
        save_original_input=False,
        name=None,
    ):
        super().__init__(
            in_features, out_features, bias, return_bias, params_dtype, device, tp_size, init_method, parallel_mode
        )
        self.save_original_input = save_original_input

    def forward(self, inp, is_first_microbatch=None, fp8_output=False):
        return self._product(inp)


class LayerNormLinear(_Base):
    def __init__(
        self,
        in_features,
        out_features,
        eps=1e-5,
        sequence_parallel=False,
        fuse_wgrad_accumulation=False,
        tp_group=None,
        tp_size=1,
        get_rng_state_tracker=None,
        init_method=None,
        bias=True,
        normalization="LayerNorm",
        return_bias=False,
        params_dtype=None,
        parallel_mode=None,
        return_layernorm_output=False,
        return_layernorm_output_gathered=False,
        parameters_split=None,
        zero_centered_gamma=False,
        device="cuda",
        ub_overlap_ag=False,
        ub_overlap_rs=False,
        ub_overlap_rs_dgrad=False,
        ub_bulk_wgrad=False,
        ub_bulk_dgrad=False,
        ub_name=None,
        delay_wgrad_compute=False,
        symmetric_ar_type=None,
        name=None,
    ):
        super().__init__(
            in_features, out_features, bias, return_bias, params_dtype, device, tp_size, init_method, parallel_mode
        )
        assert normalization == "RMSNorm" and not zero_centered_gamma and not return_layernorm_output
        self.eps = eps
        self.layer_norm_weight = torch.nn.Parameter(torch.ones(in_features, device=device, dtype=params_dtype))
        self.layer_norm_weight.sequence_parallel = sequence_parallel and tp_size > 1

    def forward(self, inp, is_first_microbatch=None, fp8_output=False, fp8_grad=False):
        return self._product(functional.rms_norm(inp, (self.in_features,), self.layer_norm_weight, self.eps))


class RMSNorm(torch.nn.Module):
    def __init__(
        self,
        normalized_shape=None,
        eps=1e-5,
        sequence_parallel=None,
        params_dtype=None,
        zero_centered_gamma=False,
        hidden_size=None,
        device="cuda",
    ):
        super().__init__()
        size = normalized_shape if hidden_size is None else hidden_size
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(size, device=device, dtype=params_dtype))
        self.weight.sequence_parallel = sequence_parallel

    def forward(self, values):
        return functional.rms_norm(values, self.weight.shape, self.weight, self.eps)

    def get_extra_state(self):
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state):
        pass


class LayerNorm:
    """Never made: every family has RMSNorm."""
