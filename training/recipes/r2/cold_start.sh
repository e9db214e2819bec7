#!/usr/bin/env bash
# The planner's parts from nothing: the specialist that compares numbers, and the decomposer. They are written into
# runs/planner/adapters; what the specialist can do, into langgraph_router_r1/pocket/planner_*. Expected figures: README.md. Figures of this run: runs/planner/figures.jsonl.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${PYTHON:-.venv/bin/python}
mkdir -p runs/planner
step() { "$python" -m "$@" | tee -a runs/planner/figures.jsonl; }

step training.planner numbers --output runs/planner/adapters
step training.planner measure --adapters runs/planner/adapters
step training.planner plans --output runs/planner/plans.jsonl
step training.sft runs/planner/plans.jsonl runs/planner/adapters/decomposer
step training.planner check runs/planner/adapters/decomposer
