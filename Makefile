# Everything sets itself up from a fresh clone: python3 (3.11 or newer) and make are all it takes.
#   make demo    the whole road on the bundled data
#   make test    the test suite; make test-all also what takes long and is like another test
#   make app     the app, on the demo's store where there is one
#   make check   lint, format and types
#   make matrix  every architecture of transformers against float64: docs/MODELS.md
#   make docs    every command of the README and of docs/, run again, with today's output in its place
#   make bench   scoring and training beside what people do today, masks beside polars

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
STORE ?= runs/demo/store

.PHONY: demo test test-all app check bench docs matrix clean

demo: $(READY)
	$(BIN)/python -m pipelines.demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 1

test-all: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 1 -m ""

app: $(READY)
	$(BIN)/tokenstats app $(STORE)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m pipelines.bench_scoring
	$(BIN)/python -m pipelines.bench_masks
	$(BIN)/python -m pipelines.bench_training

docs: $(READY)
	$(BIN)/python -m pipelines.run_docs README.md docs/*.md docs/*.ipynb --write

matrix: $(READY)
	$(BIN)/python -m pipelines.matrix --to docs/MODELS.md

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) runs
