# shellcheck shell=bash
# What the set-up scripts share. They source it in the repository's root, with these variables set:
#
#   WHAT           what messages call the set-up
#   ENVIRONMENT    where the environment lives
#   PIP_OPTIONS    options of every `pip install`
#   CANDIDATES     interpreters to look at before those of the machine

TORCH_VERSION=2.13.0
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
SECONDS=0

say() { printf '[%s %3ds] %s\n' "$WHAT" "$SECONDS" "$*"; }
fail() { printf '%s failed: %s\n' "$WHAT" "$*" >&2; exit 1; }
pip_install() { "$ENVIRONMENT/bin/python" -m pip install "${PIP_OPTIONS[@]}" "$@"; }

# Prints the interpreter to build on: 3.11 or newer, and that of PYTHON where it is set.
find_python() {
    local candidate tried=("${CANDIDATES[@]}" python3.11 python3.12 python3.13 python3 python)
    if [[ -n ${PYTHON:-} ]]; then tried=("$PYTHON"); fi
    for candidate in "${tried[@]}"; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer found (tried ${tried[*]}); set PYTHON"
}

# What the finished environment depends on, as one hash: the interpreter, a text, this file and the named ones.
fingerprint() {
    local python=$1
    shift
    "$python" - "$@" tools/environment.sh <<'PYTHON'
import hashlib, pathlib, sys
parts = [sys.version, sys.argv[1], *(pathlib.Path(name).read_text() for name in sys.argv[2:])]
print(hashlib.sha256("\0".join(parts).encode()).hexdigest())
PYTHON
}

# Whether the environment was finished with this fingerprint.
is_ready() { [[ -f $ENVIRONMENT/.octopus-set-up && $(<"$ENVIRONMENT/.octopus-set-up") == "$1" ]]; }

mark_ready() {
    printf '%s\n' "$1" >"$ENVIRONMENT/.octopus-set-up"
    say "ready: $("$ENVIRONMENT/bin/python" -c 'import torch; print("torch", torch.__version__)'), $(du -sh "$ENVIRONMENT" | cut -f1)"
}

make_environment() {
    say "1/4 virtual environment $ENVIRONMENT on $("$1" --version)"
    rm -f "$ENVIRONMENT/.octopus-set-up"
    "$1" -m venv "$ENVIRONMENT" || fail "$1 cannot make virtual environments (on Debian and Ubuntu: apt install python3-venv)"
}

# Whether the torch that pip would take from the configured index needs CUDA libraries; looks at its metadata only.
index_brings_cuda() {
    local report
    report=$("$ENVIRONMENT/bin/python" -m pip install --dry-run --no-deps --ignore-installed --quiet --report - "torch==$TORCH_VERSION") ||
        fail "pip finds no torch $TORCH_VERSION"
    "$ENVIRONMENT/bin/python" -c '
import json, sys
from pip._vendor.packaging.requirements import Requirement
needs = [Requirement(text) for text in json.load(sys.stdin)["install"][0]["metadata"].get("requires_dist", [])]
cuda = [need for need in needs if need.name.startswith(("nvidia", "cuda")) and (not need.marker or need.marker.evaluate({"extra": ""}))]
sys.exit(0 if cuda else 1)' <<<"$report"
}

# Installs torch: the CPU build for `cpu`, whatever the index prefers for `any`.
install_torch() {
    local index=()
    say "2/4 torch $TORCH_VERSION"
    if [[ $1 == cpu ]] && index_brings_cuda; then
        say "the package index offers a CUDA build of torch; taking the CPU build from $TORCH_CPU_INDEX"
        index=(--index-url "$TORCH_CPU_INDEX")
    fi
    pip_install "${index[@]}" "torch==$TORCH_VERSION"
}

# `pip install` in which no dependency moves torch.
install_around_torch() {
    local constraints=$ENVIRONMENT/.octopus-constraints
    "$ENVIRONMENT/bin/python" -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >"$constraints"
    pip_install --constraint "$constraints" "$@"
}
