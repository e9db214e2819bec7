#!/usr/bin/env bash
# The pocket router by reinforcement learning, from the shipped (supervised) one; each seed through a vLLM of its own.
# Stopped at any point, the same command goes on from the last checkpoint. Not run yet: no figures.
#   training/runs/pocket_grpo.sh [SEED...]        # 0 1 2 by default
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
[ $# -gt 0 ] || set -- 0 1 2
for seed; do
  "$python" -m training.pocket_grpo "runs/pocket_grpo/seed$seed" --seed "$seed"
done
