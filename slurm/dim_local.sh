#!/bin/bash
# Deep InfoMax with local mutual information, on one node: one process per GPU.
#
#   sbatch slurm/dim_local.sh                                     the recipe dim_local, on one GPU
#   sbatch --gpus-per-node=4 --cpus-per-task=32 slurm/dim_local.sh recipe=dim_local_paper run=paper
#   PROCS_PER_NODE=2 sbatch --gpus-per-node=0 slurm/dim_local.sh recipe=dim_local_small     without GPUs
#
# Submit it in the environment that the package is installed in; its arguments are
# those of trainer/main.py. A job that is preempted, nears its time limit or loses its node continues by itself
# from its newest checkpoint, and so does the same command submitted again. The first job makes data/cifar10, and
# needs the network for it, or the archive in data/raw.
#SBATCH --job-name=dim_local
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1             # one launcher; it starts one process per GPU
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300             # 300..360 s before the limit, passed on to the training
#SBATCH --requeue
#SBATCH --open-mode=append              # a requeued job keeps its log
#SBATCH --output=slurm-%x-%j.out        # in the root: into a folder that does not exist Slurm fails without a word
set -euo pipefail
trap 'STOP_REQUEST=USR1' USR1           # from the first instant; slurm/common.sh passes it on

# The repository is where --chdir leads, or where sbatch was called, or where this script lies.
script=$(scontrol show job "${SLURM_JOB_ID:?submit this script with sbatch}" | sed -n 's/^ *Command=//p')
for root in . "$SLURM_SUBMIT_DIR" "${script%%/slurm/dim_local.sh*}"; do
  [[ ! -f $root/slurm/common.sh ]] || break
done
cd "$root"
[[ -f slurm/common.sh ]] || { echo "error: no repository in $PWD: submit slurm/dim_local.sh of a checkout" >&2; exit 2; }
# shellcheck source=slurm/common.sh
source slurm/common.sh
on_one_node dim_local "$@"
