"""Engines that run an objective and its optimizer on the ranks: DDP, DeepSpeed ZeRO, FSDP2."""
