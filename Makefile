# Every target sets up what it needs: on a fresh machine `make quickstart` and `make test` just work.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint format bench clean
quickstart: $(VENV)/.installed
	$(BIN)/sweeps run search_spaces/quickstart.yaml --resume

# One thread a process: two processes of many threads each would only get in each other's way. Ray gives its workers a low
# priority (niceness 15), so that tests with Ray, which take longest, would wait for the others.
test: lint
	OMP_NUM_THREADS=1 RAY_worker_niceness=0 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed
	$(BIN)/python tests/benchmarks/training_speed.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/decoding_speed.py
	$(BIN)/python tests/benchmarks/trials_per_minute.py
	$(BIN)/python tests/benchmarks/loading_speed.py
	$(BIN)/python tests/benchmarks/report_speed.py
	$(BIN)/python tests/benchmarks/ledger_overhead.py
	$(BIN)/python tests/benchmarks/stage_reuse.py
	$(BIN)/python tests/benchmarks/tracking_overhead.py
	$(BIN)/python tests/benchmarks/many_trials.py

# torch first and by its exact pin: a looser request may bring a build with several GB of GPU libraries.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
