# The project's words. `make serve` and `make test` are all that a newcomer needs.
#   PYTHON=python3.12   another Python      FOURBEE_VENV=/path   another place for .venv
#   ARGS="--port 8081"  options of serve    FOURBEE_TEST_DATA=/path   real data for the tests

PYTHON ?= python3
FOURBEE_VENV ?= $(CURDIR)/.venv
export FOURBEE_VENV
BIN := $(FOURBEE_VENV)/bin
NICE ?=

.DEFAULT_GOAL := help
.PHONY: help install train serve test test-slow test-long check fix bench docs mini train-smoke

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: ## set up .venv with what serving needs (no torch)
	@$(PYTHON) tools/install.py serve

train:
	@$(PYTHON) tools/install.py train

serve: install ## serve fourbee-mini on http://127.0.0.1:8080 (ARGS="--model ...")
	@exec $(BIN)/fourbee serve $(ARGS)

dev:
	@$(PYTHON) tools/install.py dev

test: dev ## the tests (a few minutes on 2 cores)
	@$(BIN)/python tools/run_tests.py -m "not slow and not long and not gpu" $(ARGS)

test-slow: dev ## the proofs that take minutes
	@$(BIN)/python tools/run_tests.py -m "slow and not gpu" $(ARGS)

test-long: dev ## those that take half an hour, or a machine to themselves
	@$(BIN)/python tools/run_tests.py -m "long and not gpu" $(ARGS)

check: dev ## format, lint, types, layers, sizes
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python tools/sizes.py

fix: dev ## format and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: install ## how fast this machine serves fourbee-mini
	@$(BIN)/fourbee bench offline $(ARGS)

docs: dev ## regenerate what docs take from the program
	@$(BIN)/python tools/docs.py

mini: train ## train fourbee-mini anew, from generated data to the packed model (about five hours)
	@$(BIN)/python tools/train_mini.py $(ARGS)

train-smoke: train ## every stage of training on sums, in a minute or two
	@$(BIN)/python tools/train_smoke.py $(ARGS)
