# Everything here needs only make, a POSIX shell, Python 3.11 to 3.13 and the package index; lab-deps alone needs root.
# PYTHON=/path/to/python names the interpreter; without it the newest that works is taken (tools/find_python.sh).
# Paths are relative throughout, so that the checkout may lie under any name.

# Branch coverage in percent that `make test-all` asks for.
COVERAGE_MIN ?= 94
# What pytest is given: make test TESTS="tests/unit -k frames"
TESTS ?=
# How many tests run at a time; 0 is one after the other, in this process.
JOBS ?= 2
# How many runs or mutants: make flake N=50 TESTS=tests/sim, make mutants N=10 ONLY=warpgate_trio/link SEED=7
N ?=
ONLY ?=
SEED ?=
# Where a long row of runs goes on: make flake N=12 FIRST=9 SEED=7
FIRST ?=
# For how long, and what alone: make fuzz SECONDS=600 TARGET=signal
SECONDS ?= 60
TARGET ?=

PYTHON ?=
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help demo test test-all flake mutants fuzz lint format docs bench dist lab-deps clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-17s%s\n", $$1, $$2 }'

demo: ## set up, and watch two nodes find each other and move bytes
	@sh tools/in_venv.sh run warpgate-trio demo

test: lint ## a few minutes: lint, and all tests that are not marked as slow; or those that TESTS names
	@sh tools/in_venv.sh dev pytest -n $(JOBS) $(if $(TESTS),$(TESTS),-m "not slow")

test-all: lint ## everything that must hold, as in CI: lint, and all tests, with branch coverage
	@sh tools/in_venv.sh dev pytest -n $(JOBS) --cov --cov-fail-under=$(COVERAGE_MIN)

flake: ## N=20 runs of all that draws or opens sockets, each with new seeds, beside CPU load
	@sh tools/in_venv.sh dev python tools/flake.py --runs $(or $(N),20) --jobs $(JOBS) $(SEED:%=--seed %) $(FIRST:%=--first %) $(TESTS)

mutants: ## N=40 small changes of the code, one at a time: which does no test notice?
	@sh tools/in_venv.sh dev python tools/mutants.py --count $(or $(N),40) $(SEED:%=--seed %) $(ONLY:%=--only %)

fuzz: ## hostile inputs to everything that takes some, SECONDS=60 for each
	@sh tools/in_venv.sh dev python -m tests.fuzz.run --seconds $(SECONDS) $(SEED:%=--seed %) $(TARGET:%=--target %)

lint: ## ruff, mypy, import-linter, the house rules, type completeness
	@sh tools/in_venv.sh dev python tools/lint.py

format: ## let ruff lay out the code and mend what it can
	@sh tools/in_venv.sh dev ruff check --fix-only .
	@sh tools/in_venv.sh dev ruff format .

docs: ## build the documentation as a site in docs/_build/html; a warning is a failure
	@sh tools/in_venv.sh docs sphinx-build -q -E -W -n --keep-going -c docs -d docs/_build/doctrees . docs/_build/html
	@echo "docs: built in docs/_build/html"

bench: ## run every benchmark (minutes; see benchmarks/README.md)
	@for each in connect_time round_trips punch_times cold_start pipe_throughput messages quic_throughput many_pipes idle_node idle_server signals relay_server turn_server attack_costs link_pauses simulator; do \
		sh tools/in_venv.sh dev python -m benchmarks.$$each || exit 1; done

dist: ## build sdist and wheel, and try the wheel in empty environments
	@sh tools/in_venv.sh dev python tools/dist.py

lab-deps: ## (root, Debian) install the real servers that the lab tests talk to
	@sh tools/lab_deps.sh

clean: ## remove all that these commands made
	rm -rf .venv dist docs/_build .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
