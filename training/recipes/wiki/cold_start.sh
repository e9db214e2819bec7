#!/usr/bin/env bash
# The reader and the decomposer of the wiki pool from nothing.
# Passages and questions come from the data directory, ROUTER_R1_DATA. Everything is written into runs/wiki.
# Expected figures: README.md. Figures of this run: runs/wiki/figures.jsonl.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${PYTHON:-.venv/bin/python}
mkdir -p runs/wiki
step() { "$python" -m "$@" | tee -a runs/wiki/figures.jsonl; }

step training.wiki reader
step training.wiki check
step training.wiki plans
# It goes on from the pocket planner's: what a plan looks like is known to it.
step training.sft runs/wiki/plans.jsonl runs/wiki/adapters/wiki-decomposer \
  --start adapters/langgraph_router_r1_adapters/planner/decomposer --learning-rate 4e-4
