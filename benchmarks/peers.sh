#!/usr/bin/env bash
# This project beside its peers: MoCo-v2 beside lightly's example, DIM's local InfoNCE beside a port of the published
# loss, and MoCo's loss beside lightly's.
#
#   bash benchmarks/peers.sh [key=value ...]      of the recipe moco_cifar10; without data/cifar10 pictures are drawn
#
# The first call makes lightly's environment, outputs/peers/venv: torch's CPU build first, so that lightly, which asks
# for torchvision and pytorch-lightning, brings no other. The environment changes:
#   PYTHON=python3   of the project
#   TORCH_INDEX=     an index of torch's CPU wheels, where pip's own has none: https://download.pytorch.org/whl/cpu
#   TO=outputs/peers
#   STEPS=8          of a turn of MoCo-v2, TURNS=5 of which the median is taken
#   WIDTHS="16 64"   of ResNet-18; 16 is a quarter of the published one, and leaves room beside the convolutions
#   IMAGES="64 128 256"   of the local InfoNCE
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
to=${TO:-outputs/peers}
read -ra images <<< "${IMAGES:-64 128 256}"
read -ra widths <<< "${WIDTHS:-16 64}"
if [[ ! -e $to/venv/finished ]]; then
  "$python" -m venv "$to/venv"
  index=(); [[ ${TORCH_INDEX:-} ]] && index=(--index-url "$TORCH_INDEX")
  "$to/venv/bin/pip" install -q "${index[@]}" torch==2.13.0
  "$to/venv/bin/pip" install -q torch==2.13.0 lightly
  touch "$to/venv/finished"
fi
lightly=$to/venv/bin/python
export CUDA_VISIBLE_DEVICES=-1 # lightly's torch is the CPU's, so ours computes there too

for width in "${widths[@]}"; do
  "$python" benchmarks/peers.py "$lightly" "encoder.width=$width" "$@" --steps "${STEPS:-8}" --turns "${TURNS:-5}"
  echo
done
"$python" benchmarks/local_infonce.py --images "${images[@]}" --repeats "${TURNS:-5}"
echo
"$python" benchmarks/lightly_loss.py "$lightly"
