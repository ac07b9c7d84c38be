"""What plain Transformers generates for a prompt, and the log-probs that it gives a response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from octopus_mcore.data.processor import Processor
from octopus_mcore.experience.types import Prompt


def hf_inputs(prompt: Prompt, processor: Processor, response: Sequence[int] = ()) -> dict[str, torch.Tensor]:
    """Inputs of one sequence, a batch of one."""
    token_ids = torch.tensor([prompt.token_ids + tuple(response)])
    inputs = {"input_ids": token_ids, "attention_mask": torch.ones_like(token_ids)}
    if prompt.images:
        images = [processor.images[ref.key] for ref in prompt.images]
        inputs["pixel_values"] = torch.cat([torch.from_numpy(image.pixel_values) for image in images])
        inputs["image_grid_thw"] = torch.tensor([image.grid_thw for image in images])
        inputs["mm_token_type_ids"] = (token_ids == processor.tokens.image_pad).int()
    return inputs


def hf_greedy(model: PreTrainedModel, prompt: Prompt, processor: Processor, new_tokens: int, **options: Any) -> tuple[int, ...]:
    """The response by `generate`; `options` are more of its arguments."""
    inputs = hf_inputs(prompt, processor)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens, **options)
    model.model.rope_deltas = None
    return tuple(output[0, len(prompt.token_ids) :].tolist())


def hf_log_probs(
    model: PreTrainedModel,
    prompt: Prompt,
    processor: Processor,
    response: Sequence[int],
    temperature: float,
    banned: Sequence[int],
) -> np.ndarray:
    """Log-probs of a response by one plain forward pass over the whole sequence."""
    with torch.no_grad():
        logits = model(**hf_inputs(prompt, processor, response)).logits[0].double()
    model.model.rope_deltas = None
    logits[:, list(banned)] = -torch.inf
    log_probs = (logits / temperature).log_softmax(-1)[len(prompt.token_ids) - 1 : -1]
    return log_probs[torch.arange(len(response)), torch.tensor(response)].numpy()
