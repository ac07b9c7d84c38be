#!/usr/bin/env python
"""Holds the weight map against an independent witness: mcore-bridge's own conversion of the same Hugging Face folder.

    python tools/check_against_mcore_bridge.py HF_FOLDER

Needs a GPU, Transformer-Engine and `mcore-bridge` (a package of the ModelScope community; it changes Megatron-Core when it is
imported, so this is a program of its own and no test). One process, no parallelism: a rank's shards are held against the whole
tensor by tests that run everywhere. Exit code 1 when a tensor differs or has no counterpart. Not run yet: the project was built
without a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator

import torch

from octopus_mcore.config.model_layout import padded_vocabulary
from octopus_mcore.models.families import family_of, load_shape
from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.models.layer_spec import unfused_name
from octopus_mcore.models.weight_map import VocabularyEntry, WeightEntry


def witness(folder: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters of mcore-bridge's Megatron model of the folder, under this project's names."""
    import torch.distributed as dist
    from mcore_bridge import ModelConfig, get_mcore_model, hf_to_mcore_config
    from megatron.core import parallel_state
    from transformers import AutoConfig

    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29511")):
        os.environ.setdefault(name, value)
    torch.cuda.set_device(0)
    dist.init_process_group("nccl")
    parallel_state.initialize_model_parallel()
    hf = AutoConfig.from_pretrained(folder)
    config = ModelConfig(params_dtype=torch.bfloat16, **hf_to_mcore_config(hf))
    models = get_mcore_model(config)
    config.bridge.load_weights(models, folder)
    for model in models:
        for name, parameter in model.named_parameters():
            yield our_name(name), parameter.detach().cpu()


def our_name(name: str) -> str:
    """mcore-bridge keeps the decoder in `language_model` and the Transformers tower in `visual.visual`."""
    name = name.removeprefix("language_model.")
    if name.startswith("visual.visual."):
        return "vision.tower." + name.removeprefix("visual.visual.")
    if name.startswith("decoder.layers."):
        number, inside = name.removeprefix("decoder.layers.").split(".", 1)
        return f"decoder.layers.{number}.{unfused_name(inside)}"
    return name


def differs(entry: WeightEntry, folder: HFFolder, theirs: torch.Tensor) -> bool:
    """Whether the map's Megatron tensor is another one, in bfloat16 and but for vocabulary padding."""
    ours = entry.to_megatron([folder.tensor(name) for name in entry.hf]).to(torch.bfloat16)
    if isinstance(entry, VocabularyEntry):
        ours, theirs = ours[: entry.vocab_size], theirs[: entry.vocab_size]
    return not torch.equal(ours, theirs.to(torch.bfloat16))


def main() -> None:
    """Prints every difference and a summary."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", help="Hugging Face checkpoint folder")
    path = options.parse_args().folder
    shape, folder = load_shape(path), HFFolder(path)
    entries = family_of(shape.hf).weight_map(shape, padded_vocabulary(shape.decoder.vocab_size, 1))
    theirs = dict(witness(path))
    problems = [f"{entry.megatron}: mcore-bridge has no such parameter" for entry in entries if entry.megatron not in theirs]
    found = [entry for entry in entries if entry.megatron in theirs]
    problems += [f"{entry.megatron}: another tensor" for entry in found if differs(entry, folder, theirs[entry.megatron])]
    for problem in problems:
        print(problem)
    print(f"{len(entries)} parameters, {len(problems)} differ from mcore-bridge's")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
