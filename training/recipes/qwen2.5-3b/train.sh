#!/usr/bin/env bash
# The setting of Router-R1 (arXiv 2506.09033): Qwen2.5-3B-Instruct, NQ and HotpotQA, 64 questions a step, 225 steps.
#
# NOT RUN HERE: it takes GPUs, a hub, and keys for the routed models (the pool's file says which). What runs here is the
# same command line with a model of two layers, on the CPU (tests/test_train.py).
#
# On one machine with five GPUs, four of them for training; the server sees the files that training writes:
#   CUDA_VISIBLE_DEVICES=0 vllm serve Qwen/Qwen2.5-3B-Instruct --port 8000 \
#     --enable-lora --max-loras 16 --max-lora-rank 32            # with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True
#   CUDA_VISIBLE_DEVICES=1,2,3,4 LAUNCH="--config_file training/configs/fsdp2.yaml --num_processes 4" \
#     training/recipes/qwen2.5-3b/train.sh --url http://127.0.0.1:8000/v1
#
# Deviations from the paper: GRPO with eight rollouts of each of a step's 64 questions for PPO with one, LoRA for all
# weights, one policy for all cost weights.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${PYTHON:-.venv/bin/python}
tasks=()
for name in ${TASKS:-nq hotpotqa}; do tasks+=(--tasks "$name"); done
# shellcheck disable=SC2086  # LAUNCH holds several words
exec "$python" -m accelerate.commands.launch ${LAUNCH:---num_processes 1} -m training.train "${OUTPUT:-runs/qwen2.5-3b}" \
  --model "${MODEL:-Qwen/Qwen2.5-3B-Instruct}" --pool "${POOL:-benchmarks/pools/paper.toml}" "${tasks[@]}" \
  --rank 32 --learning-rate 1e-5 --beta 0.001 --entropy 0.001 --basis completion \
  --groups 64 --generations 8 --micro-batch 4 --steps "${STEPS:-225}" --save-every 25 --max-tokens 1024 "$@"
