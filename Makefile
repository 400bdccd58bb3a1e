# Everything from nothing but Python and pip: `make demo` runs the main job, `make test` the tests.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install plugins demo test contract slow browser docs lint clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt plugins/fate-trl-agentdojo/pyproject.toml \
		plugins/fate-trl-atbench/pyproject.toml plugins/fate-trl-guard/pyproject.toml \
		plugins/fate-trl-judge/pyproject.toml plugins/fate-trl-methods/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]' -e plugins/fate-trl-agentdojo -e plugins/fate-trl-atbench \
		-e plugins/fate-trl-guard -e plugins/fate-trl-judge -e plugins/fate-trl-methods
	touch $@

# What needs a benchmark package of its own, with 60 more behind it: for CI and for those who work on these plugins.
# Without them their tests are skipped, and `make install` stays short.
plugins: $(VENV)/.plugins

$(VENV)/.plugins: $(VENV)/.installed plugins/fate-trl-agentharm/pyproject.toml \
		plugins/fate-trl-agent-threat-bench/pyproject.toml
	$(BIN)/python -m pip install -q -c constraints.txt -e plugins/fate-trl-agentharm -e plugins/fate-trl-agent-threat-bench
	touch $@

demo: install
	$(BIN)/fate-trl run quickstart

test: install
	$(BIN)/python -m pytest -q -n 2

CONTRACT := -m pytest -q --pyargs fate_trl.testing.contract --fate-plugin

contract: plugins
	$(BIN)/python $(CONTRACT) agentdojo
	$(BIN)/python $(CONTRACT) agentharm \
		--fate-args "$$($(BIN)/python plugins/fate-trl-agentharm/tests/made_up.py $(VENV)/made-up-agentharm)"
	$(BIN)/python $(CONTRACT) agent-threat-bench
	$(BIN)/python $(CONTRACT) atbench \
		--fate-args "$$($(BIN)/python plugins/fate-trl-atbench/tests/rows.py $(VENV)/rows-atbench.json)"
	$(BIN)/python $(CONTRACT) guard \
		--fate-args "$$($(BIN)/python plugins/fate-trl-guard/tests/tiny_guards.py $(VENV)/tiny-guards)"
	$(BIN)/python plugins/fate-trl-judge/tests/scripted_judge.py $(BIN)/python $(CONTRACT) judge
	$(BIN)/python plugins/fate-trl-methods/tests/arguments.py $(VENV)/tiny-methods > $(VENV)/arguments-methods.json
	for plugin in advantages methods preferences losses control rollouts merging; do \
		OMP_NUM_THREADS=1 $(BIN)/python $(CONTRACT) $$plugin --fate-args "$$(cat $(VENV)/arguments-methods.json)" || exit 1; done

slow: plugins
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,qlora]'
	$(BIN)/python -m pytest -q -m slow

# In a real browser: Debian's own, driven by Playwright, which downloads nothing here.
browser: install
	command -v chromium || apt-get install -y --no-install-recommends chromium
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,browser]'
	$(BIN)/python -m pytest -q -m browser tests/browser

docs: install
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache
