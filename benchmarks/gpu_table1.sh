#!/usr/bin/env bash
# The hybrid paper's Table 1 on this machine's GPU, as far as time goes: the hybrid and its contrastive half on
# CIFAR-10, then diffusion on the hybrid's latents, then the report.
#
#   bash benchmarks/gpu_table1.sh [key=value ...]      of both encoders' recipes
#
# The same command goes on where the time was over, or the machine taken away: a run that is stopped saves, and one
# that is finished is left as it is. The status is 1 while a run is unfinished. The environment changes:
#   MINUTES=9           of this call
#   IMAGES=1000000      of training, of each encoder; a run of another number is another run
#   DIFFUSE_IMAGES=1000000   of the diffusion
#   ENCODERS="hybrid_cifar10 contrastive_cifar10"    recipes; the first is diffused
#   DIFFUSE=diffuse_cifar10_map   recipe of its diffusion, the paper's; DIFFUSE_KEYS="key=value ..." change it
#   EXTRACTOR=null      of Fréchet distances: efficientnet_lite0, or the path of inception-2015-12-05.pt; with null
#                       the diffusion is trained and not measured
#   DATA=data/cifar10   where it is missing it is made of data/raw, and without that of drawn pictures, which say
#                       nothing about accuracy
#   OUTPUTS=outputs/table1
set -euo pipefail
cd "$(dirname "$0")/.."

end=$((SECONDS + $(awk "BEGIN {print int(60 * ${MINUTES:-9})}")))
outputs=${OUTPUTS:-outputs/table1}
data=${DATA:-data/cifar10}
read -ra encoders <<< "${ENCODERS:-hybrid_cifar10 contrastive_cifar10}"
read -ra diffuse_keys <<< "${DIFFUSE_KEYS:-}"
images=${IMAGES:-1000000}

if [[ ! -e $data/dataset.json && -e data/raw ]]; then
  python3 -m data_pipelines.shards source=cifar10 from=data/raw to="$data"
elif [[ ! -e $data/dataset.json ]]; then
  data=outputs/drawn_cifar10/shards
  if [[ ! -e $data/dataset.json ]]; then
    rm -rf outputs/drawn_cifar10
    python3 -m benchmarks.drawn_pictures outputs/drawn_cifar10 cifar10
  fi
  echo "no CIFAR-10 in ${DATA:-data/cifar10}: the pictures are drawn, and accuracies are of no meaning"
fi

unfinished=()
train() { # NAME KEY=VALUE...: until it is finished or the time is over
  local name=$1 status=0
  shift
  if [[ ! -e $outputs/$name/done ]]; then
    if ((end - SECONDS < 20)); then
      unfinished+=("$name")
      return
    fi
    timeout --foreground --signal=TERM --kill-after=60 $((end - SECONDS)) \
      python3 trainer/main.py "run=$name" "outputs=$outputs" tracking.uri=none precision=auto "$@" || status=$?
    if ((status == 124 || status == 137)) || [[ -e $outputs/$name/stopped ]]; then
      unfinished+=("$name")
    elif ((status != 0)); then
      echo "error: $name failed with status $status; see above" >&2
      exit 1
    fi
  fi
}

encoder_keys=("data.root=$data" data.resident=auto "images=$images" evaluate.every=0)
encoder_keys+=(evaluate.mlp=null evaluate.controls=false)
for recipe in "${encoders[@]}"; do
  train "${recipe}_$images" "recipe=$recipe" "${encoder_keys[@]}" "$@"
done
hybrid=${encoders[0]}_$images
if [[ -e $outputs/$hybrid/done ]]; then
  train "${hybrid}_diffused" "recipe=${DIFFUSE:-diffuse_cifar10_map}" "from=$outputs/$hybrid" \
    "images=${DIFFUSE_IMAGES:-1000000}" evaluate.every=0 "evaluate.extractor=${EXTRACTOR:-null}" "${diffuse_keys[@]}"
else
  unfinished+=("${hybrid}_diffused")
fi

python3 -m trainer.report "$outputs" # what `hybrid-infomax report` does
if ((${#unfinished[@]})); then
  echo "not finished: ${unfinished[*]}; the same command goes on"
  exit 1
fi
