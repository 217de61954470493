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
if [[ ! -f slurm/common.sh ]]; then
  echo "error: no repository in $PWD, where this script lies: submit slurm/hybrid_imagenet.sh of a checkout" >&2
  exit 2
fi
# shellcheck source=slurm/common.sh
source slurm/common.sh
check_job "$SLURM_JOB_NUM_NODES"

[[ " $* " == *" recipe="* ]] || set -- recipe=hybrid_imagenet "$@"
engine=${ENGINE:-ddp}
processes=$((SLURM_JOB_NUM_NODES * $(processes_per_node)))
if [[ ! -f recipes/launch/$engine.yaml ]]; then
  echo "error: ENGINE=$engine: no recipes/launch/$engine.yaml; there are: $(cd recipes/launch && echo *.yaml)" >&2
  exit 2
elif [[ $engine == zero* ]] && ! python -c 'import importlib.util as u; assert u.find_spec("deepspeed")' 2> /dev/null
then    # accelerate would say so in a traceback on every node
  echo "error: ENGINE=$engine: DeepSpeed is not installed: pip install deepspeed, or ENGINE=ddp or fsdp2" >&2
  exit 2
elif ((processes < 2)); then
  echo "error: one process in all: ask for more --nodes or --gpus-per-node, or set PROCS_PER_NODE" >&2
  exit 2
fi

# This shell runs on the first node.
wanted=${MASTER_PORT:-$((10000 + SLURM_JOB_ID % 20000))}
port=$(free_port "$wanted")
[[ -z ${MASTER_PORT:-} || $port == "$wanted" ]] ||
  mistake "MASTER_PORT=$MASTER_PORT is taken on $(hostname): unset it, and a free one is chosen"

# What is given here stands above the engine's file. The nodes meet at the first one, at a port of this job's own.
# `standard`: DeepSpeed would start the other nodes by itself, through pdsh.
options=(--quiet --config_file "recipes/launch/$engine.yaml")
options+=(--num_machines "$SLURM_JOB_NUM_NODES" --num_processes "$processes")
options+=(--main_process_ip "$(scontrol show hostnames | head -n 1)")
options+=(--main_process_port "$port")
options+=(--rdzv_backend static --same_network --deepspeed_multinode_launcher standard)
read_recipe "$@"
# shellcheck disable=SC2016
start bash -c 'exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"' node \
  "${options[@]}" trainer/main.py "$@"
