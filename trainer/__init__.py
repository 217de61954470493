"""Batches to trained encoders: objectives, networks, the loop and what it keeps."""
