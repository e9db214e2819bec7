#!/usr/bin/env bash
# The planner's allocator from nothing: a language model that reads the pool, over drawn pools of simulated models.
# It is written into runs/planner/adapters/allocator, about an hour on one core.
# Expected figures: README.md. Figures of this run: runs/planner/figures.jsonl.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${PYTHON:-.venv/bin/python}
mkdir -p runs/planner
step() { "$python" -m "$@" | tee -a runs/planner/figures.jsonl; }

step training.planner allocations --pools 200
# It goes on from the pocket router's: to compare descriptors in a thought is known to it.
step training.sft runs/planner/allocations.jsonl runs/planner/adapters/allocator \
  --start adapters/langgraph_router_r1_adapters/pocket/router --learning-rate 5e-4
step training.planner check-allocator runs/planner/adapters/allocator --pools 10
step training.planner change-pool --allocator runs/planner/adapters/allocator --sample 10
