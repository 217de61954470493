"""Encoders as single files, for others and from others."""
