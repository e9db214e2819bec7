#!/usr/bin/env bash
# The planner's decomposer from nothing, and the profile of the planner's pool for its allocator. The adapter is written
# into runs/planner/adapters, the profile where the shipped one is.
# Expected figures: README.md. Figures of this run: runs/planner/figures.jsonl.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${PYTHON:-.venv/bin/python}
mkdir -p runs/planner
step() { "$python" -m "$@" | tee -a runs/planner/figures.jsonl; }

step training.planner measure
step training.planner plans --output runs/planner/plans.jsonl
step training.sft runs/planner/plans.jsonl runs/planner/adapters/decomposer
step training.planner check runs/planner/adapters/decomposer
