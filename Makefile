# make run: set up, run the pipeline, show the scores.  make test: set up, lint, types, all tests.
PYTHON ?= python3.11
VENV := .venv
SHELL := /bin/bash
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: run test check benchmark freeze-ladder licences lock lint browser extras setup repository

run: setup
	dvc repro
	python -m commands.show

# One thread per test worker. In `test` there is one worker more than cores: its tests wait for processes.
test check: export OMP_NUM_THREADS := 1

test: lint browser
	python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# Lint, types and the fast tests, before each commit.
check: lint
	python -m pytest -n logical --dist loadfile --no-loadscope-reorder -m "not slow"

# Training against a reference loop; on your own photos: make benchmark DATA=data/raw/train
DATA ?= data/sample/train
benchmark: setup
	$(if $(filter data/sample/train,$(DATA)),test -e $(DATA) || dvc repro sample)
	python -m benchmarks.epoch_times $(DATA) --out benchmark.json

# An experiment for each freeze point of a ResNet; then a table and a chart in sweep/.
freeze-ladder: setup
	python -m commands.sweep train.freeze=none,conv1,layer1,layer2,layer3,layer4

# The licence of every installed package.
licences: extras
	pip-licenses --format=csv --order=license | grep '^"'  # one of them is a text of 200 lines

# All packages, extra ones included, with the hashes of their files on every platform; after a change
# of requirements. To have pip check them: pip install --require-hashes -r requirements.lock
lock: setup
	uv pip compile --quiet --generate-hashes --universal --python-version 3.11 -c constraints.txt $(wildcard requirements*.txt) -o requirements.lock

lint: extras
	ruff check .
	ruff format --check .
	mypy

# The page tests need Chromium: the system's, playwright's or Debian's.
browser: setup
	@command -v chromium chromium-browser google-chrome > /dev/null || python -m playwright install chromium || { apt-get update -q && apt-get install -qy chromium; }

# Extra packages of single commands: requirements-demo.txt, ...
extras: $(VENV)/installed-extras

setup: repository $(VENV)/installed

# DVC needs git. Checked first, as installation takes minutes.
repository:
	@command -v git > /dev/null || { echo "error: git is not installed: install it, then run make again"; exit 1; }
	@git rev-parse --git-dir > /dev/null || { echo "error: this folder is not a git repository, which DVC needs. Clone it with git; or, in a downloaded copy: git init && git add --all && git commit -m start"; exit 1; }

# Touched after installation, so that it is repeated only when the requirements change.
$(VENV)/installed: requirements.txt constraints.txt | repository
	@command -v $(PYTHON) > /dev/null || { echo "error: $(PYTHON) is not installed: install Python 3.11, or name another: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(VENV)/bin/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

EXTRAS := $(wildcard requirements-*.txt)
$(VENV)/installed-extras: $(VENV)/installed $(EXTRAS)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(EXTRAS:%=-r %)
	touch $@
