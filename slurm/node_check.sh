#!/bin/bash
# One node's part of the node check: `node_check.sh OPTION...`, started by srun on every node. Prints a report.
# A signal for the step is noted there: its step is one of those that hear it.
set -uo pipefail

came=''
trap 'came=USR1' USR1
trap 'came=TERM' TERM

# fact NAME TEXT: a line as trainer/tasks/node_check/report.py reads it
fact() { printf 'node-check %s {"%s": "%s"}\n' "$SLURMD_NODENAME" "$1" "$(tr -d '\\"[:cntrl:]' <<< "$2" | cut -c -300)"; }

# shellcheck source=slurm/inside.sh
source slurm/inside.sh
if ! inside bash -c 'command -v python && command -v accelerate' > /dev/null; then
  fact error "no python or no accelerate in PATH; the environment of the package must be on every node"
else
  { said=$(trap '' USR1 TERM; inside python -m trainer.tasks.node_check.report "$@" 2>&1 >&3) ||
    fact error "it cannot check itself: ${said##*$'\n'}"; } 3>&1
fi
[[ -z $came ]] || fact signal "$came"
