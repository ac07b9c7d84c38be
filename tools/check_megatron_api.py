#!/usr/bin/env python3
"""Holds every use of Megatron-Core in octopus_mcore against Megatron-Core sources: imports, attributes, calls, overrides.

    tools/check_megatron_api.py                  the newest wheel that pyproject.toml admits, for Python 3.12
    tools/check_megatron_api.py FOLDER | WHEEL   sources that are at hand
    tools/check_megatron_api.py --unpack FOLDER  also lays the sources out for PYTHONPATH, with triton, which they import

Nothing is imported or run, so sources for another Python can be checked. Ends with 1 and one line per misfit, or with 2 where
no sources could be had.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.api_check.sources import Sources  # noqa: E402
from tools.api_check.uses import LIBRARY, PACKAGE, Findings, check  # noqa: E402

PYTHON = "3.12"
"""The Python for which the newest Megatron-Core is looked up; its wheels are per version."""


def newest_wheel(folder: Path) -> Path:
    """Downloads the newest megatron-core wheel for `PYTHON` in pyproject.toml's range into the folder.

    Raises:
        RuntimeError: pip found or brought none; its own words.
    """
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (wanted,) = (need for need in needs if need.startswith("megatron-core"))
    _pip("download", "--no-deps", f"--python-version={PYTHON}", "--only-binary=:all:", f"--dest={folder}", wanted)
    return next(folder.glob("megatron_core-*.whl"))


def unpack(wheel: Path, folder: Path) -> None:
    """Lays the wheel's Python sources into a fresh folder, beside triton: 0.19 imports it whatever the machine, and a CPU build
    of torch brings none. The wheel's one compiled part, an index of text corpora, is never imported here."""
    shutil.rmtree(folder, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    _pip("install", "--no-deps", f"--target={folder}", "triton")


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    if done.returncode:
        raise RuntimeError(f"pip {arguments[0]} failed: {done.stderr.strip()}")


def check_sources(megatron: Path, package: Path = ROOT) -> Findings:
    """The package in the folder `package` held against the Megatron sources (folder or wheel that holds `megatron/`)."""
    return check(Sources({LIBRARY: megatron, PACKAGE: package}))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="?", type=Path, help="folder or wheel that holds megatron/core")
    parser.add_argument("--unpack", type=Path, metavar="FOLDER", help="make this folder anew with the wheel's content")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            megatron = options.sources or newest_wheel(Path(folder))
            findings = check_sources(megatron)
            if options.unpack:
                unpack(megatron, options.unpack)
        except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
            print(f"not checked: {error}", file=sys.stderr)
            return 2
    for line in findings.misfits:
        print(line)
    looked_at = ", ".join(f"{count} {what}" for what, count in findings.checked.items())
    print(f"{megatron.name}: {looked_at}; {len(findings.misfits)} do not fit")
    return 1 if findings.misfits else 0


if __name__ == "__main__":
    sys.exit(main())
