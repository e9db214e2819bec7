#!/usr/bin/env bash
# The planner's decomposer by reinforcement learning, from a cold start that leaves room to learn (60 plans), for each
# seed. Without ALLOCATOR, the profile gives the steps to models. With it, the directory of an adapter, the two are
# trained in turns, ROUNDS times, each while the other one stays as it is.
# A decomposer is not told the cost weight. It learns from right and wrong alone, as the paper's does: with cost in the
# reward, plans that lead nowhere differ in cost only, and the shortest ones win (LOG.md).
# The models are simulated, and the policy is sampled in the process that trains it. Stopped at any point, the same
# command goes on from the last checkpoint. Figures: README.md.
#   training/recipes/r2/grpo.sh [SEED...]        # 0 1 2 by default
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${PYTHON:-.venv/bin/python}
out=${OUTPUT:-runs/planner_grpo}
steps=${STEPS:-20}
[ $# -gt 0 ] || set -- 0 1 2
mkdir -p "$out/adapters"

cold=$out/adapters/cold
[ -f "$cold/adapter_model.safetensors" ] || {
  "$python" -m training.planner plans --examples "${PLANS:-60}" --output "$out/plans.jsonl"
  "$python" -m training.sft "$out/plans.jsonl" "$cold" --epochs 3
}

train() { # DIRECTORY PART OWN-ADAPTER OTHER-ADAPTER SEED
  "$python" -m training.train "$1" --part "$2" --start "$3" --frozen "$4" --seed "$5" --steps "$steps" \
    --pool simulated --in-process --router-price 0.01 --groups 4 --generations 8 --learning-rate 2e-4 \
    --cost-weights "$([ "$2" = decomposer ] && echo 0 || echo 0,0.3,0.6,0.9)" --max-tokens 64 --timeout 900
}

for seed; do
  decomposer=$cold
  allocator=${ALLOCATOR:-knn}
  for ((round = 1; round <= ${ROUNDS:-1}; round++)); do
    run=$out/seed$seed-round$round
    train "$run/decomposer" decomposer "$decomposer" "$allocator" "$seed"
    decomposer=$run/decomposer/adapter/router
    [ "$allocator" = knn ] && continue
    train "$run/allocator" allocator "$allocator" "$decomposer" "$seed"
    allocator=$run/allocator/adapter/router
  done
  ln -sfn "$(realpath "$decomposer")" "$out/adapters/seed$seed"
done
