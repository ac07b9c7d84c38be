"""What the benchmarks of a policy share: random checkpoints in the shapes of real ones, random rows, and a timed update."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import PretrainedConfig, Qwen3Config, Qwen3VLConfig

from benchmarks.recorded_batch import IMAGE, IMAGE_END, IMAGE_START, PATCH, RecordedBatch, StepSettings
from octopus_mcore.config.loss import LossConfig
from octopus_mcore.config.precision import FP8Config
from octopus_mcore.config.schema import BatchConfig, Config, DataConfig, ModelConfig, OptimizerConfig, RunConfig
from octopus_mcore.config.section import PluginConfig
from octopus_mcore.experience.types import ImageRef, ProcessedImage, TrainingSignal
from octopus_mcore.models.families import expected_tensors, family_of
from octopus_mcore.policy.objectives import PolicyObjective, RowSignal
from octopus_mcore.policy.policy import Policy, UpdateReport
from octopus_mcore.policy.rows import Row
from octopus_mcore.runtime.seeds import numpy_generator, torch_generator
from octopus_mcore.runtime.world import World

SHAPES = {
    # layers, hidden, MLP, query heads, key-value heads, head, vocabulary, tied; tower: depth, hidden, MLP, heads, deepstack
    "tiny": (2, 64, 128, 4, 2, 16, 512, True, (2, 32, 64, 2, (0, 1))),
    "small": (4, 256, 512, 8, 4, 32, 1024, False, (2, 64, 128, 2, (0, 1))),
    "step": (4, 256, 768, 8, 4, 32, 4096, False, (2, 64, 128, 2, (0, 1))),
    "2b": (28, 2048, 6144, 16, 8, 128, 151936, True, (24, 1024, 4096, 16, (5, 11, 17))),
    "8b": (36, 4096, 12288, 32, 8, 128, 151936, False, (27, 1152, 4304, 16, (8, 16, 24))),
}
"""Qwen3-VL's dense models, and three for CPUs: `tiny` tries programs out, `small` has sides that every FP8 recipe takes, and in
`step` the parts of a step have about the shares that they have in `2b`."""


def shape_config(name: str, vision: bool = True) -> PretrainedConfig:
    """The configuration of a shape, as Qwen3-VL, or as Qwen3 without its tower. Vision tokens are the first ids behind 4."""
    layers, hidden, ffn, heads, groups, head, vocabulary, tied, tower = SHAPES[name]
    text = dict(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head,
        max_position_embeddings=262144,
    )
    rope = dict(rope_type="default", rope_theta=5e6)
    if not vision:
        return Qwen3Config(**text, rope_parameters=rope, tie_word_embeddings=tied)
    depth, width, inner, tower_heads, deepstack = tower
    sections = [head // 2 - 2 * (head // 6), head // 6, head // 6]
    return Qwen3VLConfig(
        text_config=text | {"rope_parameters": rope | dict(mrope_section=sections, mrope_interleaved=True)},
        vision_config=dict(
            depth=depth,
            hidden_size=width,
            intermediate_size=inner,
            num_heads=tower_heads,
            out_hidden_size=hidden,
            deepstack_visual_indexes=list(deepstack),
        ),
        image_token_id=IMAGE,
        video_token_id=6,
        vision_start_token_id=IMAGE_START,
        vision_end_token_id=IMAGE_END,
        tie_word_embeddings=tied,
    )


def random_checkpoint(shape: str, folder: Path, vision: bool = True) -> Path:
    """A checkpoint with random bfloat16 weights in `folder`; one that is there already is taken as it is."""
    if not (folder / "model.safetensors").is_file():
        config = shape_config(shape, vision)
        config.architectures = [family_of(config).hf_class.__name__]
        config.save_pretrained(folder)
        generator = torch_generator("random policy", shape)
        tensors = {
            name: (torch.randn(size, generator=generator) * 0.02 + (len(size) == 1 and "norm" in name)).bfloat16()
            for name, size in expected_tensors(config).items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@dataclass(frozen=True)
class Workload:
    """Rows with their images and training signals."""

    rows: list[Row]
    images: dict[str, ProcessedImage]
    objective: PolicyObjective

    @property
    def selections(self) -> list[np.ndarray]:
        """The response tokens whose log-probs count: all."""
        return self.objective.selections


def workload(rows: int, prompt: int, response: int, images: int, side: int, vocabulary: int) -> Workload:
    """`rows` rows of `prompt` text tokens, `images` images of `side` × `side` visual tokens each, and `response` tokens."""
    draw = numpy_generator("random policy", rows)
    made, lengths, pictures = [], [], {}
    for number in range(rows):
        tokens, references = list(draw.integers(8, vocabulary, prompt)), []
        for index in range(images):
            key, grid = f"{number}.{index}", (1, 2 * side, 2 * side)
            pictures[key] = ProcessedImage(draw.standard_normal((4 * side * side, PATCH), dtype=np.float32), grid)
            references.append(ImageRef(key, len(tokens) + 1, grid, side * side))
            tokens += [IMAGE_START, *[IMAGE] * (side * side), IMAGE_END]
        lengths.append(len(tokens))
        tokens += list(draw.integers(8, vocabulary, response))
        made.append(Row(f"row {number}", np.array(tokens, dtype=np.int64), lengths[-1], tuple(references)))
    everything = np.ones(response, dtype=bool)
    signals = [
        RowSignal(
            TrainingSignal(everything, ~everything, draw.standard_normal(response).astype(np.float32)),
            np.full(response, -np.log(vocabulary), dtype=np.float32),
        )
        for _ in range(rows)
    ]
    return Workload(made, pictures, PolicyObjective(LossConfig(kind="grpo"), signals))


def recorded_workload(batch: RecordedBatch, settings: StepSettings) -> Workload:
    """A recorded batch as rows; rows of a group share their image, and their prompt's and first attempts' ids."""
    # Keys stand for contents: batches of one run are told apart by theirs.
    keys = [f"{number}.{pixels.sum():.6f}" for number, pixels in enumerate(batch.pixels)]
    images = {key: ProcessedImage(pixels, batch.grid) for key, pixels in zip(keys, batch.pixels, strict=True)}
    rows = []
    for number, (tokens, group) in enumerate(zip(batch.token_ids, batch.group.tolist(), strict=True)):
        references = (ImageRef(keys[group], batch.image_offset, batch.grid, batch.side**2),) if batch.side else ()
        rows.append(Row(f"row {number}", tokens, batch.prompt_length, references))
    everything = np.ones(batch.responses.shape[1], dtype=bool)
    signals = [
        RowSignal(TrainingSignal(everything, ~everything, np.full(len(everything), advantage, dtype=np.float32)), old)
        for advantage, old in zip(batch.advantages, batch.old_log_probs, strict=True)
    ]
    loss = LossConfig(
        kind=settings.loss, clip_low=settings.clip_low, clip_high=settings.clip_high, dual_clip=settings.dual_clip
    )
    return Workload(rows, images, PolicyObjective(loss, signals))


def step_config(settings: StepSettings, share_prefixes: bool, parallel: dict | None = None) -> Config:
    """Our run's configuration for a step's settings, in float32."""
    return Config(
        run=RunConfig(name="benchmark"),
        parallel=parallel or {},
        model=ModelConfig(path=settings.checkpoint, dtype="float32"),
        data=DataConfig(train=PluginConfig(target="none:none")),
        batch=BatchConfig(max_tokens_per_micro_batch=settings.max_tokens, share_prefixes=share_prefixes),
        optimizer=OptimizerConfig(
            # A rate of 0 is no configuration; each update is told its own.
            lr=settings.learning_rate or 1e-6,
            weight_decay=settings.weight_decay,
            clip_grad=settings.clip_grad,
        ),
        phases={},
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Shape, workload and repetitions."""
    parser.add_argument("--shape", choices=SHAPES, default="2b")
    parser.add_argument("--folder", type=Path, required=True, help="where random checkpoints are made and kept, by shape")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=300, help="text tokens of a prompt")
    parser.add_argument("--response", type=int, default=500)
    parser.add_argument("--images", type=int, default=1, help="images of a prompt")
    parser.add_argument("--side", type=int, default=16, help="visual tokens along a side of an image")
    parser.add_argument("--max-tokens", type=int, default=8192, help="tokens of a micro-batch")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--recompute", choices=["none", "selective", "full"], default="none")
    parser.add_argument("--repetitions", type=int, default=5)


def workload_of(options: argparse.Namespace) -> Workload:
    """The workload that the options describe."""
    vocabulary = SHAPES[options.shape][6]
    return workload(options.rows, options.prompt, options.response, options.images, options.side, vocabulary)


def config_of(options: argparse.Namespace, layer_spec: str, fp8: FP8Config | None, parallel: dict | None = None) -> Config:
    """The run's configuration for these options."""
    folder = random_checkpoint(options.shape, options.folder / options.shape)
    return Config(
        run=RunConfig(name="benchmark"),
        parallel=parallel or {},
        model=ModelConfig(path=str(folder), dtype=options.dtype, layer_spec=layer_spec, fp8=fp8, recompute=options.recompute),
        data=DataConfig(train=PluginConfig(target="none:none")),
        batch=BatchConfig(max_tokens_per_micro_batch=options.max_tokens),
        optimizer=OptimizerConfig(lr=1e-6),
        phases={},
    )


def single_rank() -> None:
    """Without a launcher, this process is the world."""
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29533}.items():
        os.environ.setdefault(name, str(value))


@dataclass(frozen=True)
class Timed:
    """Median seconds of an update, the last report, and the peak of the device's memory in bytes (0 on a CPU)."""

    seconds: float
    report: UpdateReport
    peak_bytes: int


def timed_updates(policy: Policy, work: Workload, world: World, repetitions: int) -> Timed:
    """Updates with a learning rate of 0: one to warm up, the others timed, each from a barrier to the device's end."""
    seconds: list[float] = []
    cuda = world.device.type == "cuda"
    for repetition in range(repetitions + 1):
        if cuda:
            torch.cuda.synchronize()
        if cuda and repetition == 1:
            torch.cuda.reset_peak_memory_stats()
        world.barrier()
        start = time.perf_counter()
        report = policy.update(work.rows, work.objective, temperature=1.0, learning_rate=0.0)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return Timed(statistics.median(seconds[1:]), report, torch.cuda.max_memory_allocated() if cuda else 0)


def distance(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean and largest |Δ log-prob|."""
    difference = np.abs(np.concatenate(list(ours)) - np.concatenate(list(theirs)))
    return float(difference.mean()), float(difference.max())
