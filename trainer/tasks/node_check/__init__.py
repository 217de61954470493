"""What every node of a Slurm job looks at before the ranks are launched; slurm/common.sh calls it."""
