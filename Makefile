# make run: set up, run the pipeline, show the scores.  make test: set up, lint, types, tests.
PYTHON ?= python3.11
VENV := .venv
SHELL := /bin/bash
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: run test benchmark freeze-ladder lint browser extras setup

run: setup
	dvc repro
	python -m stages.show

test: lint browser
	python -m pytest -n auto --dist loadfile

# Training against a reference loop; on photos of your own: make benchmark DATA=data/raw/train
DATA ?= data/sample/train
benchmark: setup
	test -e $(DATA) || dvc repro sample
	python -m benchmarks.training $(DATA) --out benchmark.json

# An experiment for each freeze point, in DVC's queue; then a table and a chart in ladder/.
freeze-ladder: setup
	python -m benchmarks.freeze_ladder ladder

lint: extras
	ruff check stages tests benchmarks
	ruff format --check stages tests benchmarks
	mypy

# The tests of the pages want Chromium: the system's, or playwright's own, or Debian's package.
browser: setup
	@command -v chromium chromium-browser google-chrome > /dev/null || python -m playwright install chromium || { apt-get update -q && apt-get install -qy chromium; }

# What single commands need beside: requirements-demo.txt, ...
extras: $(VENV)/installed-extras

setup: $(VENV)/installed

# Dated after what it was made from, so that it is done over only when that changes.
$(VENV)/installed: requirements.txt constraints.txt
	@command -v $(PYTHON) > /dev/null || { echo "error: $(PYTHON) is not installed: install Python 3.11, or name another: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(VENV)/bin/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

EXTRAS := $(wildcard requirements-*.txt)
$(VENV)/installed-extras: $(VENV)/installed $(EXTRAS)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(EXTRAS:%=-r %)
	touch $@
