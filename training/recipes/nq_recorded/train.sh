#!/usr/bin/env bash
# A router over the six recorded models of Router-R1's paper: cold start on the train split, from the extractor that reads
# replies already, each batch over another form of the pool; then GRPO on it. A low cost is paid for right answers only:
# paid for any, it is earned by asking nobody. The KL term keeps what the cold start taught where a few rollouts of each
# weight cannot tell better from luck. Stopped, the same command goes on from the last checkpoint.
# Figures: docs/training.md and docs/results.md; what else was tried: training/LOG.md.
#   ROUTER_R1_DATA=... training/recipes/nq_recorded/train.sh [SEED]
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${PYTHON:-.venv/bin/python}
: "${ROUTER_R1_DATA:?the directory that holds pools/nq_six_models.jsonl}"
seed=${1:-0}
if [ ! -e runs/nq/adapters/router/adapter_model.safetensors ]; then
  "$python" -m training.nq runs/nq/transcripts.jsonl
  "$python" -m training.sft runs/nq/transcripts.jsonl runs/nq/adapters/router \
    --start adapters/langgraph_router_r1_adapters/evaluation/extractor
fi
"$python" -m training.train "runs/nq/seed$seed" --pool "$ROUTER_R1_DATA/pools/nq_six_models.jsonl" \
  --start runs/nq/adapters/router --seed "$seed" --steps 25 --learning-rate 1e-4 --beta 0.1 --drawn 1 \
  --basis completion --mode gated --groups 4 --micro-batch 4 --max-turns 2
