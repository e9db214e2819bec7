#!/usr/bin/env bash
# The pocket pool from nothing: five experts, their descriptors, the router's cold start, and its figures.
# Two CPU cores: something over an hour (not timed in one go yet). Expected figures: docs/pocket.md. Figures of this run: runs/pocket/figures.jsonl
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
mkdir -p runs/pocket
for step in experts describe transcripts router evaluate; do
  "$python" -m training.pocket "$step" | tee -a runs/pocket/figures.jsonl
done
