# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
PACKAGED := pyproject.toml constraints.txt
# STUDENT=no: the demo ends with the labels, and nothing of PyTorch is installed
STUDENT ?= yes
DEMO   := $(if $(filter no,$(STUDENT)),$(VENV)/.demo-ready,$(VENV)/.student-ready)

# throwaway environments: the tools of label formats, and the oldest versions of image libraries that work
TOOLS  := $(VENV)-tools
OLD    := $(VENV)-old
SCALE  := $(VENV)-scale

.PHONY: setup demo test test-long test-export family-references foundation test-gpu fuzz test-formats test-old test-scale test-azure check format site docs-commands bench msrc students prompted clean

setup: $(DEMO) ## maskmill with everything the demo needs

demo: $(DEMO) ## label the Earth: teacher, calibration, labels, student, picture
	$(BIN)/maskmill demo $(if $(filter no,$(STUDENT)),--no-student)

test: $(VENV)/.dev-ready ## the whole default suite
	$(PYTEST)

test-long: $(VENV)/.dev-ready ## the longer checks as well, and new inputs for the random ones
	$(PYTEST) -m "slow or not slow" --hypothesis-profile search

test-export: $(VENV)/.dev-ready ## every model family: exported, compared with PyTorch
	$(PYTEST) -m "slow or not slow" tests/export

# beside the checkout's own PyTorch: torchvision's compiled part is not loaded, timm is for EdgeTAM
family-references: $(VENV)/.dev-ready ## arrays of tests/export/references, from transformers' own processors
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)-references torchvision==0.28.0 timm==1.0.31
	PYTHONPATH=$(VENV)-references:. $(BIN)/python -m tests.export.references.make

# PHOTOS=folder, and MODELS, PROVIDER, BATCH for a part of it
foundation: $(VENV)/.dev-ready ## download, export and label with the named foundation models; needs a network
	$(BIN)/python benchmarks/foundation.py $(PHOTOS) $(if $(MODELS),--models $(MODELS)) \
	  --provider $(or $(PROVIDER),cpu) --batch $(or $(BATCH),1)

test-gpu: $(VENV)/.dev-ready ## what needs an NVIDIA device; fails without one
	MASKMILL_REQUIRE_GPU=1 $(BIN)/python -m pytest -m gpu

# inputs that were never tried before, for all files that are read
MINUTES ?= 10
fuzz: $(VENV)/.dev-ready ## changed files of every format, for MINUTES=10
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

test-formats: $(VENV)/.formats-ready $(TOOLS)/.ready ## label files against the libraries of other tools
	$(BIN)/python -m pytest -m libraries tests/engine/formats/test_tools.py
	$(TOOLS)/bin/python -m pytest -m libraries tests/engine/formats/test_tools_apart.py

test-old: $(OLD)/.ready ## images, labels and stores with older OpenCV, Pillow and PyArrow
	$(OLD)/bin/python -m pytest $(addprefix tests/engine/,inputs formats model store labeling)

test-scale: $(SCALE)/.ready ## runs on Ray, and stores in buckets of a local S3 server
	$(SCALE)/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder tests/engine/cluster

test-azure: $(SCALE)/.ready ## a run into Azure's storage, which Azurite serves locally; needs npm
	npm install --silent --no-audit --no-fund --prefix $(SCALE) azurite@3.35.0
	$(SCALE)/bin/python -m pytest tests/engine/cluster/test_other_clouds.py

check: $(VENV)/.dev-ready ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev-ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

site: $(VENV)/.dev-ready ## the documentation site, in site/
	$(BIN)/python -m mkdocs build --strict

docs-commands: $(VENV)/.dev-ready ## the pages of commands, with their output
	$(BIN)/python docs/run_commands.py

bench: $(VENV)/.dev-ready ## every figure of speed; needs the photos of MASKMILL_DATA
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/kernel_instructions.py
	$(BIN)/python benchmarks/label_run.py
	$(BIN)/python benchmarks/runtimes.py
	$(BIN)/python benchmarks/loading.py

# the tables of quality; all need the photos of MASKMILL_DATA
msrc: $(VENV)/.dev-ready ## labels on MSRC
	$(BIN)/python benchmarks/msrc.py --resolution half
	$(BIN)/python benchmarks/msrc.py --resolution full

# resumable: finished runs are not repeated; hours on two cores
students: $(VENV)/.dev-ready ## missing rows of the student benchmarks, and their tables in docs/students.md
	$(BIN)/python benchmarks/label_tables.py
	$(BIN)/python benchmarks/students_msrc.py
	$(BIN)/python benchmarks/s2c_rounds.py
	$(BIN)/python benchmarks/students_unlabeled.py
	$(BIN)/python benchmarks/student_tables.py

prompted: $(VENV)/.dev-ready ## labels from image-level classes on MSRC
	$(BIN)/python benchmarks/prompted_msrc.py

$(VENV)/.formats-ready: $(VENV)/.dev-ready
	$(PIP) --editable '.[coco,hf]' webdataset cvat-sdk
	@touch $@

$(TOOLS)/.ready: $(PACKAGED)
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --editable . label-studio-sdk datumaro pytest pytest-timeout hypothesis
	@touch $@

$(OLD)/.ready: $(PACKAGED)
	$(PYTHON) -m venv $(OLD)
	$(OLD)/bin/python -m pip install --quiet --editable '.[cpu,heif]' 'opencv-python-headless<5' 'pillow<13' 'pyarrow<26' \
	  aiohttp hypothesis psutil pycocotools pytest pytest-timeout
	@touch $@

$(SCALE)/.ready: $(PACKAGED)
	$(PYTHON) -m venv $(SCALE)
	$(SCALE)/bin/python -m pip install --quiet -c constraints.txt --editable '.[cpu,ray,s3,serve]' 'moto[server,s3]' \
	  aiohttp hypothesis psutil pytest pytest-timeout pytest-xdist
	@touch $@

clean: ## remove what the targets above made
	rm -rf $(VENV) $(VENV)-references $(TOOLS) $(OLD) $(SCALE) build dist *.egg-info demo-output .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null 2>&1 && $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { rm -rf $(VENV); echo "maskmill needs Python 3.11 or newer; set it with: make PYTHON=/path/to/python3.11"; exit 1; }

$(VENV)/.demo-ready: $(PACKAGED) | $(BIN)/python
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.student-ready: $(PACKAGED) | $(BIN)/python
	@$(BIN)/python -c 'import torch' 2>/dev/null || echo "The student needs PyTorch, which pip fetches once:" \
	  "about 3 GB where it takes a CUDA build. \`make demo STUDENT=no\` ends with the labels and does without."
	$(PIP) --editable '.[demo,train]'
	@touch $(VENV)/.demo-ready $@

$(VENV)/.dev-ready: $(PACKAGED) | $(BIN)/python
	@$(BIN)/python -c 'import torch' 2>/dev/null \
	  || echo "The tests need PyTorch, which pip fetches once: about 3 GB where it takes a CUDA build."
	$(PIP) --editable '.[cpu,demo,export,train,docs,dev]'
	@touch $(VENV)/.demo-ready $(VENV)/.student-ready $@
