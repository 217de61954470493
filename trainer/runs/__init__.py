"""A run as the outside sees it: its folder, its progress, its saves."""
