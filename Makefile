# `make nightly` and `make test` do all the set-up themselves; a second call finds it done.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help nightly quick test test-fast check format docs techniques lock clean
.DEFAULT_GOAL := help

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

nightly: $(READY) ## one whole night: data, baseline, variants, gates, registry, report
	$(BIN)/nightpress run

quick: $(READY) ## the same on a small profile, for a first look
	$(BIN)/nightpress run --profile quick

test: $(READY) ## all tests, the slow ones (real servers, kills) too
	$(BIN)/python -m pytest

test-fast: $(READY) ## the tests for every change
	$(BIN)/python -m pytest -m 'not slow'

check: $(READY) ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## put the code into form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY) ## write docs/techniques.md from the code and the last results
	$(BIN)/python -m tasks.technique_docs

techniques: $(READY) ## press every recipe, and make the table of techniques from that night (hours)
	$(BIN)/python -m benchmarks.techniques

lock: ## resolve the dependencies anew into requirements.lock
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet -e '.[dev]' setuptools
	$(VENV)-lock/bin/pip freeze --all --exclude-editable --exclude pip \
	  | sed -E 's/\+cpu$$//' > requirements.lock.part
	mv requirements.lock.part requirements.lock
	rm -rf $(VENV)-lock

# one installation at a time, and none counts until it is whole; who waited finds it done
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and "Nightpress needs Python 3.11: make PYTHON=/path/to/python3.11")'
	@mkdir -p $(VENV)
	@flock $(VENV) sh -exc '\
	  if [ $(READY) -nt requirements.lock ] && [ $(READY) -nt pyproject.toml ]; then exit; fi; \
	  $(PYTHON) -m venv $(VENV); \
	  $(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock; \
	  $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	  touch $(READY)'

clean: ## remove the environment; data, checkpoints and the registry stay
	rm -rf $(VENV)
