#!/usr/bin/env bash
# R2-Reasoner's setting (arXiv 2506.05901): decomposer and allocator are Qwen2.5-7B-Instruct, trained by GRPO in turns.
#
# NOT RUN HERE: it takes GPUs, a hub, and keys for the routed models (the pool's file says which). What runs here is the
# same command line with a model of two layers, on the CPU (tests/test_train.py).
#
# Both parts need an adapter to start from: plans and allocations of the model's own, by `training.sft`. On one machine
# with two GPUs, the server serves both and loads what is trained:
#   CUDA_VISIBLE_DEVICES=0 vllm serve Qwen/Qwen2.5-7B-Instruct --port 8000 --enable-lora --max-loras 16 \
#     --max-lora-rank 16                                          # with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True
#   CUDA_VISIBLE_DEVICES=1 DECOMPOSER=... ALLOCATOR=... training/recipes/r2/qwen2.5-7b_gpu.sh \
#     --url http://127.0.0.1:8000/v1
#
# Deviations from the paper: LoRA of rank 16 for all weights, our reward (format, outcome and cost at four cost weights),
# a small entropy bonus, and rollouts of the whole graph, with real replies of the pool.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${PYTHON:-.venv/bin/python}
out=${OUTPUT:-runs/r2_qwen2.5-7b}
decomposer=${DECOMPOSER:?the adapter that the decomposer starts from}
allocator=${ALLOCATOR:?the adapter that the allocator starts from}
tasks=()
for name in ${TASKS:-nq hotpotqa}; do tasks+=(--tasks "$name"); done

train() { # DIRECTORY PART OWN-ADAPTER OTHER-ADAPTER [OPTION...]
  # shellcheck disable=SC2086  # LAUNCH holds several words
  "$python" -m accelerate.commands.launch ${LAUNCH:---num_processes 1} -m training.train "$1" --part "$2" --start "$3" \
    --frozen "$4" --model "${MODEL:-Qwen/Qwen2.5-7B-Instruct}" --pool "${POOL:-benchmarks/pools/paper.toml}" \
    "${tasks[@]}" --rank 16 --learning-rate 1e-5 --beta 0.001 --entropy 0.001 --basis completion --groups 64 --generations 4 \
    --micro-batch 4 --steps "${STEPS:-256}" --save-every 16 --max-tokens 512 "${@:5}"
}

for ((round = 1; round <= ${ROUNDS:-2}; round++)); do
  train "$out/round$round/decomposer" decomposer "$decomposer" "$allocator" "$@"
  decomposer=$out/round$round/decomposer/adapter/router
  train "$out/round$round/allocator" allocator "$allocator" "$decomposer" "$@"
  allocator=$out/round$round/allocator/adapter/router
done
