"""Random groups whose rows share prompts (with images), first attempts and, by chance, a little more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from octopus_mcore.policy.rows import Row
from octopus_mcore.runtime.seeds import numpy_generator
from tests.tiny import VOCABULARY, TinyBatch, tiny_batch


def tree_batch(
    seed: int, image_counts: tuple[int, ...] = (0, 1, 2), firsts: int = 3, corrections: int = 7, longest: int = 12
) -> TinyBatch:
    """One group for each entry of `image_counts` (the images of its prompt; the last group takes over the image before it).

    A group has `corrections` rows: a first attempt of `firsts` and a correction each, of up to `longest` tokens; besides them a
    repetition of its first row and a row that ends where the first attempt does. Rows come in random order and selections
    differ from row to row, also on tokens that rows have in common."""
    draw = numpy_generator(seed, "tree batch")
    prompts = tiny_batch(seed, image_counts)
    rows: list[Row] = []
    for number, prompt in enumerate(prompts.rows):
        tokens = prompt.token_ids[: prompt.prompt_length]
        attempts = [_text(draw, longest) for _ in range(firsts)]
        of_group = []
        for correction in range(corrections):
            first = attempts[correction % firsts]
            row = np.concatenate([tokens, first, _text(draw, longest)])
            of_group.append(replace(prompt, name=f"group {number}, row {correction}", token_ids=row))
        of_group.append(replace(of_group[0], name=f"group {number}, repeated"))
        of_group.append(replace(prompt, name=f"group {number}, first", token_ids=np.concatenate([tokens, attempts[0]])))
        rows += of_group
    order = draw.permutation(len(rows))
    rows = [rows[place] for place in order]
    return TinyBatch(rows, prompts.images, [draw.random(row.response_length) < 0.7 for row in rows])


def _text(draw: np.random.Generator, longest: int) -> np.ndarray:
    """Few different tokens, so that texts have beginnings in common by chance."""
    return draw.choice([8, 9, VOCABULARY - 1], draw.integers(1, longest + 1)).astype(np.int64)
