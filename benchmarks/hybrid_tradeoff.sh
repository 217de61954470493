#!/usr/bin/env bash
# The README's table of the hybrid and its curve: every run, one a core, then hybrid_tradeoff.py.
#
#   bash benchmarks/hybrid_tradeoff.sh [SEEDS...]      # default 0 1; about two hours a seed on two cores
#
# Needs data/cifar10. What is finished is not run again, what was cut short continues: the command can be
# repeated. CORES says how many runs go at once.
set -euo pipefail
cd "$(dirname "$0")/.."

runs() { # a line each: name, recipe, what is changed of it; seed $1
  local seed=$1 omega controls=false
  [ "$seed" != 0 ] || controls=true    # of one seed: minutes each
  for layout in pooled map; do
    local suffix=_pooled_small
    [ "$layout" = map ] && suffix=_small
    echo "${layout}_contrastive_$seed contrastive_cifar10$suffix"
    echo "${layout}_autoencoder_$seed autoencoder_cifar10$suffix evaluate.controls=$controls"
    local omegas="0.1 0.03 0.3 1"
    [ "$layout" = map ] && omegas="0.01 0.03 0.003 0.1"
    for omega in $omegas; do
      echo "${layout}_hybrid_${omega}_$seed hybrid_cifar10$suffix objective.omega=$omega"
    done
  done
  echo "map_detached_0.03_$seed hybrid_cifar10_small objective.omega=0.03 objective.detach_y=true"
}

train() { # one run on one core, its output in a file beside it
  local name=$1 recipe=$2
  shift 2
  OMP_NUM_THREADS=1 taskset -c "$SLOT" accelerate launch trainer/main.py "recipe=$recipe" "run=$name" \
    "outputs=outputs/tradeoff" "seed=${name##*_}" evaluate.mlp=null evaluate.few_shot=null \
    evaluate.controls=false "$@" > "outputs/tradeoff/$name.log" 2>&1 ||
    { echo "$name failed: outputs/tradeoff/$name.log" >&2 && return 1; }
  echo "$name is finished"
}
export -f train

mkdir -p outputs/tradeoff
seeds=("$@")
[ $# -gt 0 ] || seeds=(0 1)
for seed in "${seeds[@]}"; do runs "$seed"; done |
  xargs --process-slot-var=SLOT -P "${CORES:-$(nproc)}" -L 1 bash -c 'train "$@"' train
python benchmarks/hybrid_tradeoff.py outputs/tradeoff/*_*/ --to benchmarks/hybrid_tradeoff.png
