# make demo: set up .venv and distil the embedded default.   make test: set up and run the tests.
# make faults: damaged files, configurations and processes, in full.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test faults lint clean

demo: .venv/.installed
	$(BIN)/lightgpt2 fit --config distill.yaml

test: .venv/.installed-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

faults: .venv/.installed-dev
	$(BIN)/python -m pytest tests/faults --faults large --numprocesses 2

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

.venv/.installed-dev: .venv/.installed tests/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement tests/requirements.txt
	touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
