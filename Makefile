# make demo   base, SFT, reward model, PPO and GRPO, exam: on this machine, in six to eleven minutes
# make test   lint, types and tests
# make bench  every promise about speed and memory, measured: steps on a CPU beside bare TRL among them
# make drill  kill -9 at random moments until done, 200 rounds: make drill ROUNDS=20 SEED=2 FAULT=term
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

ROUNDS ?= 200
SEED ?= 1
FAULT ?= kill

.PHONY: test demo lint test-slow bench drill clean

demo: $(VENV)/installed
	$(BIN)/toolkit run recipes/quickstart.yaml --overwrite

test: $(VENV)/installed lint
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -q -m slow

bench: $(VENV)/installed
	$(BIN)/python -m pytest -q -s -m benchmark

drill: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.drill --rounds $(ROUNDS) --seed $(SEED) --fault $(FAULT)

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another with: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .ruff_cache .hypothesis
