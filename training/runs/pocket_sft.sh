#!/usr/bin/env bash
# The pocket pool from nothing: five experts, their descriptors, the router's cold start in three courses, and its figures.
# Experts and descriptors are written where those that ship are (`git diff` says what changed), the router into runs/.
# Two CPU cores: two hours (not timed in one go yet). Expected figures: docs/pocket.md. Figures of this run:
# runs/pocket/figures.jsonl. Reinforcement learning goes on from runs/pocket/adapters/router (pocket_grpo.sh).
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
mkdir -p runs/pocket
step() { "$python" -m "$@" | tee -a runs/pocket/figures.jsonl; }

step training.pocket experts
step training.pocket describe
# First to ask the right model, in the pool as it is; then in pools with other names and members; then every move.
step training.pocket transcripts --course asking --output runs/pocket/asking.jsonl
step training.sft runs/pocket/asking.jsonl runs/pocket/asking/router
step training.pocket transcripts --course reading --rounds 2 --output runs/pocket/reading.jsonl
step training.sft runs/pocket/reading.jsonl runs/pocket/reading/router --start runs/pocket/asking/router
step training.pocket transcripts --course weighing --output runs/pocket/weighing.jsonl
step training.sft runs/pocket/weighing.jsonl runs/pocket/adapters/router --start runs/pocket/reading/router \
  --learning-rate 5e-4
step training.pocket evaluate --router runs/pocket/adapters/router
