#!/bin/bash
# A training, what it needs and what follows it, each job once the one before has ended well: shards, training,
# evaluation, diffusion, report.
#
#   bash slurm/chain.sh slurm/dim_local.sh run=first
#   DIFFUSE=recipe=diffuse_cifar10 bash slurm/chain.sh slurm/dim_local.sh recipe=hybrid_cifar10_pooled
#   SHARDS=from=ILSVRC/Data/CLS-LOC bash slurm/chain.sh slurm/hybrid_imagenet.sh
#   TRAIN_OPTIONS=--nodes=4 bash slurm/chain.sh slurm/hybrid_imagenet.sh run=four optimizer.clip=1
#
# Run it where sbatch is, in a checkout; words behind the script are those of the training. A job that is requeued has
# not ended: what waits for it goes on waiting. Where the training fails, evaluation and diffusion are cancelled; the
# report is made in any case, of what there is. The environment may hold
#   SHARDS, EVALUATE, DIFFUSE     words of shard_imagenet.sh, evaluate.sh and diffuse.sh; no SHARDS: the data set is
#                                 there, or the training makes it; no DIFFUSE: none is trained
#   SHARDS_OPTIONS, TRAIN_OPTIONS, EVALUATE_OPTIONS, DIFFUSE_OPTIONS      options of sbatch
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=slurm/inside.sh
source slurm/inside.sh

mistake() {
  echo "error: $*" >&2
  exit 2
}

script=${1:-}
recipe=$(sed -n 's/^\(on_one_node\|over_nodes\) \([a-z0-9_]*\) "\$@"$/\2/p' "$script" 2> /dev/null) || true
[[ -n $recipe ]] || mistake "${script:-no script}: expected a job such as slurm/dim_local.sh as the first word"
shift
[[ " $* " == *" recipe="* ]] || set -- "recipe=$recipe" "$@"
folder=$(inside python trainer/main.py ${SITE_WORDS[@]+"${SITE_WORDS[@]}"} "$@" --folder)

# submit OPTIONS SCRIPT WORD...: its number; OPTIONS are split at spaces.
submit() {
  local options
  read -ra options <<< "$1"
  shift
  sbatch --parsable ${options[@]+"${options[@]}"} "$@"
}

read -ra shards <<< "${SHARDS:-}"
read -ra evaluate <<< "${EVALUATE:-}"
read -ra diffuse <<< "${DIFFUSE:-}"
after=''
if ((${#shards[@]})); then
  made=$(submit "${SHARDS_OPTIONS:-}" slurm/shard_imagenet.sh "${shards[@]}")
  echo "$made  shards"
  after="--dependency=afterok:$made --kill-on-invalid-dep=yes"
fi
train=$(submit "${TRAIN_OPTIONS:-} $after" "$script" "$@")
echo "$train  training     $folder"
after="--dependency=afterok:$train --kill-on-invalid-dep=yes"
all=$(submit "${EVALUATE_OPTIONS:-} $after" slurm/evaluate.sh "from=$folder" ${evaluate[@]+"${evaluate[@]}"})
echo "$all  evaluation"
if ((${#diffuse[@]})); then
  drawn=$(submit "${DIFFUSE_OPTIONS:-} $after" slurm/diffuse.sh "from=$folder" "${diffuse[@]}")
  echo "$drawn  diffusion"
  all+=:$drawn
fi
report=$(submit "--dependency=afterany:$all --job-name=report --output=slurm-%x-%j.out" << REPORT
#!/bin/bash
source slurm/inside.sh
inside python -m trainer.report "$(dirname "$folder")" -o "$(dirname "$folder")/report.txt"
REPORT
)
echo "$report  report       $(dirname "$folder")/report.txt"
