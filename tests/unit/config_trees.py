"""A small valid configuration for tests of the configuration, the records and the command line."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

_TREE: dict[str, Any] = {
    "run": {"name": "small"},
    "model": {"path": "absent/model", "create": {"target": "package:make"}, "dtype": "float32"},
    "data": {"train": {"target": "package:rows"}, "max_prompt_tokens": 32},
    "rollout": {"n": 4, "max_new_tokens": 48},
    "loss": {"clip_low": 0.03, "clip_high": 0.04},
    "optimizer": {"lr": 1e-4, "warmup_steps": 3},
    "phases": {
        "cold": {"kind": "sft", "steps": 20, "batch_size": 8, "source": {"target": "package:pairs"}},
        "stage1": {
            "kind": "rl",
            "steps": 6,
            "prompts_per_step": 8,
            "updates_per_step": 2,
            "buffer": {"mask": "first"},
            "loss": {"kl_coefficient": 0.1},
        },
        "stage2": {"kind": "rl", "steps": 4, "prompts_per_step": 8, "buffer": {"mask": "changed"}, "optimizer": {"lr": 5e-5}},
    },
    "eval": {
        "sets": {"validation": {"source": {"target": "package:rows"}}, "test": {"source": {"target": "package:rows"}}},
        "during_training": ["validation"],
    },
    "checkpoint": {"best_by": "validation/T1/final_accuracy"},
}


def tree() -> dict[str, Any]:
    """A fresh copy of the valid tree."""
    return copy.deepcopy(_TREE)


def write(folder: Path, content: Any = None) -> Path:
    """The tree (or other content) as a YAML file in `folder`."""
    file = folder / "run.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content or tree(), sort_keys=False))
    return file
