#!/usr/bin/env bash
# Makes the virtual environment ready: Python, torch, this package and its development tools. Running it again does nothing until
# pyproject.toml, this script, the Python version or the chosen extras change.
#
#   PYTHON=python3.12          interpreter to build on (3.11 or newer; found by itself otherwise)
#   VENV=.venv                 where the environment lives
#   OCTOPUS_EXTRA=cuda,track   further extras of pyproject.toml. Without `cuda`, torch is the CPU build, whatever the index prefers,
#                              and nothing of CUDA is downloaded.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-.venv}
EXTRAS=${OCTOPUS_EXTRA:-}
TORCH_VERSION=2.13.0
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
SECONDS=0

say() { printf '[set-up %3ds] %s\n' "$SECONDS" "$*"; }
fail() { printf 'set-up failed: %s\n' "$*" >&2; exit 1; }
wants_cuda() { [[ ",$EXTRAS," == *,cuda,* ]]; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer found (tried ${PYTHON:-python3.11, python3.12, python3.13, python3, python}); set PYTHON"
}

# What the finished environment depends on, as one hash.
fingerprint() {
    "$1" - "$EXTRAS" pyproject.toml tools/setup_environment.sh <<'PYTHON'
import hashlib, pathlib, sys
parts = [sys.version, sys.argv[1], *(pathlib.Path(name).read_text() for name in sys.argv[2:])]
print(hashlib.sha256("\0".join(parts).encode()).hexdigest())
PYTHON
}

# Whether the torch that pip would take from the configured index needs CUDA libraries; looks at its metadata only.
index_brings_cuda() {
    local report
    report=$("$VENV/bin/python" -m pip install --dry-run --no-deps --ignore-installed --quiet --report - "torch==$TORCH_VERSION") ||
        fail "pip finds no torch $TORCH_VERSION"
    "$VENV/bin/python" -c '
import json, sys
from pip._vendor.packaging.requirements import Requirement
needs = [Requirement(text) for text in json.load(sys.stdin)["install"][0]["metadata"].get("requires_dist", [])]
cuda = [need for need in needs if need.name.startswith(("nvidia", "cuda")) and (not need.marker or need.marker.evaluate({"extra": ""}))]
sys.exit(0 if cuda else 1)' <<<"$report"
}

install_torch() {
    local index=()
    if ! wants_cuda && index_brings_cuda; then
        say "the package index offers a CUDA build of torch; taking the CPU build from $TORCH_CPU_INDEX"
        index=(--index-url "$TORCH_CPU_INDEX")
    fi
    "$VENV/bin/python" -m pip install --no-input "${index[@]}" "torch==$TORCH_VERSION"
}

check_torch() {
    "$VENV/bin/python" -c '
import sys, torch
wants_cuda = sys.argv[1] == "1"
if not wants_cuda and torch.version.cuda is not None:
    sys.exit(f"torch {torch.__version__} is a CUDA build; set OCTOPUS_EXTRA=cuda if that is wanted")
if wants_cuda and torch.version.cuda is None:
    sys.exit(f"torch {torch.__version__} is a CPU build, but OCTOPUS_EXTRA asks for cuda")' "$(wants_cuda && echo 1 || echo 0)" ||
        fail "the installed torch is not the wanted build"
}

main() {
    local python key stamp=$VENV/.octopus-set-up constraints
    python=$(find_python)
    key=$(fingerprint "$python")
    if [[ -f $stamp && $(<"$stamp") == "$key" ]]; then
        return
    fi
    say "1/4 virtual environment $VENV on $("$python" --version)"
    rm -f "$stamp"
    "$python" -m venv "$VENV" || fail "$python cannot make virtual environments (on Debian and Ubuntu: apt install python3-venv)"
    say "2/4 torch $TORCH_VERSION"
    install_torch
    say "3/4 octopus-mcore with extras dev${EXTRAS:+,$EXTRAS}"
    constraints=$(mktemp)
    trap 'rm -f "$constraints"' RETURN
    # So that no dependency moves torch.
    "$VENV/bin/python" -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >"$constraints"
    "$VENV/bin/python" -m pip install --no-input --constraint "$constraints" --editable ".[dev${EXTRAS:+,$EXTRAS}]"
    say "4/4 check"
    check_torch
    "$VENV/bin/octopus-mcore" --help >/dev/null || fail "the installed command does not start"
    printf '%s\n' "$key" >"$stamp"
    say "ready: $("$VENV/bin/python" -c 'import torch; print("torch", torch.__version__)'), $(du -sh "$VENV" | cut -f1)"
}

main
