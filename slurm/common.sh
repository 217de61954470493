# shellcheck shell=bash
# What the jobs of this folder share: how many processes, which folder, and stop, requeue, continue.
#
# The launcher turns every exit code into 1, so the training says by files in the run's folder how it ended:
#   stopped     it was signalled (USR1 before the time limit, USR1 or TERM at preemption) and saved a checkpoint;
#               or somebody made the file `stop` there, and then it does not start again by itself
#   done        it is complete
# Settings, from the environment: PROCS_PER_NODE (default: the job's GPUs on a node, or 1) and MAX_RESTARTS (20).

export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK    # since 22.05 srun does not take it from sbatch
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=280         # seconds for a checkpoint between the launcher's TERM and KILL

say() { echo "$(date +%FT%T) job $SLURM_JOB_ID: $*"; }

# run_folder ARGUMENT...: where the training keeps the run that these arguments name; fails on a bad recipe.
run_folder() { python trainer/main.py "$@" --folder; }

processes_per_node() {
  local gpus=${SLURM_GPUS_ON_NODE:-0}
  echo "${PROCS_PER_NODE:-$((gpus > 0 ? gpus : 1))}"
}

# train FOLDER COMMAND...: run a launcher on every node, as one step; requeue the job if the training was stopped.
# Where one launcher fails, all are ended. Where a node is lost, the step waits for Slurm to notice (SlurmdTimeout):
# Slurm then requeues the job by itself.
train() {
  local folder=$1 status=0 restarts=${SLURM_RESTART_COUNT:-0}
  shift
  if ((restarts > 0)) && [[ -e $folder/stop ]]; then    # a first start is somebody's word against an old file
    say "not started again: the stop file was made while the job was waiting; submit it again to continue: $folder"
    return 1      # as below: what waits with afterok must not start
  fi
  rm -f "$folder/stopped"     # the last start's: a training that fails before its own must not look stopped

  # A signal for the step reaches all of its processes. It would kill the launcher, and with the launcher ends the
  # step; ignored there, it is left to the training processes, which install handlers of their own.
  # In the background: behind a foreground command this shell would hold back its own TERM, that of scancel.
  # shellcheck disable=SC2016
  srun --kill-on-bad-exit=1 bash -c 'trap "" USR1 TERM; exec "$@"' launch "$@" &
  wait $! || status=$?

  if [[ -e $folder/done && $status == 0 ]]; then
    say "complete: $folder"
  elif [[ ! -e $folder/stopped ]]; then
    say "failed with status $status: $folder"
    return $((status == 0 ? 1 : status))      # what waits with afterok must not start
  elif grep -q "^the file" "$folder/stopped"; then
    say "stopped at a checkpoint by a stop file; submit it again to continue: $folder"
    return 1
  elif ((restarts >= ${MAX_RESTARTS:-20})); then
    say "stopped at a checkpoint after $restarts restarts, the most allowed; submit it again to continue: $folder"
    return 1
  else
    say "stopped at a checkpoint, requeued: $folder"
    requeue
  fi
}

# Start this job again. Never returns with success: Slurm kills the shell while it sleeps, and a shell that exited
# by itself now, also in the grace period of a preemption, would end the job for good.
requeue() {
  local try
  for try in 1 2 3 4 5; do
    scontrol requeue "$SLURM_JOB_ID" && sleep 600
    say "try $try to requeue failed"
    sleep 10
  done
  return 1
}
