"""Holds the tests' stand-in for Transformer-Engine, and what the precision audit reads of the real one, against real sources.

    python tools/check_te_stand_in.py                     # downloads the wheel of the pinned release (Python sources, no CUDA)
    python tools/check_te_stand_in.py --version 2.20.2
    python tools/check_te_stand_in.py --wheel transformer_engine-2.11.0-py3-none-any.whl

Read with `ast`: nothing of Transformer-Engine is installed or imported. Says every difference and ends with status 1 if any.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

STAND_IN = Path(__file__).parents[1] / "tests" / "te_stand_in" / "transformer_engine"
CONSTRUCTORS = {"Linear": "linear.py", "LayerNormLinear": "layernorm_linear.py"}
NEWER = {"delay_wgrad_compute", "save_original_input", "symmetric_ar_type"}
"""Arguments that other releases may lack or rename; Megatron-Core gives them only from the release on that has them."""
RECIPES = ("DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling", "MXFP8BlockScaling")


def arguments(source: str, name: str) -> list[str]:
    """Names of the constructor's arguments of a class in a source, without `self`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    return [argument.arg for argument in (*method.args.args, *method.args.kwonlyargs)][1:]
    return []


def differences(wheel: Path) -> Iterator[str]:
    """Everything that is not as the stand-in or the audit takes it to be."""
    with zipfile.ZipFile(wheel) as archive:

        def read(path: str) -> str:
            return archive.read(f"transformer_engine/{path}").decode()

        ours = (STAND_IN / "pytorch" / "module.py").read_text(encoding="utf-8")
        for name, file in CONSTRUCTORS.items():
            real, made = arguments(read(f"pytorch/module/{file}"), name), arguments(ours, name)
            if unknown := sorted(set(made) - set(real) - NEWER):
                yield f"{name}: the stand-in has arguments that the real one lacks: {', '.join(unknown)}"
            if missing := sorted(set(real) - set(made)):
                yield f"{name}: the real one has arguments that the stand-in lacks: {', '.join(missing)}"
        base = read("pytorch/module/base.py")
        for attribute in ("fp8_meta", "activation_dtype"):
            if f"self.{attribute}" not in base:
                yield f"TransformerEngineBaseModule has no attribute {attribute}, which the audit reads"
        if "self.fp8 = " not in base:
            yield "TransformerEngineBaseModule has no attribute fp8, which the audit reads"
        if '["recipe"]' not in base:
            yield "fp8_meta holds no recipe, which the audit reads"
        if "_high_precision_init_val" not in base:
            yield "FP8 parameters keep no _high_precision_init_val, which loading sets"
        recipes = {
            node.name for node in ast.walk(ast.parse(read("common/recipe/__init__.py"))) if isinstance(node, ast.ClassDef)
        }
        yield from (f"common.recipe has no {name}" for name in RECIPES if name not in recipes)


def download(version: str, folder: Path) -> Path:
    """The wheel with the Python sources; no dependencies, nothing built."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    subprocess.run([*command, f"transformer_engine=={version}"], check=True)
    return next(folder.glob("transformer_engine-*.whl"))


def main() -> None:
    """Prints what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", default="2.11.0", help="the release that environments/trainer-cuda.lock pins")
    parser.add_argument("--wheel", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = list(differences(options.wheel or download(options.version, Path(folder))))
    print("\n".join(found) or "the stand-in and the audit agree with these sources")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
