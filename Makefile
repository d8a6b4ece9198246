# Two commands: `make run` and `make test`. Both set up .venv when it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS ?= dev,notebooks

.PHONY: run test lint types venv clean

venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

run: venv
	$(BIN)/featalign compare --dataset digits --overwrite

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy

test: lint types
	$(BIN)/python -m pytest

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
