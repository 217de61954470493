"""What surrounds the loop: other ranks, checkpoints, the journal and MLflow, signals."""
