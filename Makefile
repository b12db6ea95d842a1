# make run: set up, run the pipeline, show the scores.  make test: set up, lint, types, tests.
PYTHON ?= python3.11
VENV := .venv
SHELL := /bin/bash
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: run test lint setup

run: setup
	dvc repro
	python -m stages.show

test: lint
	python -m pytest -n auto --dist loadfile

lint: setup
	ruff check stages tests
	ruff format --check stages tests
	mypy

setup: $(VENV)/installed

# Dated after what it was made from, so that it is done over only when that changes.
$(VENV)/installed: requirements.txt constraints.txt
	@command -v $(PYTHON) > /dev/null || { echo "error: $(PYTHON) is not installed: install Python 3.11, or name another: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(VENV)/bin/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
