"""The configuration tree. Every field carries its docstring; unknown keys fail; `octopus_mcore.config.load` reads YAML into it.

Top-level sections `rollout`, `rewards`, `buffer`, `loss` and `optimizer` are the defaults of every phase; a phase overrides any
of their keys under the same section name, and the loader merges them, so a validated phase always holds complete sections.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from octopus_mcore.config.buffer import BufferConfig
from octopus_mcore.config.coldstart import ColdStartConfig
from octopus_mcore.config.evaluation import EvalConfig
from octopus_mcore.config.loss import LossConfig
from octopus_mcore.config.precision import FP8Config
from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.config.rollout import RolloutConfig
from octopus_mcore.config.section import PluginConfig, Section
from octopus_mcore.config.vocabulary import HF_FOLDER


class RunConfig(Section):
    """Where a run lives and what makes it reproducible."""

    name: str
    """Name of the run; its directory is `<root>/<name>`."""
    root: str = "runs"
    """Folder that holds run directories, relative to the working directory."""
    seed: int = 0
    """The seed from which, with step and uid, every random choice is drawn."""
    resume: Literal["auto", "never"] = "auto"
    """`auto` goes on from the newest complete checkpoint of the run directory; `never` refuses a directory that holds one."""


class RuntimeConfig(Section):
    """How a process uses its machine."""

    threads: int = Field(default=1, ge=1)
    """CPU threads of one rank. More than one on a busy machine spins and can cost 15×."""
    timeout_minutes: float = Field(default=30.0, gt=0)
    """Deadline of every wait between ranks: a collective, or ranks that wait for others to generate or evaluate (so more than
    the longest generation takes). Past it the run ends; where ranks exchange results, the error names the missing ones."""


class ParallelConfig(Section):
    """The layout: world size = tensor × pipeline × context × data."""

    tensor: int = Field(default=1, ge=1)
    """Tensor-parallel size (TP)."""
    pipeline: int = Field(default=1, ge=1)
    """Pipeline-parallel size (PP)."""
    virtual: int = Field(default=1, ge=1)
    """Virtual pipeline stages of each pipeline rank (VPP): the interleaved schedule has smaller bubbles and sends more often.
    The number of micro-batches is filled up to a multiple of the pipeline size."""
    stages: list[Annotated[int, Field(ge=0)]] | None = None
    """Layers of each of the pipeline × virtual stages, in the model's order, for stages of uneven work (the first holds
    embedding and vision tower, the last the output matrix); null cuts as evenly as possible."""
    context: int = Field(default=1, ge=1)
    """Context-parallel size (CP): ranks that share the tokens of a micro-batch; for rows too long for one device."""
    data: int | None = Field(default=None, ge=1)
    """Data-parallel size (DP); null takes what the launched world leaves, or 1 when this command starts the ranks itself."""

    @property
    def sequence_parallel(self) -> bool:
        """Whether activations between blocks are split over the tensor-parallel ranks: always, where there are several."""
        return self.tensor > 1

    @property
    def virtual_stages(self) -> int:
        """Pieces that the layers are cut into: pipeline × virtual."""
        return self.pipeline * self.virtual

    @property
    def model_size(self) -> int:
        """Ranks of one data-parallel replica: tensor × pipeline × context."""
        return self.tensor * self.pipeline * self.context

    @property
    def token_multiple(self) -> int:
        """What a micro-batch's length is padded to a multiple of: each context-parallel rank takes two equal pieces, and the
        tensor-parallel ranks share their tokens out."""
        return self.tensor * (2 * self.context if self.context > 1 else 1)


class ModelConfig(Section):
    """The checkpoint that the run starts from and how the policy computes with it."""

    path: str | None = None
    """Folder of a Hugging Face checkpoint (config, safetensors, tokenizer, image processor); needed unless `checkpoint` is
    given."""
    checkpoint: str | None = None
    """Megatron checkpoint, converted or saved by a run at any layout, whose weights the run starts from instead of those in
    `path`. Without `path`, configuration, tokenizer and image processor are the checkpoint's own."""
    create: PluginConfig | None = None
    """Function called with `path` and its options when `path` does not exist yet: for models made from a recipe."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Compute and parameter dtype of the policy; the optimizer keeps float32 master weights."""
    layer_spec: Literal["local", "te"] = "local"
    """Layer implementation: `local` is Megatron-Core's own torch layers, `te` Transformer-Engine's fused ones (CUDA only).
    Checkpoints of both are the same."""
    attention: Literal["auto", "sdpa", "varlen"] = "auto"
    """Kernel of the decoder's core attention: `sdpa` is torch's scaled dot-product attention over batches of tree nodes (on a
    CPU its flash kernel, whose outcomes are merged), `varlen` one variable-length FlashAttention call over all nodes (CUDA, 16
    bits). `auto` takes `varlen` where it can compute and `sdpa` elsewhere."""
    fp8: FP8Config | None = None
    """FP8 arithmetic of the decoder's linear layers, with layer_spec `te`; null computes them in `dtype`."""
    freeze_vision: bool = False
    """Keep the vision tower (and its mergers) at its loaded weights."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation recomputation in the decoder: `selective` computes each core attention again in the backward pass (the keys
    and values gathered for it, from other ranks or on a GPU from a tree's paths, are not stored), `full` each whole layer (only
    its input is stored)."""

    @property
    def folder(self) -> str:
        """The folder of configuration, tokenizer and image processor."""
        return self.path if self.path is not None else f"{self.checkpoint}/{HF_FOLDER}"


class DataConfig(Section):
    """Where prompts come from."""

    train: PluginConfig
    """Prompt source of the RL phases (a `PromptSource`): `octopus_mcore.data.rows:RowSource` for files, or your own."""
    max_prompt_tokens: int = Field(default=2048, ge=1)
    """Longer prompts (images included) are counted and left out."""
    min_pixels: int | None = Field(default=None, ge=1)
    """Smaller images are enlarged to so many pixels; null takes the checkpoint's own bound. It cannot be below that."""
    max_pixels: int | None = Field(default=None, ge=1)
    """Larger images are reduced to so many pixels; null takes the checkpoint's own bound. It cannot be above that: an engine
    that knows the checkpoint's bounds only would resize again."""
    workers: int = Field(default=1, ge=1)
    """Threads of each rank that decode and process a batch's images; their number changes no result."""
    prompt_suffix: str = ""
    """Text appended to every question behind a blank line, for instance the self-correction instruction."""


class OptimizerConfig(Section):
    """AdamW through Megatron's distributed optimizer."""

    lr: float = Field(default=1e-6, gt=0)
    """Peak learning rate."""
    min_lr: float = Field(default=0.0, ge=0)
    """Learning rate at the end of decay."""
    decay: Literal["constant", "cosine", "linear"] = "constant"
    """Learning-rate curve after warm-up."""
    warmup_steps: int = Field(default=10, ge=0)
    """Optimizer steps of linear warm-up; the first step has lr/warmup_steps, not 0."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's first-moment decay."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Adam's second-moment decay."""
    eps: float = Field(default=1e-8, gt=0)
    """Adam's epsilon."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay (not on biases and norms)."""
    clip_grad: float = Field(default=1.0, ge=0)
    """Global gradient norm bound; 0 turns it off."""
    offload: float = Field(default=0.0, ge=0, le=1)
    """Share of the parameters whose float32 weights and moments live in the host's memory, where the CPU updates them; 12 bytes
    a parameter less on the device. Needs `model.dtype: bfloat16`, and between 0 and 1 a fused Adam (Transformer-Engine or
    NVIDIA's apex) for the rest. The update takes as many CPU threads as `runtime.threads` gives."""


class BatchConfig(Section):
    """How tokens are cut into micro-batches."""

    max_tokens_per_micro_batch: int = Field(default=8192, ge=1)
    """Token budget of one packed micro-batch; a row longer than this is an error."""
    share_prefixes: bool = True
    """Compute what rows of a micro-batch have in common from their beginning (prompt, images, first attempt) once, as a prefix
    tree; the results are those of separate rows. Turned off, every row is computed whole."""


class PhaseBase(Section):
    """What every phase has."""

    steps: int = Field(ge=1)
    """Training steps of the phase."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    """Optimizer of this phase; its state starts fresh with the phase."""
    eval_every: int = Field(default=0, ge=0)
    """Evaluate after every so many steps; 0 evaluates only at the phase's end."""


class SFTPhaseConfig(PhaseBase):
    """Supervised cold start."""

    kind: Literal["sft"]
    """Supervised fine-tuning."""
    batch_size: int = Field(ge=1)
    """Sequences per step."""
    source: PluginConfig
    """An `SFTSource`: question, response text pieces and which of them are trained."""


class RLPhaseConfig(PhaseBase):
    """Reinforcement learning: one Octopus stage, or a baseline."""

    kind: Literal["rl"]
    """Reinforcement learning."""
    source: PluginConfig | None = None
    """A `PromptSource` of this phase's own, which begins at its first row; null goes on with `data.train`."""
    prompts_per_step: int = Field(ge=1)
    """Prompts (groups) per step over all ranks."""
    updates_per_step: int = Field(default=1, ge=1)
    """Optimizer updates per step; the groups are divided evenly among them."""
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    """Generation in this phase."""
    rewards: RewardConfig = Field(default_factory=RewardConfig)
    """Judging in this phase."""
    buffer: BufferConfig = Field(default_factory=BufferConfig)
    """Buffer stages of this phase."""
    loss: LossConfig = Field(default_factory=LossConfig)
    """Loss of this phase."""


PhaseConfig = Annotated[SFTPhaseConfig | RLPhaseConfig, Field(discriminator="kind")]


class CheckpointConfig(Section):
    """Distributed checkpoints of model, optimizer, schedules and everything that resumes."""

    every: int = Field(default=0, ge=0)
    """Save after every so many steps; 0 saves only at a phase's end."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints of a phase to keep; the weights of the best evaluation are exported to `best/` besides."""
    best_by: str | None = None
    """Metric `<set>/T<temperature>/<name>` of the in-training evaluation whose maximum marks the best checkpoint."""


class ObserveConfig(Section):
    """What a run writes for its readers."""

    rollouts_every: int = Field(default=10, ge=0)
    """Write the rollouts of every so many RL steps as JSONL; 0 writes none."""
    tensorboard: bool = True
    """Write TensorBoard events next to `metrics.jsonl`."""
    progress: bool = True
    """Show the live progress line (plain lines where the output is no terminal)."""


class Config(Section):
    """The whole run. A file may begin with `extends: other.yaml`, which lays it over another file
    (`octopus_mcore/config/inherit.py`)."""

    recipe: str | None = None
    """Packaged recipe whose settings lie under all that is given here (`docs/recipes.md`)."""
    compat: Literal["paper", "reference"] = "paper"
    """Which form of the recipe: `paper` is what was published and meant, `reference` what the released program does, where that
    can run at all."""
    run: RunConfig
    """Name, place, seed, resume."""
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)
    """Threads and deadlines."""
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    """Layout."""
    model: ModelConfig
    """Checkpoint and compute."""
    data: DataConfig
    """Prompts."""
    batch: BatchConfig = Field(default_factory=BatchConfig)
    """Micro-batches."""
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    """Default generation settings of the phases."""
    rewards: RewardConfig = Field(default_factory=RewardConfig)
    """Default judging of the phases, and the judging of evaluations."""
    buffer: BufferConfig = Field(default_factory=BufferConfig)
    """Default buffer stages of the phases."""
    loss: LossConfig = Field(default_factory=LossConfig)
    """Default loss of the phases."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    """Default optimizer of the phases."""
    phases: dict[str, PhaseConfig]
    """The phases in order, each starting from the last one's weights."""
    coldstart: ColdStartConfig | None = None
    """How `octopus-mcore coldstart` makes rows for a supervised cold start; training does not read it."""
    eval: EvalConfig = Field(default_factory=EvalConfig)
    """Evaluation sets and settings."""
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    """Saving and keeping."""
    observe: ObserveConfig = Field(default_factory=ObserveConfig)
    """Records."""

    @property
    def token_multiple(self) -> int:
        """What a micro-batch's length is padded to a multiple of: what the layout needs, and FP8 arithmetic on each rank."""
        of_rank = self.model.fp8.token_multiple(self.parallel.tensor) if self.model.fp8 is not None else 1
        return math.lcm(self.parallel.token_multiple, self.parallel.tensor * self.parallel.context * of_rank)
