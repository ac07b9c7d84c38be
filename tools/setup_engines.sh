#!/usr/bin/env bash
# Makes the environment of the inference engine ready: SGLang 0.5.23 on a CPU build of torch, with nothing of CUDA. For machines without
# a GPU; clusters install SGLang's own build and name its Python in `rollout.sglang.python`. Running it again does nothing until this
# script or the Python version changes.
#
#   PYTHON=python3.12          interpreter to build on (3.11 or newer; that of VENV, or found by itself otherwise)
#   VENV=.venv                 the trainer's environment, whose Python is taken
#   ENGINE_VENV=.venv-sglang   where the environment lives
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ENGINE_VENV=${ENGINE_VENV:-.venv-sglang}
TORCH_VERSION=2.13.0
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
SECONDS=0

# What SGLang needs to serve Qwen-VL models here. Its own metadata wants CUDA libraries and another torch, so pip must not resolve it.
NEEDED=(
    transformers==5.23.0 aiohttp orjson msgspec pyzmq uvloop fastapi uvicorn requests setproctitle psutil pybase64 pydantic
    python-multipart prometheus-client partial-json-parser xxhash zstandard einops scipy tiktoken sentencepiece interegular dill
    IPython pillow httpx jsonschema loguru gguf distro sniffio soundfile
)
PINNED=(
    sglang==0.5.23 torchvision==0.28.0 xgrammar==0.2.7 apache-tvm-ffi==0.1.11 compressed-tensors==0.18.0 openai==2.8.0
)

say() { printf '[engine set-up %3ds] %s\n' "$SECONDS" "$*"; }
fail() { printf 'engine set-up failed: %s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-"${VENV:-.venv}/bin/python" python3.11 python3.12 python3.13 python3 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer found; set PYTHON"
}

fingerprint() {
    "$1" -c 'import hashlib, pathlib, sys; print(hashlib.sha256((sys.version + pathlib.Path(sys.argv[1]).read_text()).encode()).hexdigest())' \
        tools/setup_engines.sh
}

pip_install() { "$ENGINE_VENV/bin/python" -m pip install --no-input --quiet --disable-pip-version-check "$@"; }

# The configured index may serve the CPU build itself; a CUDA build is recognised by its metadata, before it is downloaded.
install_torch() {
    local index=() report
    report=$("$ENGINE_VENV/bin/python" -m pip install --dry-run --no-deps --ignore-installed --quiet --report - "torch==$TORCH_VERSION") ||
        fail "pip finds no torch $TORCH_VERSION"
    if grep -Eq '"(nvidia|cuda)-' <<<"$report"; then
        say "the package index offers a CUDA build of torch; taking the CPU build from $TORCH_CPU_INDEX"
        index=(--index-url "$TORCH_CPU_INDEX")
    fi
    pip_install "${index[@]}" "torch==$TORCH_VERSION"
}

check() {
    "$ENGINE_VENV/bin/python" -c '
import importlib.metadata as metadata, sys, torch
if torch.version.cuda is not None:
    sys.exit(f"torch {torch.__version__} is a CUDA build")
cuda = sorted(d.metadata["Name"] for d in metadata.distributions() if d.metadata["Name"].startswith(("nvidia-", "cuda-")))
if cuda:
    sys.exit("CUDA packages were installed: " + ", ".join(cuda))' || fail "the environment holds something of CUDA"
    SGLANG_USE_CPU_ENGINE=1 CUDA_VISIBLE_DEVICES='' PYTHONPATH=octopus_mcore/rollout/sglang_cpu PYTHONWARNINGS=ignore \
        "$ENGINE_VENV/bin/python" -c 'import sglang, sglang.launch_server; assert sglang.__version__ == "0.5.23"' >/dev/null ||
        fail "sglang cannot be imported"
}

main() {
    local python key stamp=$ENGINE_VENV/.octopus-set-up constraints
    python=$(find_python)
    key=$(fingerprint "$python")
    if [[ -f $stamp && $(<"$stamp") == "$key" ]]; then
        return
    fi
    say "1/4 virtual environment $ENGINE_VENV on $("$python" --version)"
    rm -rf "$ENGINE_VENV"
    "$python" -m venv "$ENGINE_VENV" || fail "$python cannot make virtual environments (on Debian and Ubuntu: apt install python3-venv)"
    say "2/4 torch $TORCH_VERSION"
    install_torch
    say "3/4 sglang 0.5.23 (about 1.8 GB altogether)"
    constraints=$(mktemp)
    trap 'rm -f "$constraints"' RETURN
    "$ENGINE_VENV/bin/python" -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >"$constraints"
    pip_install --constraint "$constraints" "${NEEDED[@]}"
    pip_install --no-deps "${PINNED[@]}"
    say "4/4 check"
    check
    printf '%s\n' "$key" >"$stamp"
    say "ready: $(du -sh "$ENGINE_VENV" | cut -f1)"
}

main
