# shellcheck shell=bash disable=SC2034
# What is particular to a cluster. Copy it to slurm/site.sh, which Git ignores, and keep the lines that apply there;
# SITE=FILE in the environment of sbatch names another. Every job reads it, in its first shell and on every node.

# ---- words of sbatch itself, which it reads where it is called: `source slurm/site.sh` in that shell too
# export SBATCH_ACCOUNT=project SBATCH_PARTITION=gpu

# ---- the environment that the package is installed in
# module load python/3.11
# source "$HOME/venvs/infomax/bin/activate"

# ---- or an image of it: how a command is run there. The checkout must be in it, under the same path
# inside() { apptainer exec --nv --bind "$PWD" "$HOME/infomax.sif" "$@"; }

# ---- packages from the node's disk: a rank opens 3,400 of their files as it starts. The tar is made once, and after an
# ---- upgrade: tar -C "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" -cf packages.tar .
# local_packages packages.tar "/scratch/$USER"

# ---- the network, where the route to the other nodes is not the fast one
# export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME==ib0 NCCL_IB_HCA=mlx5

# ---- a disk of the node, for shards of a web address and other files that may go
# export XDG_CACHE_HOME=/scratch/$USER/cache TMPDIR=/scratch/$USER

# ---- words for every run, before those of the command line
# SITE_WORDS=(tracking.uri=http://mlflow.example.org:5000)

# ---- or, of a server that is a job, slurm/mlflow_server.sh: its address, and a user of it
# mlflow=outputs/mlflow_server
# [[ ! -e $mlflow/address ]] || SITE_WORDS=(tracking.uri="$(< "$mlflow/address")")
# export MLFLOW_TRACKING_USERNAME=admin MLFLOW_TRACKING_PASSWORD="$(< "$mlflow/password")"
