"""Configurations and commands for VLMEvalKit and lmms-eval, as their sources of the named commits read them."""

import json
import shlex

import pytest
from typer.testing import CliRunner

from octopus_mcore.cli import app
from octopus_mcore.evals.harness import LMMS_EVAL, VLMEVALKIT, Served, lmms_eval_command, serving_commands, vlmevalkit_config
from octopus_mcore.evals.registry import MODULES

SERVED = Served("http://127.0.0.1:30000/v1/", "octopus-8b", 0.6, 0.95, 16384)


def call(*arguments):
    return CliRunner().invoke(app, ["benchmark-export", *map(str, arguments)])


def test_vlmevalkit_gets_a_configuration_file(tmp_path):
    file = tmp_path / "eval" / "kit.json"
    given = ("--url", SERVED.url, "--model", "octopus-8b", "--checkpoint", "runs/a b/export", "--out", file)
    result = call("vlmevalkit", *given, "--benchmark", "mathvista", "--benchmark", "mmstar")
    assert result.exit_code == 0, result.output
    config = json.loads(file.read_text())
    assert config == vlmevalkit_config(SERVED, ["mathvista", "mmstar"])
    model = config["model"]["octopus-8b"]
    assert model["class"] == "GPT4V" and model["api_base"] == "http://127.0.0.1:30000/v1/chat/completions"
    assert (model["temperature"], model["top_p"], model["max_tokens"]) == (0.6, 0.95, 16384)
    assert config["data"] == {
        "MathVista_MINI": {"class": "MathVista", "dataset": "MathVista_MINI"},
        "MMStar": {"class": "ImageMCQDataset", "dataset": "MMStar"},
    }
    assert f"python run.py --config {file}" in result.stdout
    assert "sglang.launch_server --model-path 'runs/a b/export' --served-model-name octopus-8b --port 30000" in result.stdout


def test_lmms_eval_gets_a_command():
    result = call("lmms-eval", "--url", SERVED.url, "--model", "octopus-8b", "--benchmark", "mathvista", "--benchmark", "mmmu")
    assert result.exit_code == 0, result.output
    (command,) = [line for line in result.stdout.splitlines() if line.startswith("python -m lmms_eval")]
    words = shlex.split(command)
    options = dict(zip(words[3::2], words[4::2], strict=False))
    assert options["--model"] == "openai" and options["--tasks"] == "mathvista_testmini_cot,mmmu_val"
    arguments = dict(pair.split("=") for pair in options["--model_args"].split(","))
    assert arguments["model_version"] == "octopus-8b" and arguments["base_url"] == "http://127.0.0.1:30000/v1"
    assert int(arguments["timeout"]) > 600  # its default of 10 seconds would cut long responses off
    assert dict(pair.split("=") for pair in options["--gen_kwargs"].split(","))["max_new_tokens"] == "16384"
    assert "never sends top_p" in result.stdout


@pytest.mark.parametrize("name", ["octopus-step100", "octo-o1", "gemini-like"])
def test_names_that_the_tools_would_take_for_a_providers_are_refused(name):
    """VLMEvalKit would read STEPAI_API_KEY for the first, and leave out the temperature for the second."""
    with pytest.raises(ValueError, match="Serve it under another name"):
        vlmevalkit_config(Served(SERVED.url, name, 0.6, 1.0, 100), ["mmstar"])


def test_what_cannot_be_exported_is_said():
    for wrong in ("127.0.0.1:30000/v1", "http://host:1/v1/chat/completions"):
        with pytest.raises(ValueError, match="expected the base address"):
            Served(wrong, "m", 0.0, 1.0, 10)
    with pytest.raises(ValueError, match="VLMEvalKit has no counterpart of superclevr"):
        vlmevalkit_config(SERVED, ["mmstar", "superclevr"])
    with pytest.raises(ValueError, match="separates its arguments by commas"):
        lmms_eval_command(Served(SERVED.url, "a,b", 0.0, 1.0, 10), ["mmstar"])
    result = call("lmms-eval", "--url", SERVED.url, "--model", "m", "--benchmark", "geoqa")
    assert result.exit_code == 2 and "no counterpart of geoqa" in result.stderr
    assert "--port 30000" in serving_commands("export", Served("https://model.example/v1", "m", 0.0, 1.0, 10))["vLLM"]


def test_every_name_is_one_of_ours():
    assert {*VLMEVALKIT, *LMMS_EVAL} <= {*MODULES, "charxiv", "ocrbench", "wemath"}
