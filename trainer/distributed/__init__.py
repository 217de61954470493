"""Processes and ranks: launch, collectives, signals, the watchdog."""
