#!/usr/bin/env bash
# A throw-away Slurm cluster on one machine, in namespaces of its own; the tests of this folder start it.
#
#   cluster.sh run                 # in the foreground: ends with TERM, or with its parent
#   cluster.sh wait                # until all nodes are idle
#   cluster.sh exec CMD...         # run sbatch, squeue, scontrol, ... on the head node
#   cluster.sh on n2 CMD...        # run a command on a node
#   cluster.sh crash n2            # SIGKILL to everything that runs on a node; its network stays
#   cluster.sh revive n2           # start its slurmd again
#
# By hand: `CLUSTER_DIR=/tmp/c tests/slurm/cluster.sh run &`, then `CLUSTER_DIR=/tmp/c tests/slurm/cluster.sh exec sinfo`.
# Settings come from the environment: CLUSTER_DIR NODES CPUS MEM_MB GPUS KILL_WAIT GRACE_TIME CRED_EXPIRE (below).
# Two clusters with different CLUSTER_DIR can run side by side.
#
# Needs root and Debian's slurmctld slurmd slurm-client munge iproute2 util-linux.  No systemd, no
# cgroups, no containers, no accounting database.
#
# The head (munged, slurmctld, a bridge) and each node (slurmd) have their own network, UTS, mount
# and PID namespace: nodes have real host names and addresses.  The nodes' PID namespaces are nested in
# the head's, so the end of the one process in run/head.pid is the end of everything.  Nothing outside
# CLUSTER_DIR is written; the machine's own network and /etc/hosts stay as they are.
set -euo pipefail

CLUSTER_DIR=$(readlink -m "${CLUSTER_DIR:-${TMPDIR:-/tmp}/slurm-cluster}")
NODES=${NODES:-1}                     # n1 .. nN
CPUS=${CPUS:-8}                       # a node's cores, pretended
MEM_MB=${MEM_MB:-64000}               # a node's memory, pretended
GPUS=${GPUS:-4}                       # a node's GPUs, pretended: only CUDA_VISIBLE_DEVICES is real
KILL_WAIT=${KILL_WAIT:-3}             # between SIGTERM and SIGKILL
GRACE_TIME=${GRACE_TIME:-10}          # between the preemption signal and the requeue
CRED_EXPIRE=${CRED_EXPIRE:-5}         # a requeued job waits this long (Slurm's default: 120 s)
NET=10.231.77                         # exists only inside the namespaces

RUN=$CLUSTER_DIR/run LOG=$CLUSTER_DIR/log
SELF=$(readlink -f "${BASH_SOURCE[0]}")
NS=(--mount --uts --net --pid)
export SLURM_CONF=$CLUSTER_DIR/slurm.conf CLUSTER_DIR

die() { echo "cluster.sh: $*" >&2; exit 1; }
addr() { echo "$NET.$((10 + ${1#n}))"; }
running() { readlink "/proc/$1/exe" > /dev/null; }      # a zombie is not
alive() { [[ -s $RUN/head.pid ]] && running "$(<"$RUN/head.pid")"; }
# PID 1 of the namespace that the `unshare` process $1 made, as seen from here
init_of() {
  local pid=$1 kids=''
  for _ in {1..200}; do
    kids=$(cat "/proc/$pid/task/$pid/children" 2>/dev/null) || true
    if [[ -n $kids ]]; then echo "${kids%% *}"; return; fi
    sleep 0.02
  done
  die "process $pid has no namespace"
}
on_head() {
  alive || die "not running"
  nsenter -t "$(init_of "$(<"$RUN/head.pid")")" "${NS[@]}" --wdns="$PWD" -- "$@"
}

write_conf() {
  mkdir -p "$RUN" "$LOG" "$CLUSTER_DIR"/{state,spool,gpu}
  ((${#RUN} <= 80)) || die "$RUN is too long for a Unix socket"
  [[ -s $CLUSTER_DIR/munge.key ]] || (umask 077; head -c 128 /dev/urandom > "$CLUSTER_DIR/munge.key")
  local names gres='' i
  names=$(seq -f 'n%.0f' 1 "$NODES")
  { echo "127.0.0.1 localhost"; echo "$NET.1 head"; for i in $names; do echo "$(addr "$i") $i"; done; } > "$CLUSTER_DIR/hosts"
  echo "hosts: files" > "$CLUSTER_DIR/nsswitch.conf"      # no DNS in there: fail at once, not after a timeout
  printf 'passwd: files\ngroup: files\n' >> "$CLUSTER_DIR/nsswitch.conf"
  : > "$CLUSTER_DIR/gres.conf"
  if ((GPUS > 0)); then
    for ((i = 0; i < GPUS; i++)); do [[ -c $CLUSTER_DIR/gpu/gpu$i ]] || mknod "$CLUSTER_DIR/gpu/gpu$i" c 1 3; done   # /dev/null
    echo "NodeName=n[1-$NODES] Name=gpu File=$CLUSTER_DIR/gpu/gpu[0-$((GPUS - 1))]" > "$CLUSTER_DIR/gres.conf"
    gres=" Gres=gpu:$GPUS"
  fi
  : > "$CLUSTER_DIR/plugstack.conf"
  ((GPUS == 0)) || echo "NodeName=c[1-16] Name=gpu Count=8" >> "$CLUSTER_DIR/gres.conf"
  cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=head($NET.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$RUN/munge.socket,cred_expire=$CRED_EXPIRE
StateSaveLocation=$CLUSTER_DIR/state
SlurmdSpoolDir=$CLUSTER_DIR/spool/%n
SlurmctldPidFile=$RUN/slurmctld.pid
SlurmdPidFile=$RUN/%n.slurmd.pid
SlurmctldLogFile=$LOG/slurmctld.log
SlurmdLogFile=$LOG/%n.log
PlugStackConfig=$CLUSTER_DIR/plugstack.conf
MailProg=/bin/true

# no cgroups, no binding, no accounting database
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$LOG/jobcomp.log
MpiDefault=none

# the nodes are what this file says, whatever the machine has
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
DefMemPerCPU=$((MEM_MB / CPUS))

# requeue, failure, preemption
JobRequeue=1
ReturnToService=2
MessageTimeout=5
KillWait=$KILL_WAIT
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE

SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2

NodeName=n[1-$NODES] CPUs=$CPUS Boards=1 SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MEM_MB$gres
PartitionName=low  Nodes=n[1-$NODES] Default=YES PriorityTier=1  DefaultTime=10 MaxTime=INFINITE GraceTime=$GRACE_TIME
PartitionName=high Nodes=n[1-$NODES] Default=NO  PriorityTier=10 DefaultTime=10 MaxTime=INFINITE PreemptMode=OFF

# sixteen nodes of eight GPUs that are switched off, as in a cloud: for sbatch --test-only
NodeName=c[1-16] CPUs=128 Boards=1 SocketsPerBoard=1 CoresPerSocket=128 ThreadsPerCore=1 RealMemory=1000000 State=CLOUD${gres:+ Gres=gpu:8}
PartitionName=large Nodes=c[1-16] Default=NO MaxTime=INFINITE
SuspendProgram=/bin/true
ResumeProgram=/bin/true
SuspendTime=86400
SuspendExcNodes=n[1-$NODES]
CONF
}

private_files() {      # in a new mount namespace
  hostname "$1"
  sed "s/^127.0.0.1 localhost$/&\n127.0.1.1 $1/; s/^$NET\S* $1$//" "$CLUSTER_DIR/hosts" > "$RUN/$1.hosts"    # as Debian does
  mount --bind "$RUN/$1.hosts" /etc/hosts
  mount --bind "$CLUSTER_DIR/nsswitch.conf" /etc/nsswitch.conf
  mount -t tmpfs tmpfs /dev/shm
  ip link set lo up
}

daemon() { exec slurmd -D -N "$1" -f "$SLURM_CONF"; }
reap() { while :; do sleep 5 & wait $! || true; done; }     # what a PID 1 has to do

head_main() {          # PID 1 of the head
  private_files head
  ip link add br0 type bridge
  ip addr add "$NET.1/24" dev br0
  ip link set br0 up
  munged --foreground --force --socket="$RUN/munge.socket" --key-file="$CLUSTER_DIR/munge.key" \
    --pid-file="$RUN/munged.pid" --seed-file="$CLUSTER_DIR/munge.seed" > "$LOG/munged.log" 2>&1 &
  local munged=$! ctld
  until munge -n -S "$RUN/munge.socket" > /dev/null 2>&1; do kill -0 $munged || die "see $LOG/munged.log"; sleep 0.05; done
  slurmctld -D -f "$SLURM_CONF" > "$LOG/slurmctld.out" 2>&1 &
  ctld=$!
  # a clean end: slurmctld saves its state, then the end of PID 1 takes everything else along
  # shellcheck disable=SC2064
  trap "kill $ctld; for i in {1..30}; do kill -0 $ctld 2>/dev/null || break; sleep 0.1; done; exit 0" TERM INT
  for n in $(seq -f 'n%.0f' 1 "$NODES"); do boot "$n"; done
  : > "$RUN/booted"
  reap
}

boot() {               # on the head: a node's namespaces, its cable, and with it its slurmd
  local n=$1 init
  rm -f "$RUN/$n.cable"
  setsid unshare "${NS[@]}" --fork --kill-child=KILL --mount-proc bash "$SELF" __node "$n" > "$LOG/$n.out" 2>&1 < /dev/null &
  echo $! > "$RUN/$n.pid"            # in the head's numbering
  init=$(init_of $!)
  ip link del "v$n" 2> /dev/null || true
  ip link add "v$n" type veth peer name eth0 netns "$init"
  ip link set "v$n" master br0 up
  : > "$RUN/$n.cable"
}

node_main() {          # PID 1 of a node
  local n=$1
  private_files "$n"
  until [[ -e $RUN/$n.cable ]]; do sleep 0.02; done
  ip addr add "$(addr "$n")/24" dev eth0
  ip link set eth0 up
  mkdir -p "$CLUSTER_DIR/spool/$n"
  daemon "$n" &
  reap
}

wait_for() {           # until the nodes answer
  local nodes=$1 states deadline=$((SECONDS + 30))
  while ((SECONDS < deadline)); do
    states=$(timeout 5 "$SELF" exec sinfo -h -N -n "$nodes" -o %T 2> /dev/null | sort -u) || true
    [[ $states =~ ^(idle|mixed|allocated)$ ]] && return
    sleep 0.1
  done
  tail -n 3 "$LOG"/*.out >&2
  die "$nodes did not come up; see $LOG"
}

cmd=${1:-help}; shift || true
case $cmd in
  run)
    alive && die "already running, pid $(<"$RUN/head.pid")"
    rm -rf "$RUN"; write_conf
    echo $$ > "$RUN/head.pid"
    exec setpriv --pdeathsig=KILL unshare "${NS[@]}" --fork --kill-child=KILL --mount-proc bash "$SELF" __head ;;
  wait)
    for _ in {1..200}; do [[ -e $RUN/booted ]] && break; sleep 0.05; done
    [[ -e $RUN/booted ]] || die "the head did not boot; see $LOG"
    wait_for "n[1-$NODES]" ;;
  exec) on_head "$@" ;;
  on) on_head "$SELF" __on_node "$@" ;;
  crash) on_head "$SELF" __on_node "$1" bash -c 'kill -KILL -1' ;;
  revive) on_head "$SELF" __on_node "$1" setsid --fork "$SELF" __daemon "$1" > "$LOG/$1.out" 2>&1 ;;
  __on_node) n=$1; shift; nsenter -t "$(init_of "$(<"$RUN/$n.pid")")" "${NS[@]}" --wdns="$PWD" -- "$@" ;;
  __daemon) daemon "$1" ;;
  __head) head_main ;;
  __node) node_main "$1" ;;
  *) sed -n '2,10p' "$SELF"; exit 2 ;;
esac
