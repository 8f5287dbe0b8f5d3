# Every target does its own set-up, in .venv (.venv-gpu with EXTRA=gpu); only python3 (3.11 or newer) with its venv module is needed.
#
#   make demo        sanitize the sample model of samples/; the report goes to demo-out/report
#   make test        all tests but the slow ones        make test-slow   those, minutes each
#   make test-frameworks   those that need Keras, TensorFlow and JAX, which it installs
#   make test-browser      those of the web page in Chromium, which it installs on Debian and Ubuntu
#   make lint        ruff, mypy, import contracts       make bench       measure against the vendor models
#   make bench-proxy        the differentiable proxy beside onnx2fx, and its speed beside torch's own
#   make bench-search       the search for triggers beside that of adversarial-robustness-toolbox; an hour
#   make bench-adapters     which models of which framework become ONNX, and how equal
#   make bench-graphs       every architecture's graph: loads, matches, zeroes, slims; a quarter of an hour
#   make bench-growth       how the cost of a scan grows with classes, images, pixels and parameters; hours
#   make bench-memory       how much memory large models take
#   make bench-export       what exports for the edge keep of accuracy, size and speed
#   make bench-retrain      every method of retraining on the vendor models, and how fast a backdoor is learnt again; hours
#   make bench-serving      the server beside a plain FastAPI app, and the classifier beside a bare session
#
#   EXTRA=gpu        onnxruntime for CUDA instead of the CPU's
#   CONSTRAINTS=     newest versions instead of the tested ones
#   PIP_FLAGS=...    more flags for pip, as the index that PyTorch's install page names for CPU-only wheels
#   TEST_FLAGS=...   more flags for pytest               DEMO_FLAGS=...  more flags for debride sanitize

PYTHON ?= python3
EXTRA ?= cpu
CONSTRAINTS ?= constraints.txt
PIP_FLAGS ?=
TEST_FLAGS ?=
DEMO_FLAGS ?=

VENV := .venv$(if $(filter gpu,$(EXTRA)),-gpu)
BIN := $(VENV)/bin
SETUP := setup.cfg pyproject.toml $(CONSTRAINTS)
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) \
	$(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
RUN_STAMP := $(VENV)/.installed-$(EXTRA)
TEST_STAMP := $(VENV)/.installed-$(EXTRA)-test
FRAMEWORKS := keras,tensorflow,jax
FRAMEWORKS_STAMP := $(VENV)/.installed-$(EXTRA)-frameworks

CHROMIUM_INSTALL = { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install chromium chromium-driver; }

DEMO_MODEL := samples/fashion-backdoored.onnx
DEMO_IMAGES := samples/images
DEMO_OUT := demo-out
DEMO_EVALUATE = --images $(DEMO_IMAGES) --trigger samples/true-trigger.npz

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-frameworks test-browser lint bench bench-adapters bench-proxy bench-graphs bench-growth \
	bench-memory bench-export bench-retrain bench-search bench-serving clean

help:
	@sed -n '/^#   /s/^#   //p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "debride needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "no virtual environment could be made; on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }

$(RUN_STAMP): $(SETUP) | $(BIN)/python
	@echo "installing debride into $(VENV), once" >&2
	$(PIP) --editable '.[$(EXTRA)]'
	@touch $@

$(TEST_STAMP): $(RUN_STAMP)
	$(PIP) --editable '.[$(EXTRA),test]'
	@touch $@

$(FRAMEWORKS_STAMP): $(TEST_STAMP)
	$(PIP) --editable '.[$(EXTRA),test,$(FRAMEWORKS)]'
	@touch $@

# Exit code 1 of the first evaluation is the finding that the demo is about.
demo: $(RUN_STAMP)
	@mkdir -p $(DEMO_OUT)
	@echo "== as delivered, with the trigger that was really planted"
	@$(BIN)/debride evaluate $(DEMO_MODEL) $(DEMO_EVALUATE) || test $$? -eq 1
	@echo "== debride sanitize, which does not know that trigger"
	@$(BIN)/debride sanitize $(DEMO_MODEL) --images $(DEMO_IMAGES) --per-class 10 \
		--output $(DEMO_OUT)/clean.onnx --report $(DEMO_OUT)/report --force $(DEMO_FLAGS)
	@echo "== cleaned, with the trigger that was really planted"
	@$(BIN)/debride evaluate $(DEMO_OUT)/clean.onnx $(DEMO_EVALUATE)
	@echo "== the cleaned model: $(DEMO_OUT)/clean.onnx; the report: $(DEMO_OUT)/report"

test: $(TEST_STAMP)
	$(BIN)/python -m pytest -q -m "not slow and not frameworks and not browser" $(TEST_FLAGS)

test-frameworks: $(FRAMEWORKS_STAMP)
	$(BIN)/python -m pytest -q -m "frameworks and not slow" $(TEST_FLAGS)

test-slow: $(FRAMEWORKS_STAMP)
	$(BIN)/python -m pytest -q -m slow $(TEST_FLAGS)

test-browser: $(TEST_STAMP)
	@{ command -v chromium && command -v chromedriver; } >/dev/null || $(CHROMIUM_INSTALL) || \
		{ echo "needs Chromium and its driver: sudo apt-get install chromium chromium-driver" >&2; exit 1; }
	$(BIN)/python -m pytest -q -m "browser and not slow" $(TEST_FLAGS)

lint: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(FRAMEWORKS_STAMP)
	$(BIN)/python benchmarks/bench_vendor.py

bench-adapters: $(FRAMEWORKS_STAMP)
	$(BIN)/python benchmarks/bench_adapters.py

bench-graphs: $(FRAMEWORKS_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_graphs.py

bench-growth: $(TEST_STAMP)
	$(BIN)/python benchmarks/bench_growth.py
	$(BIN)/python benchmarks/bench_growth.py --large

bench-memory: $(TEST_STAMP)
	$(BIN)/python benchmarks/bench_memory.py --large

bench-export: $(TEST_STAMP)
	$(BIN)/python benchmarks/bench_export.py --threads 1

bench-retrain: $(TEST_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_retrain.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_retrain.py --relearning --per-class 10

bench-serving: $(TEST_STAMP)
	$(PIP) --editable '.[$(EXTRA),test,bench]'
	$(BIN)/python benchmarks/bench_classifier.py
	$(BIN)/python benchmarks/bench_serving.py

bench-proxy: $(FRAMEWORKS_STAMP)
	$(PIP) --editable '.[$(EXTRA),test,$(FRAMEWORKS),bench]'
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_proxy.py

bench-search: $(FRAMEWORKS_STAMP)
	$(PIP) --editable '.[$(EXTRA),test,$(FRAMEWORKS),bench]'
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_search.py --threads 1

clean:
	rm -rf $(VENV) $(DEMO_OUT) build dist
