"""The step of a trainer that is nothing but Transformers and torch: the yardstick for our own.

Written to be fast: rows of one length in padded batches without padding, no attention mask (so torch's causal kernel), logits
of response tokens only, cross-entropy that fuses log-softmax and gather, each distinct image of a micro-batch through the tower
once, fused AdamW. It keeps no statistics.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from benchmarks.recorded_batch import BANNED, IMAGE, RecordedBatch, StepSettings
from benchmarks.side_process import Clock, answer, receive


def load(checkpoint: str) -> PreTrainedModel:
    """The checkpoint in float32 with torch's own attention."""
    vision = hasattr(AutoConfig.from_pretrained(checkpoint), "vision_config")
    kind = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    return kind.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="sdpa").train()


def optimizer_of(model: PreTrainedModel, settings: StepSettings) -> torch.optim.AdamW:
    """AdamW that decays matrices, not norms and biases."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def log_probs(model: PreTrainedModel, batch: RecordedBatch, rows: slice) -> torch.Tensor:
    """Log-probs of the responses of some rows, [rows, response]."""
    tokens = torch.from_numpy(batch.token_ids[rows])
    hidden = model.model(input_ids=tokens, use_cache=False, **_vision(model, batch, rows, tokens)).last_hidden_state
    logits = model.lm_head(hidden[:, batch.prompt_length - 1 : -1])
    if batch.side:
        logits[..., list(BANNED)] = -torch.inf
    targets = tokens[:, batch.prompt_length :]
    return -cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def _vision(model: PreTrainedModel, batch: RecordedBatch, rows: slice, tokens: torch.Tensor) -> dict:
    if not batch.side:
        return {}
    groups, of_row = torch.from_numpy(batch.group[rows]).unique_consecutive(return_inverse=True)
    pixels = torch.from_numpy(batch.pixels[groups.numpy()]).flatten(0, 1)
    features = model.model.get_image_features(pixels, torch.tensor([batch.grid] * len(groups)), return_dict=True)
    features.pooler_output = [features.pooler_output[image] for image in of_row]
    features.deepstack_features = [[level[image] for image in of_row] for level in features.deepstack_features]
    return {
        "mm_encoder_outputs": {"image": features},
        "image_grid_thw": torch.tensor([batch.grid] * len(of_row)),
        "mm_token_type_ids": (tokens == IMAGE).int(),
    }


def policy_loss(found: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, settings: StepSettings) -> torch.Tensor:
    """The summed clipped loss of rows: Σ over rows of the mean over tokens. `found` and `old` [rows, response]."""
    log_ratio = found - old
    ratio = log_ratio.mean(1).exp() if settings.loss == "gspo" else log_ratio.exp()
    advantages = advantages if settings.loss == "gspo" else advantages[:, None]
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high))
    loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * settings.dual_clip), loss)
    return loss.sum() if settings.loss == "gspo" else loss.mean(1).sum()


def step(
    model: PreTrainedModel, optimizer: torch.optim.AdamW, batch: RecordedBatch, settings: StepSettings
) -> dict[str, float]:
    """One optimizer step; loss and gradient norm before clipping."""
    count, width = len(batch.token_ids), settings.rows_at_a_time(batch.token_ids.shape[1])
    total = 0.0
    for start in range(0, count, width):
        rows = slice(start, start + width)
        old, advantages = torch.from_numpy(batch.old_log_probs[rows]), torch.from_numpy(batch.advantages[rows])
        loss = policy_loss(log_probs(model, batch, rows), old, advantages, settings) / count
        loss.backward()
        total += loss.item()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
    optimizer.step()
    optimizer.zero_grad()
    return {"loss": total, "grad_norm": float(norm)}


def main() -> None:
    torch.set_num_threads(1)
    settings = StepSettings.load(Path(sys.argv[1]))
    model = load(settings.checkpoint)
    optimizer = optimizer_of(model, settings)
    answer({})
    while request := receive():
        batch = RecordedBatch.load(Path(request["batch"]))
        clock = Clock()
        done = step(model, optimizer, batch, settings)
        answer(done | clock.read())


if __name__ == "__main__":
    main()
