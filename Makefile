# make test and make demo are all that a fresh machine needs (Python 3.11 with headers and venv, a C++ compiler, make): each does
# the set-up by itself, once. Variables: PYTHON (the interpreter to start from), TORCH_INDEX (a package index for torch
# alone, for example the one of its CPU wheels), ARGS (passed to the job: make test ARGS="-k conv -x").

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=
ARGS ?=
export TORCH_INDEX

BENCH_FLAGS := --benchmark-only --benchmark-warmup=on --benchmark-warmup-iterations=2 --benchmark-max-time=0.3 \
	--benchmark-disable-gc --benchmark-sort=fullname --benchmark-columns=median,iqr,rounds
ENV := $(PYTHON) tools/setup_env.py

.PHONY: setup test test-slow demo lint bench build-ext package-check figures gpu-proof clean

setup:  ## make .venv, install everything, build the compiled module
	@$(ENV)

test:  ## the test suite (without the tests marked slow or gpu)
	@$(ENV) --label tests -- python -m pytest $(ARGS)

test-slow:  ## the tests marked slow
	@$(ENV) --label tests -- python -m pytest -m "slow and not gpu" $(ARGS)

demo:  ## train a small GAN on real handwritten digits and show what it makes
	@$(ENV) --label demo -- python -m gan_fast demo $(ARGS)

lint:  ## ruff and mypy
	@$(ENV) --label lint -- bash -c 'ruff check . && mypy'

bench:  ## every operator against PyTorch, briefly; JSON under benchmarks/results/
	@$(ENV) --label bench -- bash -c 'python -m pytest benchmarks/bench_*.py $(BENCH_FLAGS) --benchmark-json="$$(python benchmarks/machine.py)" $(ARGS)'

build-ext: setup  ## the compiled module alone, in place (only what changed)

package-check:  ## sdist -> wheel -> clean environment -> gan-fast doctor
	@$(ENV) --label package-check -- python tools/packaging_check.py $(ARGS)

figures:  ## what README.md shows, from the result files that it names; ARGS="--layers benchmarks/results/.../FILE.json" for another
	@$(ENV) --label figures -- python tools/figures.py $(ARGS)

gpu-proof:  ## the GPU kernels without a GPU: Triton's interpreter against float64, all binaries against the golden files
	@$(PYTHON) tools/gpu_proof.py $(ARGS)

clean:  ## what builds and runs leave behind; .venv stays
	rm -rf build dist runs demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	rm -f gan_fast/_C*.so gan_fast/_C*.pyd
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
