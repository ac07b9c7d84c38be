"""What a dry run says: the section as it stands, the most that it can cost, and what is there already. Needs no torch."""

from __future__ import annotations

from pathlib import Path

import yaml

from octopus_mcore.config.schema import Config
from octopus_mcore.training.coldstart.folder import OutputFolder, made_with


def plan_text(config: Config) -> str:
    """The plan of a configuration with a section `coldstart`."""
    section, folder = config.coldstart, OutputFolder(Path(config.coldstart.output))
    corrector = section.corrector
    tree = yaml.safe_dump({"coldstart": section.model_dump(mode="json")}, sort_keys=False, allow_unicode=True, width=120)
    inputs = "one epoch of the source" if section.max_inputs is None else f"{section.max_inputs:,} inputs at most"
    who = {
        "policy": "another right sample of the policy",
        "endpoint": corrector.endpoint and f"{corrector.endpoint.model} at {corrector.endpoint.url}",
        "engine": corrector.folder,
    }[corrector.kind]
    tries = "" if corrector.kind == "policy" else f", {corrector.tries} tries an input"
    lines = [
        f"first attempts: {config.model.path} in the engine {config.rollout.engine}, {section.n} an input, of up to "
        f"{section.sampling.max_new_tokens} tokens; {inputs}, {section.chunk} at a time",
        f"rows: {section.all_right:,} of inputs that are all right, {section.mixed:,} of mixed ones",
        f"corrections: {who}{tries}",
        f"output: {folder.path} ({_found(config, folder)})",
    ]
    return tree + "\n" + "\n".join(lines)


def _found(config: Config, folder: OutputFolder) -> str:
    if not folder.begun:
        return "new"
    if differing := folder.differing(made_with(config)):
        return f"made with another configuration, which differs in {', '.join(differing)}"
    with folder.attempts.open("rb") as lines:
        return f"goes on behind {sum(1 for _ in lines):,} inputs"
