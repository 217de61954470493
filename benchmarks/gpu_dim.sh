#!/usr/bin/env bash
# DIM(L) on CIFAR-10 on this machine's GPU: images/s, share of time spent waiting for data, probes, the
# paper's figures beside them.
#
#   bash benchmarks/gpu_dim.sh [IMAGES] [key=value ...]     5,000,000 images (100 epochs) by default
#
# A second call with more images continues the run. Tried on a CPU with:
#   bash benchmarks/gpu_dim.sh 25600 recipe=dim_local_small
set -euo pipefail
cd "$(dirname "$0")/.."

images=${1:-5000000}
shift || true
recipe=dim_local
overrides=()
for word in "$@"; do
  if [[ $word == recipe=* ]]; then recipe=${word#recipe=}; else overrides+=("$word"); fi
done

command -v nvidia-smi > /dev/null && nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
if [[ ! -e data/cifar10/dataset.json ]]; then
  from=(); [[ -e data/raw ]] && from=(from=data/raw)
  python -m data_pipelines.shards source=cifar10 "${from[@]}" to=data/cifar10
fi
run=(recipe="$recipe" run="gpu_$recipe" images="$images" "${overrides[@]}")
python trainer/main.py "${run[@]}"
python benchmarks/run_figures.py "$(python trainer/main.py "${run[@]}" --folder)"
