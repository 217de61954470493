# shellcheck shell=bash
# What the jobs of this folder share. A job sources this file in the repository's root and calls
#
#   on_one_node RECIPE WORD...      all processes on one node; RECIPE where no word is recipe=...
#   over_nodes RECIPE WORD...       a launcher on every node, under any engine
#
# which check the job, start the launchers, and stop, requeue or end it.
#
# The launcher turns every exit code into 1, so the training says by files in the run's folder how it ended:
#   stopped     it was signalled (USR1 before the time limit, USR1 or TERM at preemption) and saved a checkpoint;
#               or somebody made the file `stop` there, and then it does not start again by itself
#   failed      why it could not go on
#   done        it is complete
# Settings, from the environment: PROCS_PER_NODE (default: the job's GPUs on a node, or 1), MAX_RESTARTS (20),
# SIGNAL_SECONDS (300, the number in --signal), NODE_CHECK (60 seconds for the nodes to answer, 0 for no check);
# over nodes ENGINE (ddp) and MASTER_PORT too.
MAX_RETRIES=2                       # starts after a rank was killed or hung, each after a new checkpoint

# Since 22.05 srun does not take it from sbatch.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=280         # seconds for a checkpoint between the launcher's TERM and KILL
export SLURM_EXPORT_ENV=ALL         # the steps have what this shell has, also under --export=NONE
export STATUS_OF_STOPPED=0          # a stop that was asked for is no failure: no tracebacks, no DerivedExitCode
JOB_NODES=$(scontrol show hostnames | paste -s -d ' ')
export JOB_NODES
# Of the salloc in which sbatch was called; srun takes only one of them. A step has its job's memory.
unset SLURM_MEM_PER_NODE SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU

# This job; the number of the first element of an array would mean all of them.
JOB=${SLURM_ARRAY_TASK_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB=${JOB:-$SLURM_JOB_ID}

# shellcheck source=slurm/inside.sh
source slurm/inside.sh

say() { echo "$(date +%FT%T) job $SLURM_JOB_ID: $*"; }

mistake() {
  echo "error: $*" >&2
  exit 2
}

# A field of `scontrol show job`.
job_field() { scontrol show job "$JOB" | sed -n "s/.*\b$1=\([^ ]*\).*/\1/p"; }

# seconds [DAYS-]HOURS:MINUTES:SECONDS
seconds() {
  local days=0 clock=$1 h m s
  [[ $clock != *-* ]] || days=${clock%%-*} clock=${clock#*-}
  IFS=: read -r h m s <<< "$clock"
  echo $((((10#$days * 24 + 10#$h) * 60 + 10#$m) * 60 + 10#$s))
}

# check_job MOST_NODES: what can be known before anything is started.
check_job() {
  local most=$1 limit lead=${SIGNAL_SECONDS:-300} missing
  [[ ! ${SLURM_ARRAY_TASK_COUNT:-1} -gt 1 || -n ${ARRAY_OF_RUNS:-} ]] ||
    mistake "an array would train one run $SLURM_ARRAY_TASK_COUNT times: slurm/sweep.sh trains one for each element"
  ((SLURM_JOB_NUM_NODES <= most)) ||
    mistake "--nodes=$SLURM_JOB_NUM_NODES: this script is for one node; slurm/hybrid_imagenet.sh runs any recipe on several"
  [[ ${SLURM_NTASKS:-$SLURM_JOB_NUM_NODES} == "$SLURM_JOB_NUM_NODES" ]] ||
    mistake "$SLURM_NTASKS tasks on $SLURM_JOB_NUM_NODES nodes: leave --ntasks-per-node at 1; a launcher starts the" \
      "processes, as many as --gpus-per-node or PROCS_PER_NODE says"
  limit=$(job_field TimeLimit)
  # Slurm may send the signal 60 s early.
  [[ ! $limit =~ ^[0-9]+(-|:) ]] || (($(seconds "$limit") > lead + 60)) ||
    mistake "--time=$limit: the signal to stop comes up to $((lead + 60)) s before the limit, so at once: ask for more" \
      "time, or set both --signal=B:USR1@SECONDS and SIGNAL_SECONDS"
  inside bash -c 'command -v python && command -v accelerate' > /dev/null ||
    mistake "no python or no accelerate in PATH on $(hostname): submit in the environment of the package, or" \
      "activate it in slurm/site.sh"
  missing=$(inside python -c 'import importlib.util as u
print(*(n for n in ("torch", "accelerate", "numpy", "yaml", "pydantic", "psutil") if not u.find_spec(n)))' 2>&1) ||
    missing=${missing##*$'\n'}
  [[ -z $missing ]] || mistake "$(command -v python) on $(hostname) lacks: $missing; pip install -c constraints.txt -e ."
}

# read_recipe ARGUMENT...: sets `folder`, where the training keeps the run that these arguments name, and `task`;
# ends the job on a bad recipe. A step, so that it hears the signals that are for steps.
read_recipe() {
  local answer
  # shellcheck disable=SC2016
  answer=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" bash -c '
    trap "came=USR1" USR1
    trap "came=TERM" TERM
    (trap "" USR1 TERM
     source slurm/inside.sh
     inside python trainer/main.py "$@" --folder &&
       inside python trainer/main.py "$@" --print 2> /dev/null | sed -n "s/^task: *\([a-z]*\).*/\1/p")
    echo "$? ${came:-}"' read "$@")
  mapfile -t answer <<< "$answer"
  local last=${answer[-1]}
  [[ ${last%% *} == 0 ]] || exit "${last%% *}"
  folder=${answer[0]} task=${answer[1]}
  STOP_REQUEST=${STOP_REQUEST:-${last#* }}
}

processes_per_node() {
  local gpus=${SLURM_GPUS_ON_NODE:-0}
  echo "${PROCS_PER_NODE:-$((gpus > 0 ? gpus : 1))}"
}

# free_port FIRST: the first port of this node from FIRST that nobody listens on.
free_port() {
  inside python -c 'import sys
from trainer.tasks.node_check.network import listen
for port in range(int(sys.argv[1]), 65536):
    try:
        listen(port).close()
    except OSError:
        continue
    print(port)
    break' "$1"
}

# check_nodes PORT WORD...: every node looks at itself and at what it shares with the first, which ends the job with a
# line for each thing that is wrong. PORT 0: there is one node. Reads what read_recipe has set.
check_nodes() {
  local port=$1 word answer came from to end options
  shift
  [[ ${NODE_CHECK:=60} =~ ^[0-9]+$ ]] || mistake "NODE_CHECK=$NODE_CHECK: expected seconds for the nodes to answer, or 0"
  ((NODE_CHECK > 0)) || return 0
  options=("--token=$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" "--processes=$(processes_per_node)" "--port=$port")
  # What compares the reports answers the nodes at the port, so it is there before them.
  coproc COMPARISON {
    trap '' USR1
    inside python -m trainer.tasks.node_check "${options[@]}" "--folder=$folder" "--nodes=$JOB_NODES" \
      "--seconds=$NODE_CHECK" "$@"
  }
  from=${COMPARISON[0]} end=${COMPARISON[1]}
  exec {to}>&"$end"                 # which srun inherits, as it does not that of a coprocess
  exec {end}>&-
  IFS=' ' read -r word answer <&"$from" || exit 2
  # shellcheck disable=SC2016
  srun --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 bash -c '
    [[ -f slurm/node_check.sh ]] && exec bash slurm/node_check.sh "$@"
    echo "node-check $SLURMD_NODENAME {\"error\": \"the checkout is not there; all nodes must share it\"}"' check \
    "${options[@]}" "--folder=$answer" "--first=${JOB_NODES%% *}" >&"$to" < /dev/null &
  exec {to}>&-
  read -r word came <&"$from" && [[ $word == sound ]] || exit 2
  exec {from}<&-
  STOP_REQUEST=${STOP_REQUEST:-$came}
}

newest_checkpoint() {
  local paths=("$folder"/checkpoints/images-*)
  echo "${paths[-1]##*/}"
}

# step COMMAND...: run a launcher on every node, as one step; its status. Where one launcher fails, all are ended.
# Where a node is lost, the step waits for Slurm to notice (SlurmdTimeout): Slurm then requeues the job by itself.
step() {
  local status=0 interrupted=''
  # A signal for this shell (--signal=B:) is passed on to the step; $! is its srun, once there is one.
  trap 'STOP_REQUEST=USR1 interrupted=yes; pass_on_to "${!:-}"' USR1
  export STOP_REQUEST
  # In the background: behind a foreground command this shell would hold back its own TERM, that of scancel.
  srun --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    --kill-on-bad-exit=1 bash slurm/node.sh "$@" &
  while interrupted='' status=0; wait "$!" || status=$?; [[ -n $interrupted ]]; do :; done
  return "$status"
}

# pass_on_to SRUN: USR1 for its step, again and again until it ends: while its tasks are being launched nobody hears
# it, and to whoever has heard it it says nothing new.
pass_on_to() {
  while kill -0 "$1" 2> /dev/null; do
    scancel --signal=USR1 "$JOB" 2> /dev/null || true
    sleep 2
  done
}

# on_one_node RECIPE WORD...
on_one_node() {
  local recipe=$1 processes launcher
  shift
  [[ " $* " == *" recipe="* ]] || set -- "recipe=$recipe" "$@"
  set -- ${SITE_WORDS[@]+"${SITE_WORDS[@]}"} "$@"
  check_job 1
  processes=$(processes_per_node)
  launcher=(accelerate launch --quiet --num_machines 1 --num_processes "$processes")
  launcher+=(--mixed_precision no --dynamo_backend no)
  if ((processes > 1)); then
    # Port 0 is a free one: two jobs on one node do not meet.
    launcher+=(--config_file recipes/launch/ddp.yaml --main_process_port 0)
  else    # a file of ours in any case: accelerate would take the user's default file, and its engine
    launcher+=(--config_file recipes/launch/cpu.yaml --gpu_ids all)
  fi
  read_recipe "$@"
  check_nodes 0 "$@"
  start "${launcher[@]}" trainer/main.py "$@"
}

# over_nodes RECIPE WORD...
over_nodes() {
  local recipe=$1 engine=${ENGINE:-ddp} processes port wanted options
  shift
  [[ " $* " == *" recipe="* ]] || set -- "recipe=$recipe" "$@"
  set -- ${SITE_WORDS[@]+"${SITE_WORDS[@]}"} "$@"
  check_job "$SLURM_JOB_NUM_NODES"
  processes=$((SLURM_JOB_NUM_NODES * $(processes_per_node)))
  [[ -f recipes/launch/$engine.yaml ]] ||
    mistake "ENGINE=$engine: no recipes/launch/$engine.yaml; there are: $(cd recipes/launch && echo *.yaml)"
  # accelerate would say so in a traceback on every node
  [[ $engine != zero* ]] || inside python -c 'import importlib.util as u; assert u.find_spec("deepspeed")' 2> /dev/null ||
    mistake "ENGINE=$engine: DeepSpeed is not installed: pip install deepspeed, or ENGINE=ddp or fsdp2"
  ((processes >= 2)) ||
    mistake "one process in all: ask for more --nodes or --gpus-per-node, or set PROCS_PER_NODE"
  read_recipe "$@"

  # This shell runs on the first node, where the nodes meet, at a port of this job.
  wanted=${MASTER_PORT:-$((10000 + SLURM_JOB_ID % 20000))}
  port=$(free_port "$wanted")
  [[ -z ${MASTER_PORT:-} || $port == "$wanted" ]] ||
    mistake "MASTER_PORT=$MASTER_PORT is taken on $(hostname): unset it, and a free one is chosen"
  check_nodes "$port" "$@"
  # What is given here stands above the engine's file.
  # `standard`: DeepSpeed would start the other nodes by itself, through pdsh.
  options=(--quiet --config_file "recipes/launch/$engine.yaml")
  options+=(--num_machines "$SLURM_JOB_NUM_NODES" --num_processes "$processes")
  options+=(--main_process_ip "${JOB_NODES%% *}" --main_process_port "$port")
  options+=(--rdzv_backend static --same_network --deepspeed_multinode_launcher standard)
  # shellcheck disable=SC2016
  start bash -c 'exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"' node \
    "${options[@]}" trainer/main.py "$@"
}

# start COMMAND...: the launcher on every node, and what becomes of the job. Reads what read_recipe has set.
start() {
  if [[ $task == pretrain || $task == diffuse ]]; then
    train "$@"
  else
    answer "$@"
  fi
}

# A task that trains nothing leaves the run's files alone, and begins anew where it was ended.
answer() {
  local status=0
  step "$@" || status=$?
  if ((status == 0)); then
    say "complete: $task $folder"
  elif ((status == 143)); then
    requeue_unless_most "$task was ended by a signal"
  else
    say "$task failed with status $status: $folder"
    return "$status"
  fi
}

train() {
  local status=0 before restarts=${SLURM_RESTART_COUNT:-0}
  if ((restarts > 0)) && [[ -e $folder/stop ]]; then    # a first start is somebody's word against an old file
    say "not started again: the stop file was made while the job was waiting; submit it again to continue: $folder"
    return 1      # as below: what waits with afterok must not start
  fi
  ((restarts == 0)) || replace_earlier_start
  rm -f "$folder/stopped"     # the last start's: a training that fails before its own must not look stopped
  before=$(newest_checkpoint)
  step "$@" || status=$?

  if [[ -e $folder/stopped ]]; then
    if grep -q "^the file" "$folder/stopped"; then
      say "stopped at a checkpoint by a stop file; submit it again to continue: $folder"
      return 1
    fi
    requeue_unless_most "stopped at a checkpoint"
  elif [[ -e $folder/done && $status == 0 ]]; then
    say "complete: $folder"
  elif killed_or_hung && [[ $(newest_checkpoint) != "$before" ]] && count_retry; then
    requeue_unless_most "a rank was killed or hung, after a new checkpoint"
  else
    say "failed with status $status: $folder"
    return $((status == 0 ? 1 : status))      # what waits with afterok must not start
  fi
}

# The start that this one has replaced may live on, on a node whose slurmd died: it is asked to save and end. It is
# this job's where world.json says so; what another job trains is left to it, and the training refuses.
replace_earlier_start() {
  local tries=120
  while [[ -e $folder/journal.jsonl ]] && ! flock --nonblock --shared "$folder/journal.jsonl" true &&
    grep -q "\"job\": \"$SLURM_JOB_ID\"" "$folder/world.json" && ((tries--)); do
    ((tries < 119)) || say "an earlier start of this job lives on, on another node, and is asked to stop: $folder"
    touch "$folder/stop"
    sleep 5
  done
}

# Whether the training ended without a word, or for the loss of a rank; a mistake or an error has a reason of its own.
killed_or_hung() {
  [[ ! -e $folder/failed ]] || sed -n 2p "$folder/failed" | grep -q "another rank has gone\|^no stage of a step has ended"
}

# Counts this job's retries, in a file of the run; fails after MAX_RETRIES.
count_retry() {
  local job='' count=0
  [[ ! -e $folder/retries ]] || read -r job count < "$folder/retries"
  [[ $job == "$SLURM_JOB_ID" ]] || count=0
  ((count < MAX_RETRIES)) && echo "$SLURM_JOB_ID $((count + 1))" > "$folder/retries"
}

requeue_unless_most() {
  if ((${SLURM_RESTART_COUNT:-0} >= ${MAX_RESTARTS:-20})); then
    say "$1 after ${SLURM_RESTART_COUNT:-0} restarts, the most allowed; submit it again to continue: $folder"
    return 1
  fi
  say "$1, requeued: $folder"
  requeue
}

# Start this job again. Never returns with success: Slurm kills the shell while it sleeps, and a shell that exited
# by itself now, also in the grace period of a preemption, would end the job for good.
# A shell that Slurm has lost sight of, for its slurmd died, must not requeue the start that has replaced its own.
requeue() {
  local try now
  for try in 1 2 3 4 5; do
    now=$(job_field Restarts) || now=''
    if [[ -n $now && $now != "${SLURM_RESTART_COUNT:-0}" ]]; then
      say "not requeued: restart $now of this job has replaced this one, restart ${SLURM_RESTART_COUNT:-0}"
      return 1
    fi
    [[ -n $now ]] && scontrol requeue "$JOB" && sleep 600
    say "try $try to requeue failed"
    sleep 10
  done
  return 1
}
