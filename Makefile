# `make demo` and `make test` do all the set-up on a fresh machine, then the job; see tools/setup_environment.sh for its variables.
export PYTHON OCTOPUS_EXTRA
export VENV ?= .venv
export ENGINE_VENV ?= .venv-sglang
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup setup-engines demo demo-smoke test test-unit test-distributed test-layouts test-engines test-gpu check-megatron test-newest-megatron lint docs clean

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 20

setup: ## Make the virtual environment ready (does nothing when it is)
	@tools/setup_environment.sh

setup-engines: setup ## Make the environment of the SGLang engine ready, for machines without a GPU (1.8 GB)
	@tools/setup_engines.sh

demo: setup ## Train the digits demo: SFT, RL stage I, RL stage II, evaluation, export; prints its table
	$(BIN)/octopus-mcore train examples/digits_octopus.yaml

demo-smoke: setup ## The same in miniature, to see that everything works
	$(BIN)/octopus-mcore train examples/digits_smoke.yaml

test: setup ## All tests that need no engine environment
	$(PYTEST) --ignore=tests/engines --ignore=tests/gpu

test-unit: setup ## Unit tests (minutes)
	$(PYTEST) tests/unit

test-distributed: setup ## Tests with several ranks on gloo
	$(PYTEST) tests/distributed

test-layouts: setup ## Every valid layout of up to eight ranks in real runs (minutes)
	$(PYTEST) -m sweep tests/distributed/test_every_layout.py

test-engines: setup-engines ## Tests against real SGLang servers on the CPU
	OCTOPUS_ENGINE_PYTHON=$(ENGINE_VENV)/bin/python $(PYTEST) tests/engines

test-gpu: ## Tests that need a GPU with Transformer-Engine, in the environment of docs/installation-gpu.md (never run so far)
	$(PYTEST) tests/gpu

check-megatron: setup ## Hold every use of Megatron-Core against the sources of its newest release (seconds; downloads the wheel)
	$(BIN)/python tools/check_megatron_api.py

test-newest-megatron: setup ## Tests with several ranks on the Python sources of the newest Megatron-Core (downloads 200 MB)
	$(BIN)/python tools/check_megatron_api.py --unpack build/newest-megatron
	PYTHONPATH=build/newest-megatron $(PYTEST) tests/distributed

lint: setup ## Style, import floors, shell scripts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@if command -v shellcheck >/dev/null; then shellcheck .ci/run tools/*.sh slurm/*.sbatch; else echo "shellcheck is not installed: shell scripts not checked"; fi

docs: setup ## Write the generated pages of docs/
	$(BIN)/octopus-mcore config-docs

clean: ## Remove caches and build products; run directories and the environment stay
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .import_linter_cache
	find octopus_mcore tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
