# Two commands: `make run` and `make test`. Both set up .venv when it is missing or out of date. `make docs` builds the site.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar off -c constraints.txt

.PHONY: run test lint types venv docs gallery dist clean

# what `featalign` needs to run
.venv/core: pyproject.toml constraints.txt
	@echo "installing featalign into .venv (a minute or two the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(INSTALL) -e .
	@touch $@

# and what its tests and notebooks need
.venv/dev: .venv/core
	@echo "installing the development tools into .venv"
	@$(INSTALL) -e '.[dev]'
	@touch $@

venv: .venv/dev

run: .venv/core
	$(BIN)/featalign compare --dataset digits --overwrite

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/dev
	$(BIN)/mypy

test: lint types
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder  # long files first: tests/conftest.py

# the site, in build/site; needs no internet once installed
.venv/docs: .venv/dev
	@echo "installing what the site is built with into .venv"
	@$(INSTALL) -e '.[docs]'
	@touch $@

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "the site is build/site/index.html"

# thumbnails of the gallery and pictures of the methods; the thumbnails need Chromium
gallery: .venv/dev
	$(BIN)/python -m gallery.make
	$(BIN)/python -m sitegen.pictures

dist: .venv/dev
	$(BIN)/python -m build --outdir dist .

clean:
	rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache
