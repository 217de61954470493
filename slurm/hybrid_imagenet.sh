#!/bin/bash
# The hybrid of a contrastive and an autoencoder bound on ImageNet, over nodes: one process per GPU.
#
#   sbatch slurm/hybrid_imagenet.sh                                         the recipe hybrid_imagenet, 2 nodes of 8 GPUs
#   sbatch --nodes=4 slurm/hybrid_imagenet.sh run=four optimizer.clip=1     the arguments are those of trainer/main.py
#   ENGINE=zero2 sbatch slurm/hybrid_imagenet.sh                            of recipes/launch: ddp (default), zero1, ...
#   PROCS_PER_NODE=2 sbatch --gpus-per-node=0 --cpus-per-task=8 slurm/hybrid_imagenet.sh recipe=...     without GPUs
#
# Submit it from a checkout on a file system that all nodes share, in the environment that the package
# is installed in. A job that is preempted, nears its time limit or loses a node continues by itself from its newest
# checkpoint, and so does the same command submitted again, also with another number of nodes or another engine.
#SBATCH --job-name=hybrid_imagenet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1             # one launcher a node; it starts one process per GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=48:00:00
#SBATCH --signal=B:USR1@300             # 300..360 s before the limit, passed on to the training
#SBATCH --requeue
#SBATCH --open-mode=append              # a requeued job keeps its log
#SBATCH --output=slurm-%x-%j.out        # in the root: into a folder that does not exist Slurm fails without a word
set -euo pipefail
trap 'STOP_REQUEST=USR1' USR1           # from the first instant; slurm/common.sh passes it on

# The repository is where --chdir leads, or where sbatch was called, or where this script lies.
script=$(scontrol show job "${SLURM_JOB_ID:?submit this script with sbatch}" | sed -n 's/^ *Command=//p')
for root in . "$SLURM_SUBMIT_DIR" "${script%%/slurm/hybrid_imagenet.sh*}"; do
  [[ ! -f $root/slurm/common.sh ]] || break
done
cd "$root"
[[ -f slurm/common.sh ]] || { echo "error: no repository in $PWD: submit slurm/hybrid_imagenet.sh of a checkout" >&2; exit 2; }
# shellcheck source=slurm/common.sh
source slurm/common.sh
over_nodes hybrid_imagenet "$@"
