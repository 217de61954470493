#!/bin/bash
# Probes, kNN and controls of a run's frozen encoder, on one GPU or several of a node.
#
#   sbatch slurm/evaluate.sh from=outputs/dim_local                         the recipe evaluate
#   sbatch slurm/evaluate.sh recipe=evaluate_paper from=outputs/dim_local   the paper's probes
#   sbatch slurm/evaluate.sh recipe=measure from=outputs/diffuse_cifar10    a diffusion's images instead
#   sbatch --dependency=afterok:JOB --kill-on-invalid-dep=yes slurm/evaluate.sh from=...     once that job has trained
#
# Submit it in the environment that the package is installed in; its arguments are those of trainer/main.py. What it
# measures is added to results.json of the run, and it leaves alone what says how the run's training ended. A job that
# is preempted begins anew; one that reaches its time limit has failed: ask for more.
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1             # one launcher; it starts one process per GPU
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@300             # 300..360 s before the limit, passed on to the evaluation
#SBATCH --requeue
#SBATCH --open-mode=append              # a requeued job keeps its log
#SBATCH --output=slurm-%x-%j.out        # in the root: into a folder that does not exist Slurm fails without a word
set -euo pipefail
trap 'STOP_REQUEST=USR1' USR1           # from the first instant; slurm/common.sh passes it on

# The repository is where --chdir leads, or where sbatch was called, or where this script lies.
script=$(scontrol show job "${SLURM_JOB_ID:?submit this script with sbatch}" | sed -n 's/^ *Command=//p')
for root in . "$SLURM_SUBMIT_DIR" "${script%%/slurm/evaluate.sh*}"; do
  [[ ! -f $root/slurm/common.sh ]] || break
done
cd "$root"
[[ -f slurm/common.sh ]] || { echo "error: no repository in $PWD: submit slurm/evaluate.sh of a checkout" >&2; exit 2; }
# shellcheck source=slurm/common.sh
source slurm/common.sh
on_one_node evaluate "$@"
