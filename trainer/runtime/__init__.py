"""Old doors: commands that lie elsewhere now, and answer here in this version."""
