#!/usr/bin/env bash
# Experts for a retriever over four domains, from nothing, and their measurement beside the alternatives: three seeds.
# Expected figures: README.md.
#   ROUTER_R1_DATA=... training/recipes/retriever/run.sh
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${PYTHON:-.venv/bin/python}
: "${ROUTER_R1_DATA:?the directory that holds corpus/nq_oracle_500.jsonl and corpus/popqa_300.jsonl}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
"$python" benchmarks/retriever.py quality runs/retriever --seeds 3
"$python" benchmarks/retriever.py speed runs/retriever/experts
