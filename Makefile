# The project's verbs, the same here and in CI. `make test` on a machine with Python and nothing else works.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install format lint types contracts check fix test test-slow torture demo bench results help
help:
	@echo "make test       everything that CI runs: format, lint, types, import contracts, tests"
	@echo "make demo       harden the embedded model, attack it, measure it: zsrobust-demo/report.html"
	@echo "make test-slow  the tests that take minutes"
	@echo "make torture    kill a training and an evaluation twenty times each, and compare (minutes)"
	@echo "make bench      every timed or memory figure (docs/benchmarks.md)"
	@echo "make fix        format and mend what the linter can mend"

install: $(VENV)/.installed

# torch and torchvision are a pair: one command, one index, pinned by constraints.txt.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

format: install
	$(BIN)/ruff format --check .

lint: install
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

contracts: install
	$(BIN)/lint-imports

check: format lint types contracts

fix: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo: install
	$(BIN)/zsrobust demo

test: check
	$(BIN)/python -m pytest

test-slow: install
	$(BIN)/python -m pytest -m slow

torture: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture.py

bench: install
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/evaluation_memory.py
	$(BIN)/python benchmarks/attacks.py

# The paper's whole table on mini-clip. Needs ZSROBUST_MODELS and ZSROBUST_DATA, and hours: `zsrobust study mini/scale --plan` says how many;
# resumable. The last line alone makes the page again, from the committed records.
results: install
	$(BIN)/zsrobust study mini/scale
	$(BIN)/python results/scale/pack.py
	$(BIN)/python results/scale/checks.py
	$(BIN)/python results/scale/page.py
