# shellcheck shell=bash
# What is particular to this cluster: the file SITE, by default slurm/site.sh (site.example.sh shows what it may say),
# read by the job's first shell and on every node. Defines
#
#   inside COMMAND...     runs a command in the environment of the package, or in its image
#   SITE_WORDS            words for trainer/main.py that stand before those of the command line
#
# and for SITE local_packages, below.
inside() { "$@"; }
# shellcheck disable=SC2034  # common.sh reads it
SITE_WORDS=()

# local_packages TAR [FOLDER]: Python imports packages from this node's disk. TAR holds a site-packages folder; the first
# process of a node unpacks it below FOLDER, and the others wait. What is not in it is imported as before.
local_packages() {
  local to=${2:-${TMPDIR:-/tmp}}
  to=$to/packages-$(id -u)-$(stat --format=%Y-%s "$1") || return
  mkdir -p "$to" && (
    flock 9
    [[ -e $to/complete ]] || { tar -xf "$1" -C "$to" && touch "$to/complete"; }
  ) 9> "$to/lock" || return
  export PYTHONPATH=$to${PYTHONPATH:+:$PYTHONPATH}
}
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
