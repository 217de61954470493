#!/bin/bash
# ImageNet as shards, made by an array of jobs: each writes every 16th shard, and the last to end completes the data set.
#
#   sbatch slurm/shard_imagenet.sh from=ILSVRC/Data/CLS-LOC                 16 parts at once, to=data/imagenet
#   sbatch --array=3 slurm/shard_imagenet.sh from=ILSVRC/Data/CLS-LOC       part 3 again: it writes what it lacks
#   PARTS=64 sbatch --array=1-64 slurm/shard_imagenet.sh from=ILSVRC/Data/CLS-LOC
#   sbatch slurm/shard_imagenet.sh source=wds from='laion/*.tar' to=data/laion      the tars are indexed where they lie
#
# The words are those of python -m data_pipelines.shards. Parts read and write a file system that all nodes share. A job
# that is preempted, nears its time limit or loses its node continues by itself. Submit it in the environment that the
# package is installed in; no GPU is used.
#SBATCH --job-name=shard_imagenet
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --array=1-16
#SBATCH --cpus-per-task=8               # a process each
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@300             # 300..360 s before the limit, passed on to the part
#SBATCH --requeue
#SBATCH --open-mode=append              # a requeued job keeps its log
#SBATCH --output=slurm-%x-%A_%a.out     # in the root: into a folder that does not exist Slurm fails without a word
set -euo pipefail
trap 'STOP_REQUEST=USR1' USR1           # from the first instant; slurm/common.sh passes it on

# The repository is where --chdir leads, or where sbatch was called, or where this script lies.
script=$(scontrol show job "${SLURM_JOB_ID:?submit this script with sbatch}" | sed -n '/^ *Command=/{s///p;q}')
for root in . "$SLURM_SUBMIT_DIR" "${script%%/slurm/shard_imagenet.sh*}"; do
  [[ ! -f $root/slurm/common.sh ]] || break
done
cd "$root"
[[ -f slurm/common.sh ]] || { echo "error: no repository in $PWD: submit slurm/shard_imagenet.sh of a checkout" >&2; exit 2; }
export ARRAY_OF_RUNS=yes
# shellcheck source=slurm/common.sh
source slurm/common.sh
check_job 1

parts=${PARTS:-16} element=${SLURM_ARRAY_TASK_ID:-none} count=${SLURM_ARRAY_TASK_COUNT:-1}
[[ $element =~ ^[1-9][0-9]*$ && $element -le $parts ]] ||
  mistake "element $element of $parts parts: sbatch --array=1-$parts, or PARTS=N with --array=1-N"
((count == 1 || count != SLURM_ARRAY_TASK_MAX || count == parts)) ||
  mistake "--array=1-$count makes $count of $parts parts: say PARTS=$count, too, or --array=1-$parts"
[[ " $* " == *" from="* ]] || mistake "from=FOLDER is missing: where ImageNet lies, such as from=ILSVRC/Data/CLS-LOC"
[[ " $* " == *" source="* ]] || set -- source=folder "$@"
[[ " $* " == *" to="* ]] || set -- "$@" to=data/imagenet
for word; do [[ $word != to=* ]] || folder=${word#to=}; done
task="part $element of $parts"
answer python -m data_pipelines.shards "$@" "part=$element/$parts"
