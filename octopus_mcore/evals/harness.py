"""How users of VLMEvalKit and lmms-eval point their tool at a served checkpoint: configurations and commands, nothing is run.

Both tools were read, not run: VLMEvalKit at commit e8e78f05 of 2026-08-18 (`vlmeval/api/gpt.py`, `run.py`), lmms-eval at commit
75571cfe of 2026-08-06 (`lmms_eval/models/chat/openai.py`, `lmms_eval/__main__.py`, `lmms_eval/tasks`). What they would do in
silence is refused or said here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

VLMEVALKIT_COMMIT = "e8e78f05f3080fe28154f2130321f17951c3be94"
LMMS_EVAL_COMMIT = "75571cfe0fa36ca5ec2e6aa2bb268f9d38295af3"

VLMEVALKIT: Mapping[str, tuple[str, str]] = {
    "charxiv": ("CharXiv", "CharXiv_reasoning_val"),
    "hallusionbench": ("ImageYORNDataset", "HallusionBench"),
    "mathverse": ("MathVerse", "MathVerse_MINI"),
    "mathvision": ("MathVision", "MathVision"),
    "mathvista": ("MathVista", "MathVista_MINI"),
    "mmmu": ("MMMUDataset", "MMMU_DEV_VAL"),
    "mmstar": ("ImageMCQDataset", "MMStar"),
    "ocrbench": ("OCRBench", "OCRBench"),
    "refcoco": ("RefCOCODataset", "RefCOCO"),
    "wemath": ("WeMath", "WeMath"),
}
"""Our name → VLMEvalKit's class and data set: those of Octopus' evaluation, where it has them."""

LMMS_EVAL: Mapping[str, str] = {
    "charxiv": "charxiv_val_reasoning",
    "cvbench": "cv_bench",
    "geometry3k": "geometry3k",
    "hallusionbench": "hallusion_bench_image",
    "mathverse": "mathverse_testmini",
    "mathvision": "mathvision_test",
    "mathvista": "mathvista_testmini_cot",
    "mmmu": "mmmu_val",
    "mmstar": "mmstar",
    "ocrbench": "ocrbench",
    "refcoco": "refcoco_bbox_rec_val",
    "wemath": "wemath_testmini_reasoning",
}
"""Our name → lmms-eval's task."""

_VLMEVALKIT_NAMES = (
    "step",
    "yi-vision",
    "internvl2-pro",
    "abab",
    "moonshot",
    "grok",
    "gemini",
    "ernie",
    "o1",
    "o3",
    "o4",
    "gpt-5",
)
_LMMS_EVAL_NAMES = ("o1", "o3", "o4", "gpt-5")
"""Parts of a model's name by which the tools take it for a provider's: other keys and addresses, no temperature."""


@dataclass(frozen=True)
class Served:
    """A checkpoint behind an OpenAI-compatible chat interface: its base address (`http://host:port/v1`), the name that the
    server gives it, and how to sample."""

    url: str
    model: str
    temperature: float
    top_p: float
    max_tokens: int

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")) or not self.url.rstrip("/").endswith("/v1"):
            raise ValueError(f"expected the base address of the chat interface, as http://host:port/v1, found {self.url!r}")


def vlmevalkit_config(served: Served, benchmarks: Sequence[str]) -> dict[str, dict[str, dict]]:
    """The configuration for VLMEvalKit's `run.py --config`.

    The class is `GPT4V`; its `api_base` is the whole address of the chat service, what it does not know (`top_p`) goes into
    every request, and images are sent in full size (`img_size: -1`; it sends them as JPEG).

    Raises:
        ValueError: it has no such benchmark, or would take the model for another provider's.
    """
    _check_name(served.model, _VLMEVALKIT_NAMES, "VLMEvalKit")
    chosen = _known(benchmarks, VLMEVALKIT, "VLMEvalKit")
    model = {
        "class": "GPT4V",
        "model": served.model,
        "api_base": f"{served.url.rstrip('/')}/chat/completions",
        "key": "none",
        "temperature": served.temperature,
        "top_p": served.top_p,
        "max_tokens": served.max_tokens,
        "img_size": -1,
        "img_detail": "high",
        "timeout": 3600,
        "retry": 3,
        "verbose": False,
    }
    data = {dataset: {"class": name, "dataset": dataset} for name, dataset in chosen}
    return {"model": {served.model.replace("/", "_"): model}, "data": data}


def vlmevalkit_command(file: str) -> str:
    """How VLMEvalKit is started with a configuration file, in its repository."""
    return f"python run.py --config {shlex.quote(file)} --work-dir outputs --api-nproc 32"


def lmms_eval_command(served: Served, benchmarks: Sequence[str]) -> str:
    """The command of lmms-eval for its model `openai`. It sends temperature and length but never `top_p`, so the server's own
    default holds: see `notes`.

    Raises:
        ValueError: it has no such benchmark, or would take the model for another provider's; or a comma or an equals sign
            stands in what becomes one of its comma-separated arguments.
    """
    _check_name(served.model, _LMMS_EVAL_NAMES, "lmms-eval")
    arguments = {
        "model_version": served.model,
        "base_url": served.url.rstrip("/"),
        "api_key": "none",
        "timeout": "3600",
        "num_concurrent": "32",
    }
    for name, value in arguments.items():
        if "," in value or "=" in value:
            raise ValueError(f"lmms-eval separates its arguments by commas and equals signs; found {name}={value!r}")
    generation = {"temperature": f"{served.temperature:g}", "max_new_tokens": str(served.max_tokens)}
    if served.temperature > 0:
        generation["do_sample"] = "True"
    tasks = ",".join(_known(benchmarks, LMMS_EVAL, "lmms-eval"))
    parts = ["python", "-m", "lmms_eval", "--model", "openai", "--model_args", _joined(arguments)]
    parts += ["--gen_kwargs", _joined(generation), "--tasks", tasks, "--log_samples", "--output_path", "outputs"]
    return shlex.join(parts)


def serving_commands(checkpoint: str, served: Served) -> dict[str, str]:
    """How SGLang and vLLM serve an exported Hugging Face folder under this name, at this address' port."""
    port = served.url.rpartition("/v1")[0].rpartition(":")[2]
    port = port if port.isdigit() else "30000"
    folder, name = shlex.quote(checkpoint), shlex.quote(served.model)
    return {
        "SGLang": f"python -m sglang.launch_server --model-path {folder} --served-model-name {name} --port {port}",
        "vLLM": f"vllm serve {folder} --served-model-name {name} --port {port}",
    }


def notes(tool: str, served: Served) -> list[str]:
    """What a user should know before comparing the tool's numbers with ours."""
    common = (
        "The tool asks by its own prompts, without the self-correction instruction, and grades the whole response: a response "
        "that corrects itself is graded by what its rules or its judge make of both answers."
    )
    if tool == "vlmevalkit":
        return [common, "Many of its data sets ask a judge model: see its --judge and its .env file."]
    top_p = f"It never sends top_p: serve with a default of {served.top_p:g} where that matters (generation_config.json)."
    return [common, *([top_p] if served.top_p < 1 else [])]


def config_text(config: Mapping) -> str:
    """The configuration as VLMEvalKit reads it."""
    return json.dumps(config, indent=2) + "\n"


def _joined(arguments: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in arguments.items())


def _known(benchmarks: Sequence[str], names: Mapping, tool: str) -> list:
    if unknown := [name for name in benchmarks if name not in names]:
        raise ValueError(f"{tool} has no counterpart of {', '.join(unknown)}; it has those of {', '.join(names)}")
    if not benchmarks:
        raise ValueError(f"name at least one benchmark of {', '.join(names)}")
    return [names[name] for name in benchmarks]


def _check_name(model: str, parts: Sequence[str], tool: str) -> None:
    if found := [part for part in parts if part in model]:
        raise ValueError(
            f"{tool} takes the model {model!r} for another provider's, because {found[0]!r} stands in its name: it would use "
            "other keys, addresses or settings in silence. Serve it under another name (--served-model-name)"
        )
