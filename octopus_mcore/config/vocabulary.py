"""Names that the configuration, the records and the reports share."""

from __future__ import annotations

EVALUATION_METRICS = {
    "first_accuracy": "share of prompts whose first attempt is right",
    "final_accuracy": "share of prompts whose last attempt is right",
    "gap": "final accuracy minus first accuracy",
    "wrong_correct": "share of prompts with a wrong first and a right last attempt",
    "correct_correct": "share of prompts with a right first and a right last attempt",
    "wrong_wrong": "share of prompts with a wrong first and a wrong last attempt",
    "correct_wrong": "share of prompts with a right first and a wrong last attempt",
    "repair": "share of the wrong first attempts whose correction is right",
    "correction_share": "share of responses that hold a correction",
    "length": "mean response length in tokens",
}
"""What an evaluation reports per set and temperature."""


def temperature_name(temperature: float) -> str:
    """How a temperature stands in metric names: 1.0 is `T1`, 0.7 is `T0.7`."""
    return f"T{temperature:g}"


def evaluation_key(set_name: str, temperature: float, metric: str) -> str:
    """The metric's name below `eval/`, which is also what `checkpoint.best_by` holds: `<set>/T<temperature>/<metric>`."""
    return f"{set_name}/{temperature_name(temperature)}/{metric}"
