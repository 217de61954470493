"""Objectives: nn.Modules from a batch to named scalars. They know nothing of engines, ranks or trackers."""
