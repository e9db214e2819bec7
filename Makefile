# Everything runs from a fresh machine: Python 3.11+ and make are enough.
.DEFAULT_GOAL := help
.PHONY: help demo studio docs test test-fast mutants lint type format overhead picture page-picture constraints train-pocket clean

VENV := .venv
BIN := $(VENV)/bin
STUDIO := build/studio-venv
STUDIO_APP := examples/studio
STUDIO_PORT := 2024
# Nothing goes to LangSmith, not even where a key for it is set.
OFFLINE := LANGGRAPH_CLI_NO_ANALYTICS=1 LANGGRAPH_NO_VERSION_CHECK=1 LANGSMITH_TRACING=false LANGSMITH_TRACING_V2=false LANGSMITH_API_KEY=
# OpenAI's JavaScript client, for one test of the server, where there is npm.
JS_CLIENT := $(if $(shell command -v npm),build/node_modules/openai)
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
# PyTorch's build for the CPU: from this machine's disk, when pip is told of wheels there; else uv knows where it is.
ifneq ($(wildcard $(PIP_FIND_LINKS)/torch-*),)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
else
export UV_TORCH_BACKEND ?= cpu
endif

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt adapters/pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --group dev --editable '.[train]'
	@touch $@

# The server of LangGraph Studio needs an older protobuf than vLLM does.
$(STUDIO)/.installed: pyproject.toml examples/studio/constraints.txt
	@test -x $(STUDIO)/bin/python || $(PYTHON) -m venv $(STUDIO)
	$(STUDIO)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(STUDIO)/bin/uv pip install --quiet --python $(STUDIO)/bin/python --constraint examples/studio/constraints.txt \
	  --group studio --editable '.[openai]'
	@touch $@

build/node_modules/openai:
	npm install --prefix build --no-save --no-audit --no-fund --silent openai@6.49.0

demo: $(VENV)/.installed  ## Ask the pocket pool some questions, with a live trace
	$(BIN)/router-r1 demo

studio: $(STUDIO)/.installed  ## Serve the router's graphs for LangGraph Studio
	cd $(STUDIO_APP) && $(OFFLINE) $(abspath $(STUDIO))/bin/langgraph dev --no-browser --no-reload --port $(STUDIO_PORT)

test: $(VENV)/.installed $(STUDIO)/.installed $(JS_CLIENT)  ## Run all tests, with a real vLLM
	LANGGRAPH_STRICT_MSGPACK=true $(BIN)/python -m pytest

test-fast: $(VENV)/.installed $(STUDIO)/.installed $(JS_CLIENT)  ## Run the tests that need no vLLM
	LANGGRAPH_STRICT_MSGPACK=true $(BIN)/python -m pytest -m 'not vllm'

mutants: $(VENV)/.installed  ## Plant small bugs, and count those that the fast tests notice (MODULE=ledger for one)
	$(BIN)/python benchmarks/mutants.py $(MODULE)

lint: $(VENV)/.installed  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec deploy/compose.yaml

type: $(VENV)/.installed  ## Check types
	$(BIN)/mypy

format: $(VENV)/.installed  ## Fix what can be fixed automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

overhead: $(VENV)/.installed  ## Measure the graph's overhead and the import time
	$(BIN)/python benchmarks/overhead.py

docs: $(VENV)/.installed  ## Build the documentation as a site, in build/site
	$(BIN)/uv pip install --quiet --python $(BIN)/python --group docs
	$(BIN)/python -m typer langgraph_router_r1.cli utils docs --name router-r1 --title Commands --output docs/cli.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

picture: $(VENV)/.installed  ## Draw the README's picture from a real run
	$(BIN)/python docs/picture.py

page-picture: $(VENV)/.installed  ## Draw the picture of the server's page
	ROUTER_R1_PICTURES=docs $(BIN)/python -m pytest -q tests/test_page.py -k picture

constraints: $(VENV)/.installed  ## Update the pinned versions
	$(BIN)/uv pip compile --quiet --upgrade --extra train --group dev --no-header --no-annotate \
	  --no-emit-package langgraph-router-r1-adapters --no-emit-index-url --no-emit-find-links pyproject.toml --output-file build/constraints.txt
	(head -1 constraints.txt; sed 's/+cpu//' build/constraints.txt) > build/pinned.txt && mv build/pinned.txt constraints.txt
	(head -1 constraints.txt; grep -vE '^(grpcio|protobuf)=' constraints.txt | $(BIN)/uv pip compile --quiet --extra openai --group studio --no-header \
	  --no-annotate --no-emit-index-url --no-emit-find-links --constraint - pyproject.toml) > build/studio.txt && mv build/studio.txt examples/studio/constraints.txt

train-pocket: $(VENV)/.installed  ## Make the pocket pool's adapters from nothing (two hours)
	training/recipes/pocket/cold_start.sh

clean:  ## Remove the environment and what was built
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
