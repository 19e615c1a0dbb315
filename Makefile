# The README's two commands are `make demo` and `make test`; both set up everything they need in .venv.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A file's tests stay together, for what they share; files are begun in the order of their names, the long ones early.
BOTH_CORES := -n 2 --dist loadfile --no-loadscope-reorder --durations 20

export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM ?= true
NO_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo 1)
ifeq ($(NO_GPU),1)
export DS_ACCELERATOR = cpu
endif

.PHONY: help setup demo test lint types imports unit torch-tests cluster cluster-extras cluster-tests bench site science science-real faults fault-results lock lock-cuda crds chart notices clean

help: ## Show the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-compile
$(VENV)/.installed: pyproject.toml requirements/build.txt requirements/development.txt requirements/demo.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "dapt needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version). Set PYTHON=..."; exit 1; }
	@command -v c++ >/dev/null || { echo "dapt needs a C++ compiler (torch and DeepSpeed look for one): install g++ or clang."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes --requirement requirements/build.txt
	$(PIP) --require-hashes --no-build-isolation --requirement requirements/development.txt --requirement requirements/demo.txt
	$(PIP) --no-build-isolation --editable .
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true # on all cores; pip would use one
	@touch $@

# The oldest transformers that published models must load in; everything else it shares with .venv.
OLDER := build/older-transformers
$(OLDER)/.installed: requirements/older-transformers.txt $(VENV)/.installed
	rm -rf $(OLDER)
	$(PIP) --require-hashes --target $(OLDER) --requirement requirements/older-transformers.txt
	@touch $@

# Links to files beside docs/ lead into the repository.
SITE := build/site-tools
$(SITE)/.installed: requirements/site.txt $(VENV)/.installed
	rm -rf $(SITE)
	$(PIP) --require-hashes --target $(SITE) --requirement requirements/site.txt
	@touch $@

site: $(SITE)/.installed ## Write the documentation as a site with search to build/site
	PYTHONPATH=$(SITE) $(BIN)/python -m mkdocs build --quiet --strict

setup: $(VENV)/.installed ## Install everything into .venv (3 to 5 minutes, 7 GB)

demo: setup ## Adapt SmolLM2-135M to clinical coding on this machine (about 13 minutes on 2 cores)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python examples/quickstart/make_data.py --out examples/quickstart/data
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dapt run examples/quickstart/quickstart.yaml --runs-dir runs

test: setup lint types imports unit torch-tests cluster-tests ## Every check and test
	@echo "all checks passed"

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy
	$(BIN)/mypy --config-file mypy-tests.ini
	$(BIN)/mypy --config-file mypy-tests.ini tests/cluster/conftest.py

imports:
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/lint-imports

unit: ## Tests that need no torch
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest $(BOTH_CORES) -m "not torch and not distributed and not local and not faults and not gpu and not cluster"

torch-tests: $(OLDER)/.installed ## Tests with toy models, several ranks, and whole local runs
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest $(BOTH_CORES) -m "(torch or distributed or local or faults) and not gpu and not cluster"

cluster: $(VENV)/.installed ## Build the real Kubernetes that the cluster tests run on (about 10 minutes, once)
	cd tests/cluster && $(CURDIR)/$(BIN)/python -m testcluster.build
	cd tests/cluster && $(CURDIR)/$(BIN)/python -m testcluster.packages

cluster-extras: $(VENV)/.installed ## Build JobSet and Kueue, fetch Prometheus, for the tests that need them (about 6 minutes, once)
	cd tests/cluster && $(CURDIR)/$(BIN)/python -m testcluster.build --extras
	-cd tests/cluster && $(CURDIR)/$(BIN)/python -m testcluster.prometheus

cluster-tests: $(VENV)/.installed ## Tests on a real Kubernetes control plane and node; builds them first where Go is
	@if test -z "$$KUBEBUILDER_ASSETS" && command -v go >/dev/null; then $(MAKE) --no-print-directory cluster; fi
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest $(BOTH_CORES) -m "cluster and not faults"

bench: setup ## Print each figure against its bar: NAME VALUE BAR ok|short
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m bench

science: setup ## The method's claims in miniature: hypotheses, runs, verdicts, docs/science.md (80 minutes on 2 cores, 110 the first time)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m science

science-real: setup ## The same question on SmolLM2-135M, run by run: docs/science-real.md (about 12 hours on 2 cores; continues where it was)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m science.real $(if $(MINUTES),--minutes $(MINUTES))

faults: setup ## Every case of the fault campaigns: docs/faults.md; 20 kills of trainers; the operator killed around every API write
	PATH="$(CURDIR)/$(BIN):$$PATH" DAPT_FAULT_CAMPAIGNS=whole $(BIN)/python -m pytest tests/faults -m "not faults" -s --timeout 3600
	PATH="$(CURDIR)/$(BIN):$$PATH" DAPT_FAULT_KILLS=20 DAPT_FAULT_KILLS_IN_SAVE=5 $(BIN)/python -m pytest -m faults -s --timeout 3600
	PATH="$(CURDIR)/$(BIN):$$PATH" DAPT_FAULT_API_POINTS=0 $(BIN)/python -m pytest tests/cluster/test_operator_faults.py -s

fault-results: setup ## Write the table of docs/faults.md from the records of the last campaigns
	PYTHONPATH=tests $(BIN)/python -m support.campaigns

UV := build/lock/bin/uv
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-find-links --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade)
lock: ## Write requirements/ from the ranges in pyproject.toml (UPGRADE=1 takes the newest versions)
	test -x $(UV) || { $(PYTHON) -m venv build/lock && build/lock/bin/pip install --quiet --disable-pip-version-check 'uv==0.13.9'; }
	$(COMPILE) pyproject.toml --extra operator --extra trainer --extra dev --output-file requirements/development.txt
	$(COMPILE) pyproject.toml --extra operator --constraint requirements/development.txt --output-file requirements/operator.txt
	$(COMPILE) pyproject.toml --extra trainer --constraint requirements/development.txt --output-file requirements/trainer.txt
	$(COMPILE) pyproject.toml --extra gpu --no-deps --constraint requirements/development.txt --output-file requirements/gpu.txt
	$(COMPILE) requirements/build.in --constraint requirements/development.txt --output-file requirements/build.txt
	$(COMPILE) requirements/demo.in --no-deps --output-file requirements/demo.txt
	$(COMPILE) requirements/older-transformers.in --no-deps --output-file requirements/older-transformers.txt
	$(COMPILE) requirements/site.in --output-file requirements/site.txt

# uv knows the indexes of torch's flavours. What is no part of CUDA keeps the versions of trainer.txt.
lock-cuda: ## Write the trainer's lock for another flavour of CUDA: make lock-cuda FLAVOUR=cu126
	test -x $(UV) || { $(PYTHON) -m venv build/lock && build/lock/bin/pip install --quiet --disable-pip-version-check 'uv==0.13.9'; }
	test -n "$(FLAVOUR)" || { echo "set FLAVOUR, for example cu126"; exit 1; }
	grep -ivE '^(torch|triton|nvidia-|cuda-)' requirements/trainer.txt | grep -E '^[a-z0-9].*==' | sed 's/ *\\$$//' > build/lock/constraints.txt
	$(UV) pip compile --quiet --torch-backend $(FLAVOUR) --python-version 3.11 --python-platform x86_64-unknown-linux-gnu --generate-hashes --no-emit-find-links --no-emit-index-url --custom-compile-command 'make lock-cuda' pyproject.toml --extra trainer --constraint build/lock/constraints.txt --output-file requirements/trainer-$(FLAVOUR).txt

crds: $(VENV)/.installed ## Generate crds/, the chart's copy, the schema in the package and docs/reference/ from the API models
	$(BIN)/dapt crd --out crds
	$(BIN)/dapt crd --out charts/dapt/files
	$(BIN)/python -c 'import pathlib; from dapt_operator.api.schema import crd; pathlib.Path("operator/src/dapt_operator/api/schema/manifest_schema.json").write_text(crd.render_manifest_schema())'
	$(BIN)/python -c 'import pathlib; from dapt_operator.api import reference; [pathlib.Path("docs/reference", name).write_text(text) for name, text in reference.render().items()]'
	$(BIN)/python -c 'import pathlib; from dapt_operator.runtime import metrics_reference; from dapt_trainer.pod.progress import METRICS, RANK_LABELS, RANK_METRICS; pathlib.Path("docs/reference", metrics_reference.PAGE).write_text(metrics_reference.page(METRICS, RANK_METRICS, RANK_LABELS))'
	$(BIN)/python charts/generate.py

chart: $(VENV)/.installed ## Write the chart's README and annotations, and the kustomize base that it renders (needs helm)
	$(BIN)/python charts/generate.py

notices: $(VENV)/.installed ## Write docs/third-party.md: the licences of what the images contain
	$(BIN)/python requirements/notices.py

clean: ## Remove what the commands above made, except runs/
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis examples/quickstart/data
