#!/usr/bin/env bash
# Whether the working tree computes, bit by bit, what an older commit does: for changes that move code about.
#
#   bash benchmarks/unchanged.sh [--keep] [--only NAME]... OLD_COMMIT
#
# OLD is the commit, in a worktree of its own; NEW is a copy of the working tree (all that git does not ignore)
# as it is when the command starts, so that it may be edited meanwhile. Each runs its own code, which is
# checked. Both make shards of drawn images, train the same small runs on the CPU, and fail alike; NEW continues
# runs that OLD was ended in, and NEW's commands read what OLD left. Every file is compared
# (unchanged_compare.py says what may differ), each difference is one line, and the status is 1 where there is
# one.
#
#   --keep        use OLD's finished runs that are in outputs/unchanged/COMMIT, and make those that are not;
#                 without it all is made anew, and what lies there of this commit is removed first
#   --only NAME   this run alone, such as moco_cifar10_small-ddp2; may be repeated, or `shards` for no run
#   --list        the names of all runs
#   --help        these lines
#
# What was made lies in outputs/unchanged until the next call: COMMIT/ and new/, each with runs, logs, shards.
# differences.txt has all that differs. A rank has one thread, unless OMP_NUM_THREADS says another number: so
# the number of cores decides nothing, and one-rank runs of both sides go side by side. What is kept is used with
# the same versions of the libraries only.
set -euo pipefail

usage() {
  awk 'NR > 1 && /^#/ { sub(/^# ?/, ""); print; next } NR > 1 { exit }' "${BASH_SOURCE[0]}"
}

refuse() {
  echo "error: $1; see --help" >&2
  exit 2
}

# Copies what git does not ignore of the working tree to a folder, without what was deleted.
copy_working_tree() {
  mkdir -p "$1"
  git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do
      if [[ -e $file || -L $file ]]; then printf '%s\0' "$file"; fi
    done | sort -zu | tar --create --null --files-from=- | tar --extract --directory="$1"
}

remove_worktree() {
  if [[ -e $old/tree ]]; then git worktree remove --force --force "$old/tree" || rm -rf "$old/tree"; fi
  git worktree prune
}

keep=
commit=
only=()
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
while (($#)); do
  case $1 in
    --help | -h) usage && exit ;;
    --list) exec python "$here/unchanged_runs.py" --list ;;
    --keep) keep=--keep ;;
    --only)
      only+=(--only "${2:?--only needs the name of a run}")
      shift
      ;;
    -*) refuse "$1 is unknown" ;;
    *)
      if [[ $commit ]]; then refuse "two commits are given, $commit and $1"; fi
      commit=$1
      ;;
  esac
  shift
done
cd "$here/.."
if [[ ! $commit ]]; then refuse "no commit is given"; fi
short=$(git rev-parse --verify --quiet --short=7 "$commit^{commit}") || refuse "$commit is no commit"

work=$PWD/outputs/unchanged
old=$work/$short
mkdir -p "$work"
exec 9> "$work/.lock"
flock --nonblock 9 || refuse "another comparison runs in $work"
remove_worktree
trap remove_worktree EXIT
if [[ ! $keep ]]; then rm -rf "$old"; fi
rm -rf "$work/new"
git worktree add --quiet --force --detach "$old/tree" "$short"
copy_working_tree "$work/new/tree"

# No GPU, no configuration of accelerate's and no MLflow of the user's take part.
export CUDA_VISIBLE_DEVICES="" HF_HOME=$work/none OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
unset MLFLOW_TRACKING_URI MLFLOW_RUN_ID MLFLOW_EXPERIMENT_NAME
status=0
python "$here/unchanged_runs.py" "$old" "$work/new" "${only[@]}" || status=$?
exit "$status"
