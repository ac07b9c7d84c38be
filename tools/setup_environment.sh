#!/usr/bin/env bash
# Makes the virtual environment ready: Python, torch, this package and its development tools. Running it again does nothing until
# pyproject.toml, the set-up scripts, the Python version or the chosen extras change.
#
#   PYTHON=python3.12          interpreter to build on (3.11 or newer; found by itself otherwise)
#   VENV=.venv                 where the environment lives
#   OCTOPUS_EXTRA=cuda,track   further extras of pyproject.toml. Without `cuda`, torch is the CPU build, whatever the index prefers,
#                              and nothing of CUDA is downloaded.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

WHAT=set-up
ENVIRONMENT=${VENV:-.venv}
PIP_OPTIONS=(--no-input)
CANDIDATES=()
EXTRAS=${OCTOPUS_EXTRA:-}
# shellcheck source=tools/environment.sh
source tools/environment.sh

wants_cuda() { [[ ",$EXTRAS," == *,cuda,* ]]; }

check_torch() {
    "$ENVIRONMENT/bin/python" -c '
import sys, torch
wants_cuda = sys.argv[1] == "any"
if not wants_cuda and torch.version.cuda is not None:
    sys.exit(f"torch {torch.__version__} is a CUDA build; set OCTOPUS_EXTRA=cuda if that is wanted")
if wants_cuda and torch.version.cuda is None:
    sys.exit(f"torch {torch.__version__} is a CPU build, but OCTOPUS_EXTRA asks for cuda")' "$1" ||
        fail "the installed torch is not the wanted build"
}

main() {
    local python key build=cpu
    python=$(find_python)
    key=$(fingerprint "$python" "$EXTRAS" pyproject.toml tools/setup_environment.sh)
    if is_ready "$key"; then return; fi
    if wants_cuda; then build=any; fi
    make_environment "$python"
    install_torch "$build"
    say "3/4 octopus-mcore with extras dev${EXTRAS:+,$EXTRAS}"
    install_around_torch --editable ".[dev${EXTRAS:+,$EXTRAS}]"
    say "4/4 check"
    check_torch "$build"
    "$ENVIRONMENT/bin/octopus-mcore" --help >/dev/null || fail "the installed command does not start"
    mark_ready "$key"
}

main
