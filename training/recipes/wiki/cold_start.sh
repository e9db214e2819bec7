#!/usr/bin/env bash
# The reader of the wiki pool, the decomposer and three routers from nothing, and the profile for kNN. The routers are
# made one after the other, as each takes up to 12 GB of memory; SEEDS=0 makes one.
# Passages and questions come from the data directory, ROUTER_R1_DATA. Everything is written into runs/wiki.
# Expected figures: README.md. Figures of this run: runs/wiki/figures.jsonl.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${PYTHON:-.venv/bin/python}
mkdir -p runs/wiki
step() { "$python" -m "$@" | tee -a runs/wiki/figures.jsonl; }

step training.wiki reader --epochs 3
step training.wiki check
step training.wiki measure
step training.wiki plans --examples 2000
# It goes on from the pocket planner's: what a plan looks like is known to it.
step training.sft runs/wiki/plans.jsonl runs/wiki/adapters/wiki-decomposer \
  --start adapters/langgraph_router_r1_adapters/planner/decomposer --learning-rate 4e-4
# It goes on from the pocket router: the protocol is known to it.
for seed in ${SEEDS:-0 1 2}; do
  step training.wiki transcripts --output "runs/wiki/transcripts-$seed.jsonl" --examples 2000 --seed "$seed"
  step training.sft "runs/wiki/transcripts-$seed.jsonl" "runs/wiki/adapters/wiki-router-$seed" \
    --start adapters/langgraph_router_r1_adapters/pocket/router --learning-rate 5e-4 --seed "$seed"
done
