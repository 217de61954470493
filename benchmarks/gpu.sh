#!/usr/bin/env bash
# Right and fast on this machine's GPU: checks against a CPU, then images/s of four recipes with what bounds them.
#
#   bash benchmarks/gpu.sh [TASK...]        all tasks by default, at most 9 minutes; `--list` names them
#
# Each task is a process with a limit of time. Its row goes to outputs/gpu/rows.jsonl at once, the table is printed
# at the end and kept in outputs/gpu/table.md. A task whose row is there (of this GPU, commit and torch) is left out,
# so the same command goes on where a call was cut off, and measures again what failed. The status is 1 where a check
# fails or a row is missing.
#
# It needs torch (2.11 will do), numpy, pillow, matplotlib, scikit-learn, pydantic, PyYAML, accelerate, safetensors,
# psutil, and webdataset, which writes the shards of the drawn pictures: neither DALI nor a data set, nor MLflow or
# DeepSpeed. The environment changes:
#   DEVICE=cuda      cpu: the same on a CPU
#   SIZES=full       tiny: networks and batches of a trial, which says nothing about speed
#   MINUTES=9        of a call
#   SECONDS_EACH=6   of each measurement of speed
#   TO=outputs/gpu   folder of rows, table and drawn pictures
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 benchmarks/gpu.py --device "${DEVICE:-cuda}" --sizes "${SIZES:-full}" --minutes "${MINUTES:-9}" \
  --seconds "${SECONDS_EACH:-6}" --to "${TO:-outputs/gpu}" "$@"
