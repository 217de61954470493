"""Versions of this package and of those it runs on, beside the tested ones."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator

from trainer.recipe import loading

PACKAGES = (
    *(
        "torch",
        "accelerate",
        "deepspeed",
        "nvidia-dali-cuda130",
        "nvidia-nvimgcodec-cu13",
        "webdataset",
        "mlflow",
    ),
    *(
        "pydantic",
        "numpy",
        "scipy",
        "scikit-learn",
        "safetensors",
        "pillow",
        "matplotlib",
        "pyyaml",
        "psutil",
    ),
    "tqdm",
)
IMPORTED = {"torch": "torch", "nvidia-dali-cuda130": "nvidia.dali", "deepspeed": "deepspeed"}


def versions(probed: dict[str, dict]) -> Iterator[str]:
    """This package, Python, and each package beside the version that constraints.txt names."""
    yield f"hybrid-infomax: {version('hybrid-infomax')}, {commit()}"
    yield f"python: {platform.python_version()} ({platform.python_implementation()})"
    tested, differing = tested_versions(), 0
    for name in PACKAGES:
        installed, facts = version(name), probed.get(IMPORTED.get(name, ""), {})
        parts = [installed]
        if name in tested and installed.partition("+")[0] != tested[name]:
            differing += 1
            parts.append(f"tested: {tested[name]}")
        parts += [f"{key} {value}" for key, value in facts.get("builds", {}).items()]
        if installed != "absent" and "error" in facts:
            parts.append(f"cannot be imported: {facts['error']}")
        yield f"{name}: {', '.join(parts)}"
    result = f"{differing or 'none'} of these differ from it" if tested else "absent, as outside a checkout"
    yield f"constraints.txt: {result}"


def version(name: str) -> str:
    """The version of an installed package, or "absent"."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def tested_versions() -> dict[str, str]:
    """Package -> version in the checkout's constraints.txt, for this Python; empty outside a checkout."""
    file = loading.CHECKOUT / "constraints.txt"
    if not file.is_file():
        return {}
    from packaging.requirements import Requirement

    lines = file.read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and line[0] != "#"]
    valid = [one for one in requirements if one.marker is None or one.marker.evaluate()]
    return {one.name: str(one.specifier).removeprefix("==") for one in valid}


def commit() -> str:
    """The git commit of this package's checkout, and whether it has changes."""
    folder = loading.CHECKOUT
    if not (folder / ".git").exists():
        return "installed, no git checkout"
    try:
        head = git("rev-parse", "--short=12", "HEAD")
        changes = git("status", "--porcelain", "--untracked-files=no").splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        return f"a checkout whose commit git does not say ({type(error).__name__})"
    many = f"{len(changes)} changed file{'s' * (len(changes) != 1)}"
    return f"commit {head} with {many if changes else 'no changes'}"


def git(*words: str) -> str:
    """The output of a git command in the checkout. Raises OSError or SubprocessError."""
    command = ["git", "-C", str(loading.CHECKOUT), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
