#!/bin/bash
# Deep InfoMax with local mutual information, on one node: one process per GPU.
#
#   sbatch slurm/dim_local.sh                                     the recipe dim_local, on one GPU
#   sbatch --gpus-per-node=4 --cpus-per-task=32 slurm/dim_local.sh recipe=dim_local_paper run=paper
#   PROCS_PER_NODE=2 sbatch --gpus-per-node=0 slurm/dim_local.sh recipe=dim_local_small     without GPUs
#
# Submit it from the repository's root, in the environment that the package is installed in; its arguments are
# those of trainer/main.py. A job that is preempted, nears its time limit or loses its node continues by itself
# from its newest checkpoint, and so does the same command submitted again. The first job makes data/cifar10, and
# needs the network for it, or the archive in data/raw.
#SBATCH --job-name=dim_local
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1             # one launcher; it starts one process per GPU
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@300               # to the training, 300..360 s before the limit: keep --time well above it
#SBATCH --requeue
#SBATCH --open-mode=append              # a requeued job keeps its log
#SBATCH --output=slurm-%x-%j.out        # in the root: into a folder that does not exist Slurm fails without a word
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}"
if [[ ! -f slurm/common.sh ]]; then
  echo "error: submit this job from the repository's root, not from $SLURM_SUBMIT_DIR" >&2
  exit 2
fi
# shellcheck source=slurm/common.sh
source slurm/common.sh

[[ " $* " == *" recipe="* ]] || set -- recipe=dim_local "$@"
folder=$(run_folder "$@")
processes=$(processes_per_node)
launcher=(accelerate launch --quiet --num_machines 1 --num_processes "$processes")
launcher+=(--mixed_precision no --dynamo_backend no)
if ((processes > 1)); then
  # Port 0 is a free one: two jobs on one node do not meet.
  launcher+=(--config_file recipes/launch/ddp.yaml --main_process_port 0)
fi
train "$folder" "${launcher[@]}" trainer/main.py "$@"
