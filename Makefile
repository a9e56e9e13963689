# make demo   a real call through a real daemon, its emotions read back from Redis
# make run    serve until Ctrl-C
# make test   everything: style, types, architecture, tests
PYTHON ?= python3
# Processes that run tests; each takes up to 3 GB.
WORKERS ?= 2
# How often a test that fails is tried again; it is reported as RERUN, and is a fault to look for.
RERUNS ?= 0
VENV := .venv
BIN := $(VENV)/bin
# Through the environment, so that a path may hold spaces and quotes.
export CALL ?= $(firstword $(wildcard ../shared/data/calls/support_call_stereo_8k.wav data/calls/support_call_stereo_8k.wav) daemon/demo/call.flac)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo run test clean

demo: $(VENV)/.demo
	$(BIN)/medusa-daemon demo "$$CALL"

run: $(VENV)/.demo
	$(BIN)/medusa-daemon serve

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadgroup --reruns $(RERUNS)

# The daemon's environment has no torch; the test environment adds it on top.
$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[demo]'
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) .medusa
