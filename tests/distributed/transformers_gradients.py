"""The loss of `gradients_and_update` once more with Transformers' forward pass and autograd, row by row."""

from __future__ import annotations

import pytest
import torch

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.models.families import family_of
from tests.distributed.layout_checks import GRADIENT_LOSS, TEMPERATURE, policy_objective
from tests.tiny import TinyBatch, hf_log_softmax, hf_model, tiny_batch


def assert_gradients_equal_transformers(
    checkpoint: str, result: dict, image_counts: tuple[int, ...], loss: LossConfig = GRADIENT_LOSS
) -> None:
    """Holds loss and every gradient of one rank's result against Transformers."""
    batch = tiny_batch(3, image_counts)
    objective = policy_objective(batch, loss)
    batch = TinyBatch(batch.rows, batch.images, objective.selections)
    model = hf_model(checkpoint)
    rows = [hf_log_softmax(model, batch, row, TEMPERATURE) for row in range(len(batch.rows))]
    total = torch.zeros(())
    for row, every, signal, chosen in zip(batch.rows, rows, objective.signals, objective.selections, strict=True):
        ids = torch.from_numpy(row.token_ids[row.prompt_length :][chosen])
        log_probs = every.gather(1, ids[:, None])[:, 0]
        advantage = torch.from_numpy(signal.signal.advantages[chosen])
        policy_mask = torch.from_numpy(signal.signal.policy_mask[chosen])
        kl_mask = torch.from_numpy(signal.signal.kl_mask[chosen])
        ratio = (log_probs - torch.from_numpy(signal.old_log_probs[chosen])).exp()
        clipped = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.1, 10.0))
        weighted = clipped * torch.from_numpy(signal.weigh(signal.old_log_probs)[chosen])
        total = total + weighted[policy_mask].mean() / len(rows)
        entropy = -(every.exp() * every.masked_fill(every.isinf(), 0)).sum(1)
        total = total - loss.entropy_coefficient * entropy[policy_mask].mean() / len(rows)
        if kl_mask.any():
            difference = (torch.from_numpy(signal.reference_log_probs[chosen]) - log_probs)[kl_mask]
            total = total + 0.5 * (difference.exp() - difference - 1).mean() / len(rows)
    total.backward()
    expected = float(total.detach())
    assert result["losses"]["loss"] == pytest.approx(expected, abs=1e-5)
    terms = [value for name, value in result["losses"].items() if name != "loss"]
    assert len(terms) == 2 + (loss.entropy_coefficient > 0) and sum(terms) == pytest.approx(expected, abs=1e-5)
    family = family_of(model.config)
    compared = {family.file_name(name): parameter.grad for name, parameter in model.named_parameters()}
    assert compared.keys() == result["gradients"].keys()
    for name, gradient in compared.items():
        scale = max(float(gradient.abs().max()), 1e-3)
        torch.testing.assert_close(
            result["gradients"][name] / scale, gradient / scale, atol=1e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
