"""Runs steps in a process that believes in a CUDA device: builds `device.cpp` and loads it before torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch.utils import cpp_extension

from tests.helpers import ROOT

TORCH = "2.13."  # of whose headers the hooks of device.cpp are


def build(folder: Path) -> Path:
    """The shared library of `device.cpp`, made with g++."""
    library = folder / "device.so"
    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    source = str(Path(__file__).with_name("device.cpp"))
    made = ["g++", "-std=c++20", "-shared", "-fPIC", "-O0", source, "-o", str(library), *includes]
    subprocess.run([*made, f"-L{torch_libraries()}", "-lc10"], check=True)
    return library


def torch_libraries() -> Path:
    return Path(torch.__file__).parent / "lib"


def steps(recipes: list[str], folder: Path) -> dict[str, dict]:
    """What a step of each recipe does, `steps.step`, by recipe; the library is built in `folder`."""
    environment = os.environ | {
        "LD_PRELOAD": str(build(folder)),  # alone: with torch's own before it, its hooks come too late
        "LD_LIBRARY_PATH": str(torch_libraries()),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.cuda.steps", *recipes]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return {measured["recipe"]: measured for measured in map(json.loads, done.stdout.splitlines())}
