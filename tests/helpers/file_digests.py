"""Digests of a folder's files: two folders with the same digests hold the same bytes."""

import hashlib
from pathlib import Path


def digests(root: Path) -> dict[str, str]:
    """sha256 of every file but the lock, by its path below `root`."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
