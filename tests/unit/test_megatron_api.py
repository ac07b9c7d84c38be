"""The installed Megatron-Core has what the package uses; and the program that says so finds each kind of fault."""

from __future__ import annotations

import shutil
from pathlib import Path

import megatron.core
import pytest

from tools.check_megatron_api import ROOT, check_sources

INSTALLED = Path(next(iter(megatron.core.__path__))).parent.parent


def test_the_installed_megatron_offers_what_the_package_uses() -> None:
    findings = check_sources(INSTALLED)
    assert findings.misfits == []
    assert all(findings.checked[what] for what in ("imports", "calls", "attributes", "overrides", "calls by Megatron"))
    assert findings.checked["imports"] >= 40 and findings.checked["calls"] >= 40


SOUND = """
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import ChainedOptimizer, OptimizerConfig
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

FURTHER = {"clip_grad": 1.0}


class Norm(MegatronModule):
    def __init__(self, config, hidden_size, eps=1e-6, **unused):
        super().__init__(config=config)
        self.config.hidden_size


class Layer(TransformerLayer):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def step(optimizer: ChainedOptimizer | None) -> OptimizerConfig:
    optimizer.prepare_grads()
    TransformerLayerSubmodules(input_layernorm=Norm)
    TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=2)
    parallel_state.get_data_parallel_group(with_context_parallel=True)
    DistributedDataParallelConfig(True)
    return OptimizerConfig(lr=1.0, **FURTHER, **(dict(min_lr=0.0) if optimizer else {}))
"""

FAULTS = {
    "wrong import": ("import ChainedOptimizer,", "import ChainedOptimiser,", "megatron.core.optimizer has no ChainedOptimiser"),
    "wrong module": ("core.transformer.module ", "core.transformer.modul ", "no module megatron.core.transformer.modul"),
    "wrong function": ("get_data_parallel_group(", "data_parallel_group(", "has no data_parallel_group"),
    "wrong keyword": ("with_context_parallel", "with_context", "no parameter with_context"),
    "wrong inherited field": ("num_layers=1", "num_layer=1", "no parameter num_layer"),
    "wrong keyword behind a name": ('"clip_grad"', '"clip"', "no parameter clip"),
    "wrong keyword in a dictionary": ("min_lr", "minimal_lr", "no parameter minimal_lr"),
    "missing argument": ("super().__init__(config=config)", "super().__init__()", "missing argument config"),
    "too many arguments": ("optimizer.prepare_grads()", "optimizer.prepare_grads(1)", "1 positional arguments"),
    "wrong method": ("optimizer.prepare_grads()", "optimizer.prepare()", "has no prepare"),
    "wrong inherited attribute": ("self.config.hidden_size", "self.configuration", "has no configuration"),
    "wrong constructor of a base": ("super().__init__(config=config)", "super().__init__(cfg=config)", "no parameter cfg"),
    "override that takes too little": ("self, *args, **kwargs):", "self, hidden_states):", "Layer.forward does not take"),
    "module that Megatron cannot build": ("config, hidden_size, eps=1e-6, **unused", "config, width", "Megatron builds Norm"),
}


def misfits_of(folder: Path, text: str) -> list[str]:
    (folder / "octopus_mcore").mkdir(exist_ok=True)
    (folder / "octopus_mcore" / "uses.py").write_text(text)
    return check_sources(INSTALLED, folder).misfits


def test_sound_uses_are_let_through(tmp_path: Path) -> None:
    assert misfits_of(tmp_path, SOUND) == []


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_each_kind_of_fault_is_found(fault: str, tmp_path: Path) -> None:
    sound, broken, said = FAULTS[fault]
    assert SOUND.count(sound) == 1
    (line,) = misfits_of(tmp_path, SOUND.replace(sound, broken))[:1] or [""]
    assert said in line, fault


def test_a_private_helper_that_is_patched_must_exist(tmp_path: Path) -> None:
    """The stand-in for CUDA replaces functions inside Megatron; a renamed one would go on calling CUDA."""
    package = tmp_path / "octopus_mcore" / "runtime"
    package.mkdir(parents=True)
    stand_in = shutil.copy(ROOT / "octopus_mcore" / "runtime" / "cpu_stand_in.py", package)
    assert check_sources(INSTALLED, tmp_path).misfits == []
    text = Path(stand_in).read_text()
    Path(stand_in).write_text(text.replace("_get_cuda_rng_state =", "_get_gpu_rng_state ="))
    (line,) = check_sources(INSTALLED, tmp_path).misfits
    assert "has no _get_gpu_rng_state" in line
