#!/usr/bin/env bash
# The pocket router by reinforcement learning, from its cold start (cold_start.sh), each seed through a vLLM of its own.
# Stopped at any point, the same command goes on from the last checkpoint. Figures: docs/training.md.
#   training/recipes/pocket/grpo.sh [SEED...]        # 0 1 2 by default
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${PYTHON:-.venv/bin/python}
start=${START:-runs/pocket/adapters/router}
[ $# -gt 0 ] || set -- 0 1 2
for seed; do
  # The router is as large as the smallest model, and on the same server: its tokens cost the same.
  "$python" -m training.train "runs/pocket_grpo/seed$seed" --start "$start" --seed "$seed" \
    --router-price 0.01 --drawn 0.8 --steps 30 --learning-rate 1e-4
done
# What benchmarks/pocket_grpo.toml compares: the routers by name, and the one that they start from.
mkdir -p runs/pocket_grpo/adapters
ln -sfn "$(realpath "$start")" runs/pocket_grpo/adapters/cold
for seed; do ln -sfn "../seed$seed/adapter/router" "runs/pocket_grpo/adapters/seed$seed"; done
