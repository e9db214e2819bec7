#!/usr/bin/env bash
# The pocket pool from nothing: five experts, their descriptors, the router's cold start in two stages, and its figures.
# Two CPU cores: an hour and a half (not timed in one go yet). Expected figures: docs/pocket.md. Figures of this run:
# runs/pocket/figures.jsonl. Reinforcement learning goes on from runs/pocket/adapters/router (pocket_grpo.sh).
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
mkdir -p runs/pocket
step() { "$python" -m training.pocket "$@" | tee -a runs/pocket/figures.jsonl; }

step experts
step describe
# First to ask the right model, in the pool as it is.
step transcripts --first --output runs/pocket/first.jsonl
step router --transcripts runs/pocket/first.jsonl --output runs/pocket/first
# Then every move, in pools with other names and members.
step transcripts --output runs/pocket/transcripts.jsonl
step router --transcripts runs/pocket/transcripts.jsonl --start runs/pocket/first/router --learning-rate 5e-4 \
  --output runs/pocket/adapters
