# Everything from nothing but Python and pip: `make demo` runs the main job, `make test` the tests.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test contract slow lint clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt plugins/fate-trl-agentdojo/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]' -e plugins/fate-trl-agentdojo
	touch $@

demo: install
	$(BIN)/fate-trl run quickstart

test: install
	$(BIN)/python -m pytest -q -n 2

contract: install
	$(BIN)/python -m pytest -q --pyargs fate_trl.testing.contract --fate-plugin agentdojo

slow: install
	$(BIN)/python -m pytest -q -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
