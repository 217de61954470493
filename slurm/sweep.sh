#!/bin/bash
# A sweep: a run for each combination of values, each an element of an array of jobs on one GPU.
#
#   bash slurm/sweep.sh rates.txt recipe=dim_local                          lists the runs; nothing is submitted
#   sbatch --array=0-5 slurm/sweep.sh rates.txt recipe=dim_local            all six; --array=0-5%2: two at a time
#   sbatch --array=3 slurm/sweep.sh rates.txt recipe=dim_local              one of them again: it continues
#
# rates.txt has a line KEY=VALUE,VALUE,... for each key, and lines that begin with # for whoever reads it:
#
#   optimizer.lr=1e-4,3e-4,1e-3
#   objective.bound=jsd,infonce
#
# The runs lie in outputs/rates/, named by their values, or where outputs=FOLDER says. When one ends, the report of all
# that have ended is written to report.txt beside them. One that fails says which it was, and the others go on. Each
# continues by itself as other jobs do. Submit it in the environment that the package is installed in.
#SBATCH --job-name=sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1             # one launcher; it starts one process per GPU
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300             # 300..360 s before the limit, passed on to the training
#SBATCH --requeue
#SBATCH --open-mode=append              # a requeued job keeps its log
#SBATCH --output=slurm-%x-%A_%a.out     # in the root: into a folder that does not exist Slurm fails without a word
set -euo pipefail
trap 'STOP_REQUEST=USR1' USR1           # from the first instant; slurm/common.sh passes it on

mistake() {
  echo "error: $*" >&2
  exit 2
}

# Sets `lines`, KEY=VALUE,... each, and `count`, how many combinations they have.
read_sweep() {
  local line values
  [[ -f ${1:-} ]] || mistake "${1:-no file}: expected a file of lines KEY=VALUE,VALUE,... as the first word"
  mapfile -t lines < <(grep -v '^ *\(#\|$\)' "$1")
  count=1
  for line in "${lines[@]}"; do
    [[ $line =~ ^[a-z][A-Za-z0-9_.]*=[^,\ ]+(,[^,\ ]+)*$ ]] ||
      mistake "$1: $line: expected KEY=VALUE,VALUE,... without spaces"
    IFS=, read -ra values <<< "${line#*=}"
    count=$((count * ${#values[@]}))
  done
  ((${#lines[@]})) || mistake "$1: no line KEY=VALUE,VALUE,..."
}

# The words of a combination, by its number from 0; the first key changes fastest.
combination() {
  local number=$1 line values
  for line in "${lines[@]}"; do
    IFS=, read -ra values <<< "${line#*=}"
    echo "${line%%=*}=${values[number % ${#values[@]}]}"
    number=$((number / ${#values[@]}))
  done
}

if [[ -z ${SLURM_JOB_ID:-} ]]; then
  read_sweep "$@"
  for ((number = 0; number < count; number++)); do echo "$number  $(combination "$number" | paste -s -d ' ')"; done
  echo "sbatch --array=0-$((count - 1)) slurm/sweep.sh $*"
  exit
fi

# The repository is where --chdir leads, or where sbatch was called, or where this script lies.
script=$(scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *Command=/{s///p;q}')
for root in . "$SLURM_SUBMIT_DIR" "${script%%/slurm/sweep.sh*}"; do
  [[ ! -f $root/slurm/common.sh ]] || break
done
cd "$root"
[[ -f slurm/common.sh ]] || mistake "no repository in $PWD: submit slurm/sweep.sh of a checkout"
# shellcheck source=slurm/common.sh
source slurm/common.sh
export ARRAY_OF_RUNS=yes
read_sweep "$@"
element=${SLURM_ARRAY_TASK_ID:-none}
[[ $element != none && $element -lt $count ]] ||
  mistake "element $element: $1 has $count combinations: sbatch --array=0-$((count - 1)) slurm/sweep.sh $*"
mapfile -t values < <(combination "$element")
sweep=$(basename "${1%.*}") folder=''
shift
[[ " $* " == *" outputs="* ]] || set -- "outputs=outputs/$sweep" "$@"

# The report, whatever became of the run.
finish() {
  local status=$?
  if [[ -n $folder ]]; then
    inside python -m trainer.report "${folder%/*}" -o "${folder%/*}/report.txt" || true
  fi
  ((status == 0)) || say "element $element of the sweep has not ended well, status $status: ${values[*]}"
}
trap finish EXIT

name=$(IFS=_; echo "${values[*]}")
on_one_node dim_local "$@" "${values[@]}" "run=${name//[!A-Za-z0-9_.+=-]/-}"
