# `make demo` and `make test` work in a fresh clone; they need Python 3.11 or newer, nothing else.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Each test process uses one core; pytest-xdist runs two of them, each from its end of the list, so that what tests of a
# file share is mostly made once.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all lint types format docs bench model model-cifar10

help:  ## list the targets
	@sed -n 's/^\([a-z.-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

# A larger text, where one lies beside the repository.
TEXT := $(wildcard ../shared/data/text/tinyshakespeare.txt)
demo: .venv  ## train on real digits and on text, sample, write demo/report.html
	$(BIN)/undiffuse demo --out demo $(if $(TEXT),--data $(TEXT))

test: lint types  ## lint, types, and every fast test
	$(PYTEST) -m "not slow"

test-all: lint types  ## the same with the slow tests
	$(PYTEST)

lint: .venv  ## ruff: rules and layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv  ## mypy on the library
	$(BIN)/mypy

format: .venv  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs  ## build the site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv  ## run every benchmark and write bench.html: figures beside what was asked
	$(BIN)/undiffuse bench --folder benchmarks --out bench.html

# The weights that `undiffuse.load("digits")` returns, trained again from the recipe.
BUILTIN := src/undiffuse/builtin/digits
model: .venv  ## train the built-in digits model again
	rm -rf build/digits
	$(BIN)/undiffuse train digits --out build/digits
	$(BIN)/undiffuse evaluate build/digits --json > build/metrics.json
	mkdir -p $(BUILTIN)
	cp $(addprefix build/digits/,model.safetensors config.json README.md recipe.yaml) build/metrics.json $(BUILTIN)/

# The weights of `undiffuse.load("cifar10")` come from this recipe after 3575 steps, cast to bfloat16. It has no last step:
# Ctrl-C ends it, and the same command goes on.
model-cifar10: .venv  ## go on training the small natural-image model: DATA=train.zip of CIFAR-10, TEST=test.zip
	$(BIN)/undiffuse train $(DATA) --recipe src/undiffuse/builtin/cifar10/recipe.yaml --out build/cifar10
	$(BIN)/undiffuse evaluate build/cifar10 $(DATA) --held-out $(TEST) --steps 20 --json > build/cifar10/metrics.json

# The environment. torch goes first and alone, so that the resolution of everything else finds it settled.
.venv: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "undiffuse needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.ready
	$(PIP) -e '.[docs]'
	touch $@
