#!/usr/bin/env bash
# Writes the pinned environment pair for GPU clusters, environments/*.lock, or checks that its pins still resolve. Needs the package
# index, a GPU not; downloads metadata only.
#
#   tools/lock_environments.sh             pins what changed in environments/*.in and pyproject.toml, keeps the other pins
#   tools/lock_environments.sh --upgrade   takes the newest version of everything that is not fixed there
#   tools/lock_environments.sh --check     resolves again and asks the index for every pinned file; fails where a pin would change, is
#                                          gone, has other hashes or no build for the platform. Writes nothing
#
#   UV=uv             the resolver (installed into .venv-uv where there is none)
#   PYTHON=python3    interpreter for that installation, of any version
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# 3.12 lies in the ranges of this project (>=3.11), megatron-core 0.16.1 (wheels for 3.10 to 3.13) and SGLang 0.5.23 (3.11 to 3.13).
PYTHON_VERSION=3.12
# SGLang's wheels need glibc 2.34: Ubuntu 22.04, Debian 12, RHEL 9.
PLATFORM=x86_64-manylinux_2_34
# Published as sources; everything else must have a wheel.
COMPILED=(flash-attn transformer-engine-torch)
UV_VERSION=0.13.8

fail() { printf 'locks: %s\n' "$*" >&2; exit 1; }

find_uv() {
    local installed=.venv-uv/bin/uv
    if [[ -n ${UV:-} ]] || { UV=$(command -v uv) && [[ $("$UV" --version) == "uv $UV_VERSION"* ]]; }; then
        return
    fi
    if [[ ! -x $installed ]]; then
        "${PYTHON:-python3}" -m venv .venv-uv
        .venv-uv/bin/python -m pip install --no-input --quiet --disable-pip-version-check "uv==$UV_VERSION" || fail "pip finds no uv $UV_VERSION"
    fi
    UV=$installed
}

# Arguments: a subcommand of `uv pip`, then its arguments.
uv_pip() {
    local command=$1 name arguments=(--only-binary :all:)
    shift
    for name in "${COMPILED[@]}"; do
        arguments+=(--no-binary "$name")
    done
    "$UV" pip "$command" --quiet --config-file environments/uv.toml --no-python-downloads --python-version "$PYTHON_VERSION" \
        --python-platform "$PLATFORM" "${arguments[@]}" "$@"
}

header() {
    cat <<HEADER
# Not run at scale: these pins resolve, no GPU has run them. See docs/installation-gpu.md.
# Python $PYTHON_VERSION, $PLATFORM. Made by tools/lock_environments.sh from $*; do not edit.
HEADER
}

# Arguments: lock to start from and to write, further options of the resolver (or ''), what to resolve.
resolve() {
    local lock=$1 option=$2
    shift 2
    # No address of an index: every cluster has its own mirror, and the hashes say what is meant.
    uv_pip compile --generate-hashes --no-header --no-emit-index-url --no-emit-find-links ${option:+"$option"} --output-file "$lock" "$@" >/dev/null
    { header "$@"; cat "$lock"; } >"$lock.headed"
    mv "$lock.headed" "$lock"
}

write() {
    local lock=$1
    shift
    resolve "$lock" "$UPGRADE" "$@"
    printf '%s: %d pins\n' "$lock" "$(grep -c '^[a-z].*==' "$lock")"
}

check() {
    local lock=$1
    shift
    # Versions only: hashes that it finds in a lock, the resolver would copy.
    sed -e '/^ *--hash=/d' -e 's/ \\$//' "$lock" >"$SCRATCH/lock"
    resolve "$SCRATCH/lock" "" "$@"
    diff -u "$lock" "$SCRATCH/lock" || fail "$lock is not what its inputs resolve to; run tools/lock_environments.sh"
    uv_pip install --dry-run --no-deps --require-hashes --target "$SCRATCH/target" --requirements "$lock" || fail "$lock cannot be installed"
    printf '%s: %d pins resolve\n' "$lock" "$(grep -c '^[a-z].*==' "$lock")"
}

main() {
    local action=write
    UPGRADE=
    case ${1:-} in
    "") ;;
    --upgrade) UPGRADE=--upgrade ;;
    --check) action=check ;;
    *) fail "unknown argument $1; see the top of this script" ;;
    esac
    find_uv
    SCRATCH=$(mktemp -d)
    trap 'rm -rf "$SCRATCH"' EXIT
    "$action" environments/trainer-cuda.lock pyproject.toml environments/trainer-cuda.in
    "$action" environments/engine-sglang-cuda.lock environments/engine-sglang-cuda.in
}

main "$@"
