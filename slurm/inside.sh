# shellcheck shell=bash
# What is particular to this cluster: the file SITE, by default slurm/site.sh (site.example.sh shows what it may say),
# read by the job's first shell and on every node. Defines
#
#   inside COMMAND...     runs a command in the environment of the package, or in its image
#   SITE_WORDS            words for trainer/main.py that stand before those of the command line
inside() { "$@"; }
# shellcheck disable=SC2034  # common.sh reads it
SITE_WORDS=()
export SITE=${SITE:-slurm/site.sh}
if [[ -e $SITE ]]; then
  shell_options=$-
  set +eu       # modules and environments were not written for them
  # shellcheck source=/dev/null
  source "$SITE"
  [[ $shell_options != *e* ]] || set -e
  [[ $shell_options != *u* ]] || set -u
elif [[ $SITE != slurm/site.sh ]]; then
  echo "error: SITE=$SITE: no such file on $(hostname); slurm/site.example.sh shows what it may say" >&2
  exit 2
fi
