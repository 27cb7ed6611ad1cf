# Everything sets itself up in .venv on a bare machine (python3 >= 3.11 with pip and venv, make, g++).
# constraints.txt pins what was tested; in particular torch 2.13.0, whose CPU build needs no CUDA packages.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: oracles demo test check mini score baseline plan-report fuzz format clean

demo: $(VENV)/run.done
	$(BIN)/qvl ask examples/receipt.png "What is the total?"

test: $(VENV)/dev.done
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# Clients of other people against `qvl serve`, each in an environment of its own below .clients; needs npm.
clients: $(VENV)/dev.done
	$(BIN)/python tests/clients/run.py --environments .clients

check: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py tests/test_docs.py

# Trains the embedded model further: from runs/mini, or from the packed weights (without --start: from nothing). A GPU is used when there is one.
mini: $(VENV)/run.done
	$(BIN)/python training/train_mini.py --out runs/mini --start src/qvl/mini --minutes $(or $(MINUTES),105) --ranks $(or $(RANKS),2)

# The embedded model's scores on pictures it never saw.
score: $(VENV)/run.done
	$(BIN)/qvl synth --score mini

# The embedded model's answers, which qvl doctor compares with; after every change of its weights.
baseline: $(VENV)/run.done
	$(BIN)/qvl doctor --baseline save src/qvl/doctor/baselines/mini.json

# Other people's stored runs and scorers beside qvl's: FOLDER holds the official repositories (benchmarks/evaluate/peers.py).
oracles: $(VENV)/dev.done
	$(PIP) Levenshtein apted Distance zss anls anls_star nltk
	$(BIN)/python benchmarks/evaluate/stored.py $(FOLDER)
	$(BIN)/python benchmarks/evaluate/pairs.py $(FOLDER)

# Mutated files and replies with new seeds; a crash is kept in tests/fuzz/found and played by the tests.
fuzz: $(VENV)/dev.done
	$(BIN)/python tests/fuzz/mutate.py $(or $(MINUTES),60)

plan-report: $(VENV)/run.done
	$(BIN)/python benchmarks/plan_report.py

format: $(VENV)/dev.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"qvl needs Python 3.11 or newer; $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.done: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) -e '.[run]'
	@touch $@

$(VENV)/dev.done: $(VENV)/run.done
	$(PIP) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
