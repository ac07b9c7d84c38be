"""The section `rollout`: how responses are generated, and the servers that generate them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from octopus_mcore.config.section import Section


class SGLangConfig(Section):
    """SGLang servers: started by the run, or running elsewhere."""

    python: str = ".venv-sglang/bin/python"
    """Python of the environment that holds SGLang (`make setup-engines` makes it); the trainer's own needs none of it."""
    urls: list[str] = Field(default_factory=list)
    """Servers that run already, as `http://host:port`; the run then starts none. Every replica of the trainer needs servers of
    its own, so this is for runs with one replica."""
    engines: int = Field(default=1, ge=1)
    """Servers per replica; requests go to the one with the fewest outstanding tokens."""
    tensor: int = Field(default=1, ge=1)
    """Tensor-parallel size of a server, independent of the trainer's."""
    colocated: bool = True
    """Started servers use the trainer's devices, and both take turns: before training the servers free caches and weights,
    before generation the trainer moves gradients, optimizer and parameters to the host. Turn it off where the memory holds
    both. Servers of `urls` and of `devices` are elsewhere."""
    devices: list[str] = Field(default_factory=list)
    """GPUs of each node for the servers that the run starts, as CUDA_VISIBLE_DEVICES names them, instead of the trainer's own.
    The replicas of a node take `engines` × `tensor` of them each, in order. Empty: each replica's servers use the GPUs of its
    ranks."""
    transport: Literal["ipc", "collective", "disk"] = "ipc"
    """How weights reach the servers: `ipc` through memory that trainer and servers of one machine share, `collective` through a
    process group of trainer and servers (NCCL needs servers on GPUs of their own), `disk` as safetensors files in
    `weights_folder`."""
    master_address: str | None = None
    """Where servers reach the trainer's rank, for transport `collective`; null takes this machine's host name, or loopback when
    all servers are on this machine."""
    sync_bucket_mb: int = Field(default=512, ge=1)
    """Size of a bucket of weights. A weight update takes at most twice that and the largest tensor on top of model and servers'
    memory; where a parameter is larger than a bucket, its size counts as the bucket's."""
    weights_folder: str | None = None
    """Folder that trainer and servers share, for transport `disk`; null takes the run directory."""
    check_weights: bool = True
    """Before the first weight update of a run, have the servers load the same weights from an exported checkpoint on disk,
    overwrite them with junk, and compare every tensor after the update."""
    max_total_tokens: int | None = Field(default=None, ge=1)
    """Tokens in a server's cache; null lets SGLang size it by free memory."""
    arguments: list[str] = Field(default_factory=list)
    """Further command-line arguments of `sglang.launch_server`, for instance `["--mem-fraction-static", "0.6"]`."""
    start_timeout_seconds: float = Field(default=600.0, gt=0)
    """Deadline until a started server answers."""
    timeout_seconds: float = Field(default=900.0, gt=0)
    """Deadline of a prompt's responses. A server that hangs is noticed only then; together with `start_timeout_seconds`, within
    which it is replaced, it must be less than `runtime.timeout_minutes`, for which other ranks wait."""
    sync_timeout_seconds: float = Field(default=300.0, gt=0)
    """Deadline of one step of a weight update or of a hand-over of memory."""
    max_restarts: int = Field(default=3, ge=0)
    """How often a run starts a lost server again (or takes an external one back) before it does without it; when no server of a
    replica is left, the run ends."""
    allow_untested: bool = False
    """Use an SGLang of another version than the tested 0.5.23."""

    @property
    def shares_devices(self) -> bool:
        """Whether servers use the trainer's devices and take turns with it."""
        return self.colocated and not self.urls and not self.devices


class TriggerConfig(Section):
    """A text that makes the model think again, and how often it is taken."""

    text: str = Field(min_length=1)
    """Put behind the response as it stands, without its end token."""
    right: float = Field(default=0.0, ge=0, le=1)
    """Probability behind a right response; those of all triggers add up to 1."""
    wrong: float = Field(default=0.0, ge=0, le=1)
    """Probability behind a wrong response; those of all triggers add up to 1."""


def _released_triggers() -> list[TriggerConfig]:
    return [
        TriggerConfig(text="\n\nWait", right=0.2, wrong=0.2),
        TriggerConfig(text="\n\nWait, does it seem right?", right=0.3, wrong=0.3),
        TriggerConfig(text="\n\nWait, let's double check", right=0.5),
        TriggerConfig(text="\n\nWait, there might be a mistake", wrong=0.5),
    ]


class RethinkConfig(Section):
    """Forced rethinking (VL-Rethinker, arXiv 2504.08837, §3.3; the numbers are the released program's).

    Some finished responses are opened again: cut or whole, a trigger behind them, and the model goes on. Accepted ones take the
    place of the response that they began with, so groups keep their size.
    """

    mode: Literal["force", "wrong_only"] = "force"
    """`force` opens right and wrong responses, `wrong_only` wrong ones (the released `append_wait`, which draws its triggers
    evenly, up to an accuracy of 0.6)."""
    attempt_share: float = Field(default=0.65, ge=0, le=1)
    """Probability that a response that may be opened is."""
    wrong_up_to_accuracy: float = Field(default=0.7, ge=0, le=1)
    """Wrong responses are opened only in groups whose share of right responses is at most this."""
    cut_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability that a response is cut: before its last «Wait», else before its last box, else before its first «answer»,
    else before its last blank line. Otherwise it is kept whole, its answer included."""
    triggers: list[TriggerConfig] = Field(default_factory=_released_triggers, min_length=1)
    """What is put behind it."""
    temperature: float = Field(default=0.9, gt=0)
    """Sampling temperature of the rethinking. Where it is not `rollout.temperature`, the engine's log-probs of it are of
    another distribution than the trained one and count as unknown."""
    max_first_tokens: int | None = Field(default=None, ge=1)
    """Longest response (without its end token) that is opened; null: any behind which a trigger and `max_tokens` fit into
    `rollout.max_new_tokens`. They must fit in any case."""
    min_tokens: int = Field(default=31, ge=1)
    """Shortest rethinking that is accepted, end token included."""
    max_tokens: int = Field(default=1023, ge=1)
    """Length limit of the rethinking; what it cuts off is not accepted."""
    keep: Literal["correct_only", "all"] = "correct_only"
    """`correct_only` accepts rethinkings whose final answer is right, `all` wrong ones too."""
    own_answer: bool = True
    """The rethinking must state an answer itself. Otherwise the response's last answer counts, be it the first attempt's."""
    max_per_query: int | None = Field(default=2, ge=1)
    """Accepted rethinkings of a prompt, the first ones in sampling order; null accepts all."""
    max_waits: int | None = Field(default=4, ge=1)
    """Most second thoughts in an accepted one: «wait,», «wait a» and «alternatively» in it, and the trigger as one; null
    accepts any number."""


class DynamicSamplingConfig(Section):
    """DAPO's dynamic sampling (arXiv 2503.14476, §3.2, Eq. 11), in a bounded number of rounds.

    Each round draws and answers `prompts_per_step` new prompts and keeps the groups that can teach something, until there are
    enough. After the last round the step goes on with those it has, possibly none.
    """

    metric: Literal["accuracy", "reward"] = "accuracy"
    """What is averaged over a group's valid responses: correctness of the final answer, or the reward."""
    low: float = 0.0
    """Groups are kept whose mean is above this …"""
    high: float = 1.0
    """… and below this."""
    max_rounds: int = Field(default=3, ge=1)
    """Most rounds of a step."""


class RolloutConfig(Section):
    """Generation during training."""

    engine: Literal["embedded", "sglang"] = "embedded"
    """`embedded` is the Hugging Face model inside the trainer's process, `sglang` SGLang servers in processes and a Python
    environment of their own; both get their weights from the policy's stream. One engine serves the whole run."""
    sglang: SGLangConfig = Field(default_factory=SGLangConfig)
    """Settings of engine `sglang`."""
    deterministic: bool = False
    """Responses of engine `sglang` depend on the run's seed alone. Costs its prefix cache: samples of a prompt no longer share
    their prefill. The embedded engine always is deterministic."""
    max_staleness: Literal[0] = 0
    """How many versions older than the policy's the weights of a rollout may be. 0 is the only value so far: generation and
    training take turns, so an older rollout is a failure and ends the run."""
    n: int = Field(default=8, ge=1)
    """Native rollouts per prompt."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; log-probs everywhere in the trainer are scaled by it."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling. Below 1 the behaviour policy is not the trained one, so training refuses it."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Response length limit, first attempt and correction together."""
    max_batch_size: int = Field(default=512, ge=1)
    """Responses that the embedded engine decodes at once."""
    mismatch_alarm: float | None = Field(default=0.03, gt=0)
    """Mean |log-prob of the engine − log-prob of the trainer| of a step's native tokens, of any span kind, above which the run
    warns and goes on; null never warns. In float32 the two agree to 1e-5, in bfloat16 a trained model's to 0.001 to 0.01."""
    rethink: RethinkConfig | None = None
    """Forced rethinking of some responses; null for none, `{}` for VL-Rethinker's."""
    dynamic_sampling: DynamicSamplingConfig | None = None
    """Draw further prompts in place of those whose responses are all right or all wrong; null trains what comes, `{}` for
    DAPO's."""
    replay: str | None = None
    """Run directory whose recorded rollouts stand in for generation, step by step: two layouts or two versions can then be
    compared on equal data. That run must have recorded every step (`observe.rollouts_every: 1`) of the same phases, seed and
    prompts. What it rethought is part of the record, so `rethink` has nothing to do then."""
