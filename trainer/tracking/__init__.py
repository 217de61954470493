"""The journal of a run, and its delivery to MLflow. Command: python -m trainer.tracking."""
