#!/bin/bash
# An MLflow server for other jobs, on a node; it asks everybody for a password.
#
#   sbatch slurm/mlflow_server.sh                                      keeps all in outputs/mlflow_server
#   sbatch --time=7-00 --nodelist=NODE slurm/mlflow_server.sh FOLDER   on a node of that name, in another folder
#   STORE=postgresql://USER@HOST/NAME sbatch slurm/mlflow_server.sh    a database elsewhere; its password: ~/.pgpass
#
# It writes into the folder, which the nodes share:
#   address     http://NODE:PORT, for `tracking.uri=`; stays where the server has ended
#   password    of the user `admin`, made by the first start; readable by whoever owns the folder alone
# site.example.sh shows how jobs read both. Runs are kept there too: in PostgreSQL where its programs are on the node
# (initdb, postgres; POSTGRES_BIN names their folder), else in SQLite. A folder stays with what it began with.
#
# Settings, from the environment: STORE (postgresql, sqlite or an address), SERVER_PORT (default: that of the last
# start, or the first free one from 5000), MLFLOW_SERVER_ALLOWED_HOSTS (HOST:PORT,... by which clients call it, besides
# the node's names), MAX_RESTARTS (20). Before its time limit it is requeued, and after a loss of its node.
#SBATCH --job-name=mlflow_server
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=2-00:00:00
#SBATCH --signal=B:USR1@300             # 300..360 s before the limit
#SBATCH --requeue
#SBATCH --open-mode=append              # a requeued job keeps its log
#SBATCH --output=slurm-%x-%j.out        # in the root: into a folder that does not exist Slurm fails without a word
set -euo pipefail
trap 'STOP_REQUEST=USR1' USR1           # from the first instant
trap 'STOP_REQUEST=TERM' TERM           # scancel, preemption

# The repository is where --chdir leads, or where sbatch was called, or where this script lies.
script=$(scontrol show job "${SLURM_JOB_ID:?submit this script with sbatch}" | sed -n 's/^ *Command=//p')
for root in . "$SLURM_SUBMIT_DIR" "${script%%/slurm/mlflow_server.sh*}"; do
  [[ ! -f $root/slurm/common.sh ]] || break
done
cd "$root"
[[ -f slurm/common.sh ]] || { echo "error: no repository in $PWD: submit this script of a checkout" >&2; exit 2; }
# shellcheck source=slurm/common.sh
source slurm/common.sh
server='' database='' programs='' uri='' users='' kept='' sockets=''

# check_packages MODULE...: those that the environment lacks are a mistake.
check_packages() {
  local missing
  missing=$(inside python -c 'import importlib.util as u, sys
print(*(n for n in sys.argv[1:] if not u.find_spec(n)))' "$@")
  [[ -z $missing ]] || mistake "$(hostname) lacks: $missing; pip install -c constraints.txt -e '.[server]'"
}

# Waits for the lock of the folder, which lasts as long as any of the server's processes, on any node.
take_folder() {
  local said=''
  exec {lock}>> "$folder/lock"
  until flock --nonblock "$lock"; do
    ((${SLURM_RESTART_COUNT:-0} > 0)) ||
      mistake "$folder: job $(< "$folder/job") serves it already, at the address in it; scancel that one, or name" \
        "another folder"
    # Its slurmd died, or its processes are still ending.
    [[ -n $said ]] || say "an earlier start of this job still serves $folder, and is waited for"
    said=yes
    [[ -z ${STOP_REQUEST:-} ]] || end_as_asked
    sleep 2
  done
  echo "$SLURM_JOB_ID" > "$folder/job"
}

# Sets `programs`, the folder of PostgreSQL's; of the version that the data have, where there are any.
find_postgres() {
  local wanted='' each
  [[ ! -e $folder/postgres/PG_VERSION ]] || wanted=$(< "$folder/postgres/PG_VERSION")
  each=$(command -v postgres) || true
  for each in ${POSTGRES_BIN:-"${each%/*}" /usr/lib/postgresql/*/bin /usr/pgsql-*/bin}; do
    [[ -x $each/initdb && -x $each/postgres && -x $each/pg_isready ]] || continue
    [[ -z $wanted || $("$each/postgres" --version) =~ \ $wanted\. ]] || continue
    programs=$each
  done
  [[ -n $programs ]]
}

# Sets `uri`, where MLflow keeps runs, `users`, where it keeps who may see them, and `kept`, the same in words.
choose_store() {
  local store=${STORE:-}
  [[ -n $store || ! -e $folder/mlflow.db ]] || store=sqlite
  [[ -n $store || ! -e $folder/postgres ]] || store=postgresql
  if [[ -z $store ]]; then    # PostgreSQL refuses to be root, unless its programs change that
    store=sqlite
    [[ $(id -u) == 0 && -z ${POSTGRES_BIN:-} ]] || ! find_postgres || store=postgresql
  fi
  case $store in
    sqlite) kept=$folder/mlflow.db uri=sqlite:///$folder/mlflow.db users=sqlite:///$folder/users.db ;;
    postgresql)
      find_postgres || mistake "$(hostname) has no initdb, postgres and pg_isready for $folder: name their folder by" \
        "POSTGRES_BIN, or choose STORE=sqlite and a new folder"
      kept=$folder/postgres uri=postgresql+psycopg2://mlflow@/mlflow ;;
    postgresql*://*:*@* | postgresql*password=*)
      mistake "STORE: an address must hold no password, which a process list would show: write it to ~/.pgpass" ;;
    postgresql://* | postgresql+psycopg2://*) kept=$store uri=postgresql+psycopg2://${store#*://} ;;
    *) mistake "STORE=$store: expected postgresql, sqlite, or postgresql://USER@HOST/DATABASE" ;;
  esac
  users=${users:-$uri}
  [[ $uri == sqlite* ]] || check_packages psycopg2
}

# start_group COMMAND...: in the background, in a process group of its own, so that a signal reaches all of it.
start_group() {
  set -m
  "$@" &
  set +m
}

# end_group GROUP SIGNAL: by force after 20 s.
end_group() {
  local tries
  [[ -n $1 ]] || return 0
  kill "-$2" -- "-$1" 2> /dev/null || true
  for ((tries = 0; tries < 125; tries++)); do
    kill -0 -- "-$1" 2> /dev/null || return 0
    ((tries < 100)) || kill -KILL -- "-$1" 2> /dev/null || true
    sleep 0.2
  done
}

end_all() {
  end_group "$server" TERM
  end_group "$database" INT       # PostgreSQL's fast shutdown
  server='' database=''
  [[ -z $sockets ]] || rm -rf "$sockets"
}

# What becomes of the job when somebody or Slurm asks it to end.
end_as_asked() {
  end_all
  exec {lock}>&-
  if [[ $STOP_REQUEST == USR1 ]]; then
    trap - TERM
    requeue_unless_most "the server was stopped" || exit 1
  fi
  say "ended: $folder"
  exit 143
}

# It listens to a socket alone, in a folder that nobody else may enter; hence no password.
start_postgres() {
  local data=$folder/postgres
  sockets=$(mktemp -d)
  if [[ ! -e $data ]]; then     # whole or not at all
    rm -rf "$data.new"
    "$programs/initdb" --pgdata="$data.new" --username=mlflow --auth=trust --encoding=UTF8 --no-locale > /dev/null
    echo 'CREATE DATABASE mlflow' | "$programs/postgres" --single -D "$data.new" postgres > /dev/null
    mv "$data.new" "$data"
  fi
  rm -f "$data/postmaster.pid"      # of a node that was lost; by the lock no other runs
  start_group "$programs/postgres" -D "$data" -c listen_addresses= -k "$sockets"
  database=$!
  export PGHOST=$sockets
  until "$programs/pg_isready" --quiet --username=mlflow; do
    kill -0 "$database" 2> /dev/null || { say "PostgreSQL has ended: $data"; exit 1; }
    sleep 0.5
  done
}

# secret FILE: its text; makes a random one where there is none.
secret() {
  if [[ ! -s $1 ]]; then
    inside python -c 'import secrets; print(secrets.token_hex(24))' > "$1.new"
    mv "$1.new" "$1"
  fi
  cat "$1"
}

# Secrets go by the environment: no process list shows it.
start_server() {
  local name hosts="localhost:$port,127.0.0.1:$port"
  # shellcheck disable=SC2046
  for name in "$SLURMD_NODENAME" "$(hostname)" $(hostname -f 2> /dev/null) $(hostname -I 2> /dev/null); do
    hosts+=",$name:$port"
  done
  export MLFLOW_SERVER_ALLOWED_HOSTS=$hosts${MLFLOW_SERVER_ALLOWED_HOSTS:+,$MLFLOW_SERVER_ALLOWED_HOSTS}
  cat > "$folder/auth.ini" << INI
[mlflow]
default_permission = EDIT
database_uri = ${users//%/%%}
admin_username = admin
auth_cache_ttl_seconds = 300
INI
  export MLFLOW_AUTH_CONFIG_PATH=$folder/auth.ini MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY
  MLFLOW_AUTH_ADMIN_PASSWORD=$(secret "$folder/password")
  MLFLOW_FLASK_SERVER_SECRET_KEY=$(secret "$folder/key")
  export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
  start_group inside mlflow server --app-name=basic-auth --host=0.0.0.0 --port="$port" --workers=1 \
    --uvicorn-opts=--no-access-log --backend-store-uri="$uri" --serve-artifacts \
    --artifacts-destination="$folder/artifacts"
  server=$!
}

# Whether it answers, and its database: a user that is not there is looked for, and refused.
healthy() {
  inside python -c 'import sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen
address = f"http://localhost:{sys.argv[1]}/api/2.0/mlflow/experiments/search"
try:
    urlopen(Request(address, headers={"Authorization": "Basic aGVhbHRoOmNoZWNr"}), timeout=20)
except HTTPError as error:
    sys.exit(error.code != 401)
except OSError:
    pass
sys.exit(1)' "$port"
}

# Says when it stops answering, and when it answers again; returns when it has ended or is asked to.
watch() {
  local sleeper answers=yes
  while [[ -z ${STOP_REQUEST:-} ]] && kill -0 "$server" 2> /dev/null; do
    sleep 30 {lock}>&- &
    sleeper=$!
    wait -n "$server" "$sleeper" || true
    kill "$sleeper" 2> /dev/null || true
    [[ -z ${STOP_REQUEST:-} ]] || return 0
    if healthy; then
      [[ -n $answers ]] || say "answers again"
      answers=yes
    else
      [[ -z $answers ]] || say "does not answer, or its database does not"
      answers=''
    fi
  done
}

(($# <= 1)) || mistake "$2: expected a folder, and no other word"
check_job 1
check_packages mlflow flask_wtf
mkdir -p "${1:-outputs/mlflow_server}"
folder=$(realpath "${1:-outputs/mlflow_server}")
umask 077         # figures, password and key are their owner's
take_folder
trap end_all EXIT
choose_store
wanted=${SERVER_PORT:-$(sed -n 's/.*:\([0-9]*\)$/\1/p' "$folder/address" 2> /dev/null)} || true
port=$(free_port "${wanted:-5000}")
[[ -z ${SERVER_PORT:-} || $port == "$SERVER_PORT" ]] ||
  mistake "SERVER_PORT=$SERVER_PORT is taken on $(hostname): unset it, and a free one is chosen"
[[ -z $programs ]] || start_postgres
start_server
until healthy; do
  [[ -z ${STOP_REQUEST:-} ]] || end_as_asked
  kill -0 "$server" 2> /dev/null || { say "the server ended before it answered; its lines are above"; exit 1; }
  sleep 0.5
done
(umask 022; echo "http://$SLURMD_NODENAME:$port" > "$folder/address.new")
mv "$folder/address.new" "$folder/address"
say "serves at $(< "$folder/address"), from $kept; user admin, password in $folder/password"
watch
[[ -z ${STOP_REQUEST:-} ]] || end_as_asked
end_all
exec {lock}>&-
requeue_unless_most "the server has ended by itself"
exit 1
