"""The configuration of an evaluation that names benchmarks and no file: what Octopus' paper evaluates with (its appendix)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octopus_mcore.config.load import read_hf_config

TEMPERATURE, TOP_P, MAX_NEW_TOKENS = 0.6, 0.95, 16_384
MAX_PROMPT_TOKENS = 16_384
"""Above any benchmark's prompts at the image sizes of Qwen's checkpoints; a longer one is an error, never left out."""

_EXPORT = "export"


def evaluation_tree(model: Path) -> dict[str, Any]:
    """A configuration, as YAML would give it, for evaluating the Hugging Face folder `model` (or a run directory's export)
    without sets. Nothing is trained by it: it has no phases, and its training source is never opened."""
    folder = model if (model / "config.json").is_file() else model / _EXPORT
    hf_config = read_hf_config(folder) or {}
    dtype = str(hf_config.get("dtype") or hf_config.get("torch_dtype") or _inner_dtype(hf_config))
    return {
        "run": {"name": "evaluation"},
        "model": {"path": str(folder), "dtype": "float32" if dtype == "float32" else "bfloat16"},
        "data": {
            "train": {"target": "octopus_mcore.data.rows:RowSource", "options": {"path": "none"}},
            "max_prompt_tokens": MAX_PROMPT_TOKENS,
        },
        "phases": {},
        "eval": {"temperatures": [TEMPERATURE], "top_p": TOP_P, "max_new_tokens": MAX_NEW_TOKENS},
    }


def _inner_dtype(hf_config: Mapping[str, Any]) -> Any:
    """The dtype of the language model, where a vision-language configuration keeps it."""
    text = hf_config.get("text_config") or {}
    return text.get("dtype") or text.get("torch_dtype")


def set_overrides(benchmarks: Mapping[str, Path], prompt_suffix: str | None) -> list[str]:
    """Overrides that add a set for each benchmark, under its name."""
    overrides = []
    for name, path in benchmarks.items():
        chosen = {"benchmark": name, "path": str(path), "prompt_suffix": prompt_suffix}
        overrides.append(f"eval.sets.{set_name(name)}={json.dumps(chosen)}")
    return overrides


def set_name(benchmark: str) -> str:
    """What the set of a benchmark is called: its name, or of one named by import path the last part of its module."""
    return benchmark.partition(":")[0].rpartition(".")[2] if ":" in benchmark else benchmark
