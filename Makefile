# make setup   the environment in .venv, from requirements.lock (Python 3.11 or 3.12 is all it needs)
# make demo    the whole study on synthetic slides, on this machine; the report is results/overview.html
# make full    that, and baselines, ablations, audit; the report is results/report.html
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo full test longtest slurmtest gputest lint format bench docs lock pins schemas dag clean

# Cores for the demo and the tests: make demo CORES=8
CORES ?= 2
BIN := .venv/bin
STAMP := .venv/.complete
# uv where it is installed; else one of its own in .uv
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
# uv shows its progress on a terminal and is silent in a log
QUIET := $(if $(MAKE_TERMERR),,--quiet)
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
	"$$python" -c "$(SUITABLE)" >/dev/null 2>&1 && { echo "$$python"; break; }; done)
SNAKEFILES := workflow/Snakefile $(wildcard rules/*.smk)

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: $(STAMP)  ## install everything into .venv (done once, and again when requirements.lock changes)

$(STAMP): requirements.lock pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11 or 3.12 is needed. Install one, or name it: make setup PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@if [ ! -x "$(UV)" ]; then echo "Installing uv into .uv"; "$(PYTHON)" -m venv .uv && .uv/bin/pip install --quiet --disable-pip-version-check uv; fi
	@$(BIN)/python -c "$(SUITABLE)" >/dev/null 2>&1 || "$(UV)" venv --quiet --clear --python "$(PYTHON)" .venv
	@echo "Installing the packages of requirements.lock into .venv: about 7 GB, some minutes the first time"
	@"$(UV)" pip sync $(QUIET) --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	@"$(UV)" pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@
	@echo "The environment is ready: .venv"

demo: $(STAMP)  ## run the demo study from bundles to report (CORES=2)
	@$(BIN)/snakemake --cores $(CORES) demo
	@echo "The report: $(CURDIR)/results/overview.html"

full: $(STAMP)  ## the demo with baselines, ablations and the audit (CORES=2)
	@$(BIN)/snakemake --cores $(CORES) all
	@echo "The report: $(CURDIR)/results/report.html"

test: $(STAMP)  ## run the tests (CORES=2)
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n $(CORES) -m "not long and not slurm" --durations 25

longtest: $(STAMP)  ## run those of whole runs: killed again and again, in conda environments (minutes each)
	@OMP_NUM_THREADS=1 $(BIN)/pytest -x -m long --durations 0

slurmtest: $(STAMP)  ## test the workflow on a Slurm cluster of this machine (root, Debian's Slurm)
	@OMP_NUM_THREADS=1 $(BIN)/pytest -rs tests/test_slurm.py

gputest: $(STAMP)  ## test what only a GPU shows (skipped where there is none)
	@OMP_NUM_THREADS=1 $(BIN)/pytest -rs tests/test_gpu.py tests/test_augment.py

lint: $(STAMP)  ## check style, types and the workflow's form
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/snakefmt --check $(SNAKEFILES)
	@$(BIN)/snakemake --lint

format: $(STAMP)  ## put code and rules into the house's layout
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .
	@$(BIN)/snakefmt $(SNAKEFILES)

bench: $(STAMP)  ## measure time and memory of the demo in a fresh folder
	@$(BIN)/python benchmarks/demo.py --cores $(CORES)

docs: $(STAMP)  ## build the site of docs/ into site/ (warnings are errors)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The site: $(CURDIR)/site/index.html"

schemas: $(STAMP)  ## write the schema of the models' settings anew
	@$(BIN)/python docs/write_models_schema.py

dag: $(STAMP)  ## draw the rules into README.md
	@$(BIN)/python docs/draw_dag.py

lock:  ## write requirements.lock anew from pyproject.toml
	@if [ ! -x "$(UV)" ]; then "$(PYTHON)" -m venv .uv && .uv/bin/pip install --quiet --disable-pip-version-check uv; fi
	@"$(UV)" pip compile --quiet --universal --fork-strategy fewest --generate-hashes --no-emit-index-url --no-annotate --no-header \
		--python-version 3.11 --all-extras pyproject.toml -o requirements.lock

# With a driver named, conda takes PyTorch's CUDA build, which also runs where there is no GPU.
pins: export CONDA_OVERRIDE_CUDA ?= 13.2
pins:  ## write envs/*.linux-64.pin.txt, the exact packages of each environment (needs conda and its channels)
	@command -v conda >/dev/null || { echo "conda is needed for this: docs/environments.md" >&2; exit 1; }
	@for file in envs/*.yaml; do \
		rm -rf .pins && mkdir .pins && echo "$$file"; \
		conda env create --quiet --file "$$file" --prefix .pins/environment >/dev/null; \
		conda list --explicit --md5 --prefix .pins/environment >.pins/list.txt; \
		mv .pins/list.txt "$${file%.yaml}.linux-64.pin.txt"; \
	done
	@rm -rf .pins

clean:  ## delete everything that the workflow made (the environment and config stay)
	@rm -rf results logs work resources/bundles resources/truth .snakemake
	@find benchmarks -mindepth 1 -maxdepth 1 -type d -exec rm -rf {} +
