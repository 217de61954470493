#!/bin/bash
# One node's part of a job: `node.sh LAUNCHER...`, started by srun on every node.
#
# A signal for the step reaches all of its processes. It would kill the launcher, and with the launcher ends the
# step; ignored there, it is left to the training processes, which install handlers of their own once torch is
# imported. What comes before that is written here to STOP_REQUEST_FILE, which they read then.
set -uo pipefail

came=${STOP_REQUEST:-} file=''
note() {
  came=$1 interrupted=yes
  [[ -z $file ]] || echo "$came" > "$file"
}
trap 'note USR1' USR1
trap 'note TERM' TERM

# shellcheck source=slurm/inside.sh
source slurm/inside.sh
if ! inside bash -c 'command -v accelerate' > /dev/null; then
  echo "error: $(hostname): no accelerate in PATH; the environment of the package must be on every node" >&2
  exit 2
fi
file=$(mktemp)
trap 'rm -f "$file"' EXIT
[[ -z $came ]] || note "$came"
export STOP_REQUEST_FILE=$file
export PET_SIGNALS_TO_HANDLE=SIGINT,SIGHUP,SIGQUIT    # torch's launcher of several ranks would handle TERM itself

(trap '' USR1 TERM; inside "$@") &
while interrupted='' status=0; wait "$!" || status=$?; [[ -n $interrupted ]]; do :; done
[[ $came == TERM && $status != 0 ]] && status=143    # the launcher turns every exit code into 1
exit "$status"
