# Two commands do everything: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
ARGS ?=
CHAOS_S ?= 600
# Small matrices on busy cores: threads inside numpy only fight each other.
export OPENBLAS_NUM_THREADS = 1

.PHONY: help demo test check fuzz kill chaos services services-stop requirements clean

help:
	@echo "make demo      simulated meters to charts, on http://127.0.0.1:8080   (ARGS=\"--meters 120\", ARGS=\"--once --json report.json\")"
	@echo "make test      the whole suite, with checks                           (ARGS=\"tests/gateway -k queue\" for a part)"
	@echo "make check     ruff, mypy --strict, import contracts"
	@echo "make fuzz      atheris on every decoder, a minute each              (ARGS=\"--seconds 600 sniff\" for one, longer)"
	@echo "make kill      kill -9 of the gateway 200 times, and a power cut at every write; about ten minutes"
	@echo "make chaos     everything that can break does, for ten minutes; then the rows are counted, see docs/chaos.md"
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

# A file at a time to several processes, see tests/conftest.py; ARGS="-n 0 ..." or "--pdb ..." keeps to one.
test: check
	@set -a; if [ -f .services/environment ]; then . ./.services/environment; fi; set +a; \
		$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

# Not in requirements/dev: nothing else needs atheris, and it is for Linux alone.
fuzz: .venv/ready
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check atheris==3.0.0
	@$(BIN)/python -m tests.fuzz $(ARGS)

kill: .venv/ready
	GRIDLOOM_KILLS=200 GRIDLOOM_CUTS=0 $(BIN)/pytest -s tests/gateway/test_kill.py tests/gateway/test_power_cut.py

# As root a disk fills up, too: it takes a mount to have a small one.
chaos: .venv/ready
	@$(BIN)/python -m tests.chaos --seconds $(CHAOS_S) --keep docs/chaos.md $(ARGS)

services:
	@bash tools/services.sh start

services-stop:
	@bash tools/services.sh stop

requirements:
	for extra in edge cloud demo dev; do \
		uv pip compile --quiet --python-version 3.11 --universal --no-header --no-annotate --no-emit-package gridloom \
			--generate-hashes --extra $$extra pyproject.toml -o requirements/$$extra.txt; done

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .fuzz
