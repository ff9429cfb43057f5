# make demo: set up .venv and distil the embedded default.   make test: set up and run the tests.
# make docs: build the documentation into site/; `python -m http.server -d site` shows it.
# make faults: damaged files, configurations and processes, in full.   make long: the tests that take most of a minute each.
PYTHON ?= python3
BIN := .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test docs long faults lint clean

demo: .venv/.installed
	$(BIN)/lightgpt2 fit --config distill.yaml

test: .venv/.installed-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --config-file .ci/mkdocs.yml

long: .venv/.installed-dev
	$(BIN)/python -m pytest -m long --numprocesses 2 --dist loadscope

faults: .venv/.installed-dev
	$(BIN)/python -m pytest tests/faults --faults large --numprocesses 2

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The hashes of all packages are verified, and of what builds those that come as source (rouge-score). What torch's CUDA builds
# need besides, torch itself names by its exact version.
.venv/.installed: pyproject.toml constraints.txt .ci/torch-cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --no-deps --require-hashes --requirement .ci/torch-cpu.txt 2> /dev/null || true
	awk '/^setuptools==/, /# via/' constraints.txt > .venv/setuptools.txt
	$(PIP) --no-deps --require-hashes --requirement .venv/setuptools.txt
	$(PIP) --no-deps --require-hashes --no-build-isolation --requirement constraints.txt
	$(PIP) --no-build-isolation --editable .
	touch $@

.venv/.installed-dev: .venv/.installed tests/requirements.txt
	$(PIP) --no-deps --require-hashes --requirement tests/requirements.txt
	touch $@

.venv/.installed-docs: .venv/.installed .ci/docs.txt
	$(PIP) --no-deps --require-hashes --requirement .ci/docs.txt
	touch $@

clean:
	rm -rf .venv site .pytest_cache .mypy_cache .ruff_cache
