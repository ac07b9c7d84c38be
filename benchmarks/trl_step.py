"""TRL's GRPOTrainer on a recorded batch as a side of a yardstick. Written for TRL 1.16.0 (extra `bench` of pyproject.toml).

Recorded completions take the place of generation and reward: `_generate_and_score_completions` hands over the batch that it
would have made, with the recorded log-probs as `old_per_token_logps`. Timed is what is left of a step, from Transformers'
callback `on_step_begin` to `on_step_end`: the batch is cut into micro-batches, loss, backward pass, clipping, AdamW. TRL's own
pass for old log-probs is not among it: with one update on each batch it makes none.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.recorded_batch import RecordedBatch, StepSettings
from benchmarks.side_process import Clock, answer, receive

STEPS = 100_000
"""More than anyone asks for: the trainer runs until there are no more requests."""


class RecordedTrainer(GRPOTrainer):
    """GRPOTrainer that trains on `recorded`, and keeps loss and gradient norm of the last step."""

    recorded: RecordedBatch
    found: dict[str, float]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.recorded
        completions = torch.from_numpy(batch.responses)
        prompts = torch.from_numpy(batch.token_ids[:, : batch.prompt_length])
        return {
            "prompt_ids": prompts,
            "prompt_mask": torch.ones_like(prompts),
            "completion_ids": completions,
            "completion_mask": torch.ones_like(completions),
            "advantages": torch.from_numpy(batch.advantages),
            "num_items_in_batch": torch.tensor(completions.numel()),
            "old_per_token_logps": torch.from_numpy(batch.old_log_probs),
        }

    def compute_loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().compute_loss(*args, **kwargs)
        self.found["loss"] += loss.item()
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> float:
        self.found["grad_norm"] = float(super()._get_grad_norm(*args, **kwargs))
        return self.found["grad_norm"]


class OnRequest(TrainerCallback):
    """Holds each step back until it is asked for, and answers with its time."""

    def __init__(self) -> None:
        self.trainer: RecordedTrainer | None = None

    def on_step_begin(self, *unused: Any, **more: Any) -> None:
        request = receive()
        if request is None:
            raise SystemExit
        self.trainer.recorded = RecordedBatch.load(Path(request["batch"]))
        self.trainer.found = {"loss": 0.0}
        self._clock = Clock()

    def on_step_end(self, *unused: Any, **more: Any) -> None:
        measured = self._clock.read()
        answer(self.trainer.found | measured)


def tokenizer() -> PreTrainedTokenizerFast:
    """One that the trainer may ask for its special tokens; nothing is tokenised."""
    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def trainer_of(batch: RecordedBatch, settings: StepSettings, folder: str) -> RecordedTrainer:
    """The trainer in float32 on one thread, with the settings' loss and AdamW. Left at TRL's defaults but for what would make
    it another step than the others': gradient checkpointing (its default) is off, and so is mixed precision."""
    count = len(batch.token_ids)
    most = settings.rows_at_a_time(batch.token_ids.shape[1])
    width = max(size for size in range(1, count + 1) if size <= most and count % size == 0)  # TRL wants them all alike
    arguments = GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        per_device_train_batch_size=width,
        gradient_accumulation_steps=count // width,
        num_generations=int((batch.group == 0).sum()),
        max_completion_length=batch.responses.shape[1],
        model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
        loss_type="grpo",
        importance_sampling_level="sequence" if settings.loss == "gspo" else "token",
        epsilon=settings.clip_low,
        epsilon_high=settings.clip_high,
        delta=settings.dual_clip,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip_grad,
        max_steps=STEPS,
        logging_steps=STEPS,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    callback = OnRequest()
    made = RecordedTrainer(
        model=settings.checkpoint,
        reward_funcs=_no_reward,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "recorded"}] * count),
        processing_class=tokenizer(),
        callbacks=[callback],
    )
    callback.trainer = made
    return made


def _no_reward(**unused: Any) -> list[float]:
    raise AssertionError("recorded batches bring their advantages")


def main() -> None:
    torch.set_num_threads(1)
    settings, batch = StepSettings.load(Path(sys.argv[1])), RecordedBatch.load(Path(sys.argv[2]))
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(batch, settings, folder)
        answer({})
        trainer.train()


if __name__ == "__main__":
    main()
