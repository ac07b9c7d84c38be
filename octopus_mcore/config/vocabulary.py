"""Names that the configuration, the records and the reports share."""

from __future__ import annotations

EVALUATION_METRICS = {
    "first_accuracy": "right first attempts / all responses",
    "final_accuracy": "right last attempts / all responses",
    "gap": "(wrong→correct − correct→wrong) / responses with a correction",
    "correction_share": "responses with a correction / all responses",
    "correction_accuracy": "right corrections / responses with a correction",
    "wrong_correct": "wrong first attempts made right / responses with a correction",
    "correct_correct": "right first attempts kept right / responses with a correction",
    "wrong_wrong": "wrong first attempts left wrong / responses with a correction",
    "correct_wrong": "right first attempts made wrong / responses with a correction",
    "repair_rate": "wrong first attempts made right / corrected responses whose first attempt is wrong",
    "break_rate": "right first attempts made wrong / corrected responses whose first attempt is right",
    "length": "response tokens / all responses",
    "reward": "total reward / all responses",
}
"""What `experience.statistics.rates` reports of a training step (`train/<name>`) and of an evaluation."""

IMAGE_MARKER = "<image>"
"""Stands for an image inside a question (as in the datasets of EasyR1 and LLaMA-Factory)."""

RETHINKING_WORDS = ("wait,", "wait a", "alternatively")
"""By what VL-Rethinker's released program counts second thoughts in a text, in lower case."""

HF_FOLDER = "hf"
"""Where in a Megatron checkpoint the files lie that make its weights a Hugging Face folder again: configuration, tokenizer,
processor."""

STATE_FILE = "state.json"
"""What a Megatron checkpoint of ours has last; a folder without it is unfinished."""


def temperature_name(temperature: float) -> str:
    """How a temperature stands in metric names: 1.0 is `T1`, 0.7 is `T0.7`."""
    return f"T{temperature:g}"
