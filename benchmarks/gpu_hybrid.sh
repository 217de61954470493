#!/usr/bin/env bash
# MoCo-v2 and the hybrid on this machine's GPU: images/s end to end, of the loader and of the model alone, the
# share of time spent waiting for data; ResNet-50 at 224 px on drawn photographs; the sharded queue against the
# replicated one; the kNN against images and minutes of training.
#
#   bash benchmarks/gpu_hybrid.sh [--to FILE] [key=value ...]      appends to benchmarks/gpu_hybrid.md
#
# key=value changes all recipes. The environment changes the rest:
#   PARTS="speed queue knn"    which to do: a machine may be lent for less time than all of them take
#   MINUTES=20       of training, for each of RECIPES; the same command later goes on
#   IMAGES=          train to the end of a schedule of so many images instead
#   EVERY=100000     images between two kNNs
#   SPEED=20         seconds of each measurement of speed
#   RECIPES="moco_cifar10 hybrid_cifar10"    on CIFAR-10
#   IMAGENET=moco_imagenet PHOTOGRAPHS=2000  on so many drawn JPEGs of ImageNet's size
#   QUEUE=           options of benchmarks/momentum_queue.py
#
# Without a GPU it runs on the CPU; tried there with few images and small recipes (benchmarks/README.md).
set -euo pipefail

to=
if [[ ${1:-} == --to ]]; then
  to=$(realpath -m -- "${2:?--to needs a file}")
  shift 2
fi
cd "$(dirname "$0")/.."
to=${to:-benchmarks/gpu_hybrid.md}
read -ra recipes <<< "${RECIPES:-moco_cifar10 hybrid_cifar10}"
read -ra parts <<< "${PARTS:-speed queue knn}"
imagenet=${IMAGENET:-moco_imagenet}
count=${PHOTOGRAPHS:-2000}
for part in "${parts[@]}"; do
  if [[ ! $part =~ ^(speed|queue|knn)$ ]]; then
    echo "error: PARTS names '$part'; expected speed, queue or knn" >&2
    exit 2
  fi
done
mkdir -p "$(dirname "$to")"
read -ra queue_options <<< "${QUEUE:-}"

gpu=
if command -v nvidia-smi > /dev/null && nvidia-smi > /dev/null; then
  gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader)
  queue_options=(--device cuda "${queue_options[@]}")
fi
if [[ ! -e data/cifar10/dataset.json ]]; then
  from=(); [[ -e data/raw ]] && from=(from=data/raw)
  python -m data_pipelines.shards source=cifar10 "${from[@]}" to=data/cifar10
fi

speed() {
  local words=() recipe photographs=data/drawn_photographs_$count
  if [[ ! -e $photographs/shards/dataset.json ]]; then
    PYTHONPATH=. python benchmarks/drawn_pictures.py "$photographs" "$count" >&2
  fi
  for recipe in "${recipes[@]}"; do
    words+=("recipe=$recipe" "$@")
    if [[ $gpu ]]; then words+=("recipe=$recipe" "$@" precision=bf16); fi
  done
  local drawn=("recipe=$imagenet" "data.root=$photographs/shards" "$@")
  python benchmarks/throughput.py --seconds "${SPEED:-20}" "${words[@]}" \
    "${drawn[@]}" "${drawn[@]}" data.decode=fast
}

queue() {
  python benchmarks/momentum_queue.py "${queue_options[@]}"
}

knn() {
  local recipe
  for recipe in "${recipes[@]}"; do train "$recipe" "$@"; done
}

# Trains a recipe for the time or the images there are, and prints its kNNs.
train() {
  local recipe=$1 status=0
  local run=("recipe=$recipe" "run=gpu_$recipe" "evaluate.every=${EVERY:-100000}" evaluate.at_end=false)
  local limit=(timeout --foreground --kill-after=5m "${MINUTES:-20}m")
  shift
  if [[ ${IMAGES:-} ]]; then
    run+=("run=gpu_${recipe}_$IMAGES" "images=$IMAGES")
    limit=()
  fi
  run+=("$@")
  "${limit[@]}" python trainer/main.py "${run[@]}" >&2 || status=$?
  if ((status != 0 && status != 124)); then return "$status"; fi  # 124: told to stop by timeout, and saved
  python benchmarks/knn_curve.py "$(python trainer/main.py "${run[@]}" --folder)"
}

{
  printf '# %s, bash benchmarks/gpu_hybrid.sh %s\n\n%s\n' "$(date -u +%F)" "$*" "${gpu:-on a CPU}"
  for part in "${parts[@]}"; do
    printf '\n## %s\n\n' "$part"
    "$part" "$@"
  done
} | tee -a "$to"
