#!/usr/bin/env bash
# The pocket pool from nothing: five experts, their descriptors, the router's cold start over drawn pools, its figures.
# Experts and descriptors are written where those that ship are (`git diff` says what changed), the router into runs/.
# With EXPERTS=no the shipped experts stay, and only the router is made. POOLS says over how many pools it learns: on two
# cores 450 take an hour and some minutes; with a GPU take all, and BATCH=32 (four pools a batch). Expected figures: docs/pocket.md. Figures of
# this run: runs/pocket/figures.jsonl. Reinforcement learning goes on from runs/pocket/adapters/router (grpo.sh).
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${PYTHON:-.venv/bin/python}
mkdir -p runs/pocket
step() { "$python" -m "$@" | tee -a runs/pocket/figures.jsonl; }

if [ "${EXPERTS:-yes}" = yes ]; then
  step training.pocket experts
  step training.pocket describe
fi
step training.pocket recall
step training.pocket transcripts --pools "${POOLS:-2800}" --seed 1 --output runs/pocket/drawn.jsonl
step training.sft runs/pocket/drawn.jsonl runs/pocket/adapters/router --batch-size "${BATCH:-8}"
step training.pocket evaluate --router runs/pocket/adapters/router
