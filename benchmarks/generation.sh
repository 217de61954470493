#!/usr/bin/env bash
# The tables of generation on CIFAR-10, small recipes: encoders, diffusions on their latents, decoder noise.
#
#   bash benchmarks/generation.sh [STAGES...]       # default: all, in their order; hours on two cores
#
# Needs data/cifar10 and `pip install -e '.[features]'`. Runs go one a core (CORES says how many at once), into
# outputs/generation; what is finished is not run again, what was cut short continues. PRECISION=bf16 suits
# processors that have it. Then `hybrid-infomax report outputs/generation` prints the tables.
set -euo pipefail
cd "$(dirname "$0")/.."
outputs=outputs/generation

train() { # NAME KEY=VALUE...: a run on one core, its output in a file beside it
  local name=$1
  shift
  OMP_NUM_THREADS=1 accelerate launch trainer/main.py "run=$name" "outputs=$outputs" "$@" \
    > "$outputs/$name.log" 2>&1 || { echo "$name failed: $outputs/$name.log" >&2 && return 1; }
  echo "$name is finished"
}

measure() { # NAME KEY=VALUE...: a finished diffusion, measured with other noise
  local name=$1
  shift
  OMP_NUM_THREADS=1 accelerate launch trainer/main.py recipe=measure "from=$outputs/$name" "$@" \
    >> "$outputs/$name.log" 2>&1 || { echo "$name failed: $outputs/$name.log" >&2 && return 1; }
  echo "$name is measured with $*"
}
export -f train measure
export outputs

probes="evaluate.every=0 evaluate.mlp=null evaluate.few_shot=null evaluate.controls=false"
same="precision=${PRECISION:-float32} images=256000 $probes"

encoders() {
  for seed in 0 1; do
    echo "train pooled_$seed recipe=hybrid_cifar10_pooled_small seed=$seed $same"
    echo "train resnet_$seed recipe=hybrid_cifar10_resnet_small seed=$seed $same"
    echo "train control_$seed recipe=contrastive_cifar10_resnet_small seed=$seed $same"
  done
  echo "train map_0 recipe=hybrid_cifar10_small seed=0 $same"
}

noise() { # the pooled hybrid without noise on its decoder's input, and with more than the recipe's
  for tau in 0 0.2 0.5; do
    echo "train noise_$tau recipe=hybrid_cifar10_pooled_small objective.decoder_noise=$tau seed=0 $same"
  done
}

diffusions() { # as long as the recipe says
  echo "train pooled_flow recipe=diffuse_cifar10_small from=$outputs/pooled_0"
}

seeds() { # the rows that a seed changes
  for seed in 1 2; do
    echo "measure pooled_flow seed=$seed evaluate.rows=[samples,samples_of_train_y]"
  done
}

comparisons() { # a sixth as long: three processes, three encoders, four decoders
  local of="recipe=diffuse_cifar10_small images=64000"
  local rows="evaluate.every=0 evaluate.rows=[reconstruction,samples,noise_0.1,noise_0.3,noise_1]"
  for process in flow ddim edm; do
    echo "train pooled_${process}_short $of $rows from=$outputs/pooled_0 objective.process=$process"
  done
  for tau in 0 0.2 0.5; do
    echo "train noise_${tau}_flow_short $of $rows from=$outputs/noise_$tau"
  done
  echo "train resnet_flow_short $of from=$outputs/resnet_0 objective.components=null"
  echo "train map_flow_short recipe=diffuse_cifar10_map_small images=64000 from=$outputs/map_0"
}

mkdir -p "$outputs"
stages=("$@")
[ $# -gt 0 ] || stages=(encoders noise diffusions seeds comparisons)
for stage in "${stages[@]}"; do
  "$stage" | xargs -P "${CORES:-$(nproc)}" -L 1 bash -c '"$@"' run
done
hybrid-infomax report "$outputs"
