"""Prints what TRL makes of the golden batch: the numbers that `tests/unit/test_policy_losses_golden.py` quotes.

    python -m tests.trl_losses          # where TRL is installed (OCTOPUS_EXTRA=bench make setup); the tests do not need it

The loss functions of TRL's trainers are run as they are, in float64, on given log-probs: nothing is generated and no model is
loaded.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
import trl
from trl import GRPOTrainer, RLOOTrainer

from tests.golden_batch import GROUP, GROUP_MEAN, LEAVE_ONE_OUT, OLD, RATIOS, ROWS, TOKENS

LENGTH = 8
GRPO = {
    "GRPO": (GROUP, {"loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.2}),
    "GRPO with dual clip 3": (GROUP, {"loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.2, "delta": 3.0}),
    "Dr. GRPO": (GROUP_MEAN, {"loss_type": "dr_grpo", "epsilon_low": 0.2, "epsilon_high": 0.2}),
    "DAPO": (GROUP, {"loss_type": "dapo", "epsilon_low": 0.2, "epsilon_high": 0.28}),
    "GSPO": (GROUP, {"loss_type": "grpo", "epsilon_low": 3e-4, "epsilon_high": 4e-4, "importance_sampling_level": "sequence"}),
    "CISPO": (GROUP, {"loss_type": "cispo", "epsilon_low": 0.2, "epsilon_high": 1.3}),
}


def padded(rows: list[list[float]], value: float = 0.0) -> torch.Tensor:
    """[rows, longest] in float64."""
    tensors = [torch.tensor(row, dtype=torch.float64) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)


def bare(kind: type, log_probs: torch.Tensor, **settings: Any) -> Any:
    """A trainer that holds nothing but what its loss reads, on one process and in one accumulation step."""
    trainer = kind.__new__(kind)
    names = {"delta": settings.pop("delta", None), "use_bias_correction_kl": False, "steps_per_generation": 1, "report_to": []}
    trainer.__dict__.update(
        args=SimpleNamespace(**names),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
        model=SimpleNamespace(training=True),
        beta=0.0,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        use_vllm=False,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=LENGTH,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs, torch.zeros_like(log_probs), None),
    )
    trainer.__dict__.update(settings)
    return trainer


def run(kind: type, new: torch.Tensor, advantages: list[float], settings: dict[str, Any], **inputs: torch.Tensor) -> None:
    mask = padded([[1.0] * len(row) for row in OLD])
    ids = torch.zeros_like(mask, dtype=torch.int64)
    new = new.clone().requires_grad_()
    batch = {"prompt_ids": ids, "prompt_mask": mask, "completion_ids": ids, "completion_mask": mask}
    batch |= {"advantages": torch.tensor(advantages, dtype=torch.float64), "num_items_in_batch": torch.tensor(float(TOKENS))}
    loss = bare(kind, new, **settings)._compute_loss(None, batch | inputs)
    loss.backward()
    print(f"    loss {loss.item():.9f}")
    print(f"    gradient {[round(value, 9) for value in new.grad[mask.bool()].tolist()]}")


def main() -> None:
    """All of them."""
    print(f"TRL {trl.__version__}: {ROWS} responses, {TOKENS} tokens")
    old = padded(OLD, 1.0).log()
    new = old + padded(RATIOS, 1.0).log()
    for name, (advantages, settings) in GRPO.items():
        print(name)
        run(GRPOTrainer, new, advantages, settings, old_per_token_logps=old)
    print("RLOO, before the first update")
    mask = padded([[1.0] * len(row) for row in OLD])
    run(RLOOTrainer, new, LEAVE_ONE_OUT, {"epsilon_low": 0.2, "epsilon_high": 0.2}, old_logps=(new * mask).sum(1))


if __name__ == "__main__":
    main()
