#!/usr/bin/env bash
# The reader and the decomposer of the wiki pool from nothing, and what its models say to questions of the train split.
# Passages and questions come from the data directory, ROUTER_R1_DATA. Everything is written into runs/wiki.
# Expected figures: README.md. Figures of this run: runs/wiki/figures.jsonl.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${PYTHON:-.venv/bin/python}
mkdir -p runs/wiki
step() { "$python" -m "$@" | tee -a runs/wiki/figures.jsonl; }

step training.wiki reading
step training.sft runs/wiki/reading.jsonl runs/wiki/adapters/reader
step training.wiki plans
step training.sft runs/wiki/plans.jsonl runs/wiki/adapters/wiki-decomposer
step training.wiki measure
