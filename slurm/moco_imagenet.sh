#!/bin/bash
# MoCo-v2 on ImageNet with a ResNet-50, on the eight GPUs of a node or over nodes: one process per GPU.
#
#   sbatch slurm/moco_imagenet.sh                                           the recipe moco_imagenet, on 8 GPUs as published
#   sbatch slurm/moco_imagenet.sh optimizer.lr_per_256=0.06 run=faster      the arguments are those of trainer/main.py
#   sbatch --nodes=2 --gpus-per-node=4 --cpus-per-task=32 slurm/moco_imagenet.sh
#   sbatch --nodes=16 slurm/moco_imagenet.sh recipe=moco_imagenet_large     a batch of 4,096 by LARS, for up to 128 ranks
#   ENGINE=fsdp2 sbatch slurm/moco_imagenet.sh                              of recipes/launch: ddp (default), zero1, ...
#
# Its batch is 8 groups of 32 images, for 1, 2, 4 or 8 ranks in all.
# The job reads data/imagenet, which is made before: python -m data_pipelines.shards source=folder from=ILSVRC2012
# to=data/imagenet, or slurm/shard_imagenet.sh. Submit it from a checkout on a file system that all nodes share, in the environment that the
# package is installed in. A job that is preempted, nears its time limit or loses a node continues by itself from its
# newest checkpoint, and so does the same command submitted again, also with other nodes or another engine.
#SBATCH --job-name=moco_imagenet
#SBATCH --nodes=1
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
for root in . "$SLURM_SUBMIT_DIR" "${script%%/slurm/moco_imagenet.sh*}"; do
  [[ ! -f $root/slurm/common.sh ]] || break
done
cd "$root"
[[ -f slurm/common.sh ]] || { echo "error: no repository in $PWD: submit slurm/moco_imagenet.sh of a checkout" >&2; exit 2; }
# shellcheck source=slurm/common.sh
source slurm/common.sh
over_nodes moco_imagenet "$@"
