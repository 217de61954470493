"""Checkpoints: saved by all ranks, loaded on any number of them. Command: python -m trainer.checkpoints."""
