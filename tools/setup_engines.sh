#!/usr/bin/env bash
# Makes the environment of the inference engine ready: SGLang 0.5.23 on a CPU build of torch, with nothing of CUDA. For machines without
# a GPU; clusters install SGLang's own build and name its Python in `rollout.sglang.python`. Running it again does nothing until the
# set-up scripts or the Python version change.
#
#   PYTHON=python3.12          interpreter to build on (3.11 or newer; that of VENV, or found by itself otherwise)
#   VENV=.venv                 the trainer's environment, whose Python is taken
#   ENGINE_VENV=.venv-sglang   where the environment lives
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

WHAT='engine set-up'
ENVIRONMENT=${ENGINE_VENV:-.venv-sglang}
PIP_OPTIONS=(--no-input --quiet --disable-pip-version-check)
CANDIDATES=("${VENV:-.venv}/bin/python")
# shellcheck source=tools/environment.sh
source tools/environment.sh

# What SGLang needs to serve Qwen-VL models here. Its own metadata wants CUDA libraries and another torch, so pip must not resolve it.
NEEDED=(
    transformers==5.23.0 aiohttp orjson msgspec pyzmq uvloop fastapi uvicorn requests setproctitle psutil pybase64 pydantic
    python-multipart prometheus-client partial-json-parser xxhash zstandard einops scipy tiktoken sentencepiece interegular dill
    IPython pillow httpx jsonschema loguru gguf distro sniffio soundfile
)
PINNED=(
    sglang==0.5.23 torchvision==0.28.0 xgrammar==0.2.7 apache-tvm-ffi==0.1.11 compressed-tensors==0.18.0 openai==2.8.0
)

check() {
    "$ENVIRONMENT/bin/python" -c '
import importlib.metadata as metadata, sys, torch
if torch.version.cuda is not None:
    sys.exit(f"torch {torch.__version__} is a CUDA build")
cuda = sorted(d.metadata["Name"] for d in metadata.distributions() if d.metadata["Name"].startswith(("nvidia-", "cuda-")))
if cuda:
    sys.exit("CUDA packages were installed: " + ", ".join(cuda))' || fail "the environment holds something of CUDA"
    SGLANG_USE_CPU_ENGINE=1 CUDA_VISIBLE_DEVICES='' PYTHONPATH=octopus_mcore/rollout/sglang_cpu PYTHONWARNINGS=ignore \
        "$ENVIRONMENT/bin/python" -c 'import sglang, sglang.launch_server; assert sglang.__version__ == "0.5.23"' >/dev/null ||
        fail "sglang cannot be imported"
}

main() {
    local python key
    python=$(find_python)
    key=$(fingerprint "$python" '' tools/setup_engines.sh)
    if is_ready "$key"; then return; fi
    rm -rf "$ENVIRONMENT"
    make_environment "$python"
    install_torch cpu
    say "3/4 sglang 0.5.23 (about 1.8 GB altogether)"
    install_around_torch "${NEEDED[@]}"
    pip_install --no-deps "${PINNED[@]}"
    say "4/4 check"
    check
    mark_ready "$key"
}

main
