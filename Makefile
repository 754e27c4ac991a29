# Two commands do everything: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
ARGS ?=
# Small matrices on busy cores: threads inside numpy only fight each other.
export OPENBLAS_NUM_THREADS = 1

.PHONY: help demo test check services services-stop requirements clean

help:
	@echo "make demo      simulated meters to charts, on http://127.0.0.1:8080   (ARGS=\"--meters 120\", ARGS=\"--once --json report.json\")"
	@echo "make test      the whole suite, with checks                           (ARGS=\"tests/gateway -k queue\" for a part)"
	@echo "make check     ruff, mypy --strict, import contracts"
	@echo "make services  mosquitto and TimescaleDB for the tests (root on Debian, or Docker); make services-stop ends them"
	@echo "make requirements   pin the dependencies again, with hashes (needs uv)"

# One environment for demo and tests, made anew when the pins change.
.venv/ready: requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer expected, $(PYTHON) is older; try: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing; try: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: .venv/ready
	@$(BIN)/gridloom demo $(ARGS)

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: check
	@set -a; if [ -f .services/environment ]; then . ./.services/environment; fi; set +a; $(BIN)/pytest $(ARGS)

services:
	@bash tools/services.sh start

services-stop:
	@bash tools/services.sh stop

requirements:
	for extra in edge cloud demo dev; do \
		uv pip compile --quiet --python-version 3.11 --universal --no-header --no-annotate --no-emit-package gridloom \
			--generate-hashes --extra $$extra pyproject.toml -o requirements/$$extra.txt; done

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
