"""Diffusion: what noise does to a sample, and the way back; latents of a frozen run as samples."""
