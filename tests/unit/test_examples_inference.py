"""The plain Transformers example answers what the project's own engine answers, on an exported folder."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from octopus_mcore.training.generate import generate_answer

EXAMPLE = Path(__file__).parents[2] / "examples" / "inference_hf.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("inference_hf", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("sizes", "instruction", "switch"),
    [
        ([], "none", None),
        ([(48, 16)], "none", None),
        ([(32, 32), (16, 48)], "think", False),
        ([(48, 16)], "self-correction", True),
    ],
)
def test_the_transformers_example_answers_like_the_engine(
    example, digits_checkpoint, tmp_path, capsys, sizes, instruction, switch
):
    files = [tmp_path / f"{number}.png" for number in range(len(sizes))]
    for file, size in zip(files, sizes, strict=True):
        Image.linear_gradient("L").resize(size).convert("RGB").save(file)
    images = [argument for file in files for argument in ("--image", str(file))]
    options = ["--question", "First*second+next?", "--instruction", instruction, "--max-new-tokens", "10", *images]
    example.main([str(digits_checkpoint), *options])
    expected = generate_answer(digits_checkpoint, files, "First*second+next?", switch, max_new_tokens=10)
    assert capsys.readouterr().out.removesuffix("\n") == expected != ""
