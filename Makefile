# `make demo` and `make test` set up all they need: Python 3.11 or newer and this file are enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Test processes at a time: one more than cores, because many tests wait for what they started.
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min((os.cpu_count() or 1) + 1, 4))')
# pip compiles on one core: `demo` leaves that to the first import, `test` uses all cores.
export PYTHONDONTWRITEBYTECODE :=
# On Linux, pip takes the CUDA build of torch unless your index offers a CPU one: see README.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile \
  --constraint constraints.txt

.PHONY: help demo test check lint imports types proto-check test-paddle test-triton test-containers test-soak audit sbom geneval-ops bench gpu-check gpu-kit clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 17

demo: $(VENV)/.demo ## start the OCR reward, train the tiny SD3 model against it, write a report
	$(BIN)/flow-grpo demo $(DEMO)

test: $(VENV)/.dev ## every test that needs no environment of its own
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

check: lint imports types proto-check ## lint, who imports whom, types, generated code

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

imports: $(VENV)/.dev
	PYTHONPATH=proto:services:trainer $(BIN)/lint-imports --no-logo

types: $(VENV)/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

proto-check: $(VENV)/.dev
	$(BIN)/python proto/generate.py --check

test-paddle: .venv-paddle/.done ## the PaddleOCR engine, in an environment of its own
	OMP_NUM_THREADS=1 .venv-paddle/bin/python -m pytest tests/services/ocr/test_paddle.py

# PaddleOCR wants another OpenCV than RapidOCR, of which only the model files are needed here.
.venv-paddle/.done: pyproject.toml constraints-paddle.txt
	$(PYTHON) -m venv .venv-paddle
	.venv-paddle/bin/python -m pip --disable-pip-version-check install --quiet -c constraints-paddle.txt \
	  --editable '.[ocr-paddle]' pytest pytest-asyncio pytest-timeout
	.venv-paddle/bin/python -m pip --disable-pip-version-check install --quiet --no-deps rapidocr==3.10.0
	@touch $@

test-triton: $(VENV)/.dev .venv-triton/.done ## the published Triton client against our services
	$(BIN)/python -m pytest tests/services/dialects/test_triton_client.py

# It wants an older protobuf than we do: it runs in an environment of its own.
.venv-triton/.done:
	$(PYTHON) -m venv .venv-triton
	.venv-triton/bin/python -m pip --disable-pip-version-check install --quiet 'tritonclient[http,grpc]==2.73.0'
	@touch $@

test-containers: $(VENV)/.dev ## the images, built, started and called, on a Docker engine
	docker/ci/run.sh $(BIN)/python

# SOAK='--parts hostile kills', SOAK='--steady 3600', SOAK=--short; runs/soak keeps the figures.
test-soak: $(VENV)/.dev ## attacks, overload, crashes, half an hour; writes docs/reliability.md
	$(BIN)/python tests/soak/soak.py $(SOAK)

audit: .venv-audit/.done ## known vulnerabilities of the pinned versions; needs the network
	.venv-audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt
	.venv-audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints-paddle.txt

sbom: $(VENV)/.dev .venv-audit/.done ## the development environment as CycloneDX, sbom.cdx.json
	.venv-audit/bin/cyclonedx-py environment $(BIN)/python --output-file sbom.cdx.json

.venv-audit/.done:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip --disable-pip-version-check install --quiet cyclonedx-bom==7.5.0 pip-audit==2.10.1
	@touch $@

geneval-ops: ## GenEval's image with mmcv's operators compiled: a quarter of an hour on two cores
	MMCV_OPS=1 docker compose build geneval

bench: ## service overhead and batching, against Flask + pickle and LitServe
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip --disable-pip-version-check install --quiet \
	  --constraint constraints.txt --requirement benchmarks/requirements.txt --editable '.[serve]'
	.venv-bench/bin/python benchmarks/overhead.py
	.venv-bench/bin/python benchmarks/batching.py

# PYTHON: the one that has torch, with CUDA. SHRUNK=1: the same steps on a CPU, shapes shrunk.
gpu-check: ## what only a GPU can show, in nine minutes at most (docs/gpu/README.md); SHRUNK=1 on a CPU
	$(PYTHON) benchmarks/gpu/check.py $(if $(SHRUNK),--shrunk) $(GPU_CHECK)

KIT ?= gpu-kit
KIT_PYTHON ?= 3.12
KIT_MB := 60

# On the machine: pip install --no-index --no-deps --target site gpu-kit/*.whl; PYTHONPATH=site make gpu-check
gpu-kit: ## wheels that a machine with torch and no network lacks for gpu-check, in one folder
	$(PYTHON) -m pip --disable-pip-version-check download --quiet --no-deps --only-binary=:all: \
	  --python-version $(KIT_PYTHON) --implementation cp $(foreach n,39 34 31 28 27 17 5,--platform manylinux_2_$(n)_x86_64) \
	  --platform manylinux2014_x86_64 --platform manylinux1_x86_64 --platform any \
	  --constraint constraints.txt --requirement benchmarks/gpu/kit.txt --dest $(KIT)
	@mb=$$(du -sm $(KIT) | cut -f1); echo "$(KIT): $$mb MB"; [ $$mb -le $(KIT_MB) ]

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[dev]'
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # some packages carry files for other Pythons
	$(BIN)/python tests/support/torchvision_cpu.py
	@touch $@ $(VENV)/.demo

clean: ## remove the environments and caches, not the runs
	rm -rf $(VENV) .venv-proto .venv-paddle .venv-triton .venv-bench .venv-audit .venv-containers .pytest_cache .ruff_cache .import_linter_cache
