# `make demo` and `make test` set everything up on a fresh machine: a virtual environment and the package with its dependencies.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := lightning_logs/demo

.PHONY: demo test slurm lint format clean

demo: $(INSTALLED)
	$(BIN)/salm-cli protect --config configs/quickstart.yaml --out $(DEMO) --overwrite true

test: $(INSTALLED)
	$(BIN)/python -m pytest

# On a SLURM of two nodes that the tests start, as root; see tests/slurm/cluster.py.
slurm: $(INSTALLED)
	$(BIN)/python -m pytest -m slurm --numprocesses 0

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The stamp is newer than pyproject.toml once the installation has succeeded, so it happens once.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one, as in: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable '.[test,dev]'
	@touch $@

# Removes what make has made, and no other run under lightning_logs.
clean:
	rm -rf $(VENV) $(DEMO) build dist .pytest_cache .mypy_cache .ruff_cache
	find salm_lightning tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
