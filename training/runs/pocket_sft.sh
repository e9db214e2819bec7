#!/usr/bin/env bash
# The pocket pool from nothing: five experts, their descriptors, the router's cold start in two stages, and its figures.
# Two CPU cores: an hour and a half (not timed in one go yet). Expected figures: docs/pocket.md. Figures of this run:
# runs/pocket/figures.jsonl. Reinforcement learning goes on from runs/pocket/adapters/router (pocket_grpo.sh).
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
mkdir -p runs/pocket
step() { "$python" -m "$@" | tee -a runs/pocket/figures.jsonl; }

step training.pocket experts
step training.pocket describe
# First to ask the right model, in the pool as it is.
step training.pocket transcripts --first --output runs/pocket/first.jsonl
step training.sft runs/pocket/first.jsonl runs/pocket/first/router
# Then every move, in pools with other names and members.
step training.pocket transcripts --output runs/pocket/transcripts.jsonl
step training.sft runs/pocket/transcripts.jsonl runs/pocket/adapters/router --start runs/pocket/first/router \
  --learning-rate 5e-4
