# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PACKAGED := pyproject.toml constraints.txt

.PHONY: setup demo test test-long check format bench msrc clean

setup: $(VENV)/.demo-ready ## maskmill with everything the demo needs

demo: $(VENV)/.demo-ready ## label the Earth: teacher, calibration, labels, picture
	$(BIN)/maskmill demo

test: $(VENV)/.dev-ready ## the whole default suite
	$(BIN)/python -m pytest -n auto --dist loadfile

test-long: $(VENV)/.dev-ready ## the longer checks as well
	$(BIN)/python -m pytest -n auto --dist loadfile -m "slow or not slow"

check: $(VENV)/.dev-ready ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.dev-ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev-ready ## every benchmark; needs the photos of MASKMILL_DATA
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/label_run.py

msrc: $(VENV)/.dev-ready ## the table of label quality on MSRC; needs the photos of MASKMILL_DATA
	$(BIN)/python benchmarks/msrc.py --resolution half
	$(BIN)/python benchmarks/msrc.py --resolution full

clean: ## remove what the targets above made
	rm -rf $(VENV) build dist *.egg-info demo-output .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null 2>&1 && $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { rm -rf $(VENV); echo "maskmill needs Python 3.11 or newer; set it with: make PYTHON=/path/to/python3.11"; exit 1; }

$(VENV)/.demo-ready: $(PACKAGED) | $(BIN)/python
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.dev-ready: $(PACKAGED) | $(BIN)/python
	@$(BIN)/python -c 'import torch' 2>/dev/null \
	  || echo "the tests compare with PyTorch: where pip takes a CUDA build, it fetches about 3 GB once"
	$(PIP) --editable '.[cpu,demo,export,train,dev]'
	@touch $(VENV)/.demo-ready $@
