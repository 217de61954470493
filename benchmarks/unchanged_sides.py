"""A side of benchmarks/unchanged.sh: its commands and how one is ended; the pictures that both are given."""

import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

PATIENCE = 3600.0  # seconds that one command may take
CLASSES = 10
PER_BATCH = 400  # images of each of CIFAR-10's six files


class Side:
    """A commit's code and what its commands make.

    Its commands run in `tree`, the checkout, and name what lies beside it by the same relative paths as the
    other side's (`../runs`, `../data`), so that no path of a side gets into a file.
    """

    def __init__(self, name: str, folder: Path):
        self.name, self.folder, self.tree = name, folder, folder / "tree"
        self.seconds: dict[str, float] = {}

    def log(self, name: str) -> Path:
        path = self.folder / "logs" / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def start(self, name: str, words: list[str], **environment: str) -> subprocess.Popen:
        """Starts a command whose output goes to the log of that name."""
        own = {"PYTHONPATH": str(self.tree), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        with open(self.log(name), "w") as file:
            print("$", *words, file=file, flush=True)
            return subprocess.Popen(
                words,
                cwd=self.tree,
                env=os.environ | own | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def run(self, name: str, words: list[str], **environment: str) -> int:
        """Runs a command to its end and prints how long it took; its status."""
        began, process = time.monotonic(), self.start(name, words, **environment)
        try:
            status = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            end(process, signal.SIGKILL)
            status = -1
        self.took(name, time.monotonic() - began, f"status {status}" if status else "")
        return status

    def took(self, name: str, seconds: float, remark: str = "") -> None:
        self.seconds[name] = seconds
        print(f"{self.name:4} {name:56} {seconds:6.1f} s  {remark}".rstrip(), flush=True)

    def once(self, name: str, words: list[str], folder: Path, make: Callable[[], bool]) -> bool:
        """Makes `folder`, unless the same words made it in the same circumstances; whether it is there."""
        stamp = self.folder / "stamps" / f"{name}.json"
        text = json.dumps([words, circumstances()])
        if stamp.exists() and stamp.read_text() == text and folder.is_dir():
            print(f"{self.name:4} {name:56}   kept", flush=True)
            return True
        stamp.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        if made := make():
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.write_text(text)
        return made

    def tail(self, name: str) -> str:
        """The last line that a command has left, for a message."""
        lines = [line for line in self.log(name).read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error:")]
        return (errors or lines or ["no output"])[-1][:300]


def circumstances() -> list:
    """What else decides the bits of a run."""
    packages = ("torch", "numpy", "accelerate", "deepspeed", "nvidia-dali-cuda130")
    return [sys.version, os.environ["OMP_NUM_THREADS"], *map(version, packages)]


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """A process and all that descend from it."""
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


def end(process: subprocess.Popen, number: int) -> None:
    """Sends a signal to a launcher, SIGKILL to its ranks too, and waits until none of them is left."""
    members = family(process)
    for member in members if number == signal.SIGKILL else members[:1]:
        member.send_signal(number)
    process.wait(120)
    _, alive = psutil.wait_procs(members, 120)
    for member in alive:
        member.kill()


def own_modules(log: Path, tree: Path, repository: Path) -> tuple[list[str], list[str]]:
    """What a command with PYTHONVERBOSE imported: the tree's files, and files of our packages elsewhere."""
    files = re.findall(r"(?:matches|code object from) '?(/[^\s']+\.py)", log.read_text(errors="replace"))
    ours, foreign = set(), set()
    for path in map(Path, files):
        if path.is_relative_to(tree):
            ours.add(str(path.relative_to(tree)))
        elif "site-packages" not in path.parts and (
            path.is_relative_to(repository) or {"trainer", "data_pipelines"} & set(path.parts)
        ):
            foreign.add(str(path))
    return sorted(ours), sorted(foreign)


# ---- drawn pictures --------------------------------------------------------------------------------


def pictures(random: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Smooth random pictures, uint8 [count, size, size, 3]; each class a little redder than the last."""
    coarse = random.integers(0, 200, (count, 6, 6, 3), dtype=np.uint8)
    coarse[..., 0] += (np.arange(count) % CLASSES * 5).astype(np.uint8)[:, None, None]
    return np.stack([np.asarray(Image.fromarray(one).resize((size, size), Image.BICUBIC)) for one in coarse])


def draw(folder: Path) -> None:
    """Sources, always the same bytes: CIFAR-10's official layout, a folder of images, WebDataset tars."""
    shutil.rmtree(folder, ignore_errors=True)
    random = np.random.default_rng(20)
    draw_cifar(folder / "cifar-10-batches-py", random)
    draw_files(folder / "folder", random)
    draw_tars(folder / "tars", random)


def draw_cifar(folder: Path, random: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        rows = pictures(random, PER_BATCH, 32).transpose(0, 3, 1, 2).reshape(PER_BATCH, -1)
        labels = [number % CLASSES for number in range(PER_BATCH)]
        (folder / name).write_bytes(pickle.dumps({b"data": rows, b"labels": labels}, protocol=2))
    meta = {b"label_names": [b"class %d" % i for i in range(CLASSES)], b"num_cases_per_batch": PER_BATCH}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))


def draw_files(folder: Path, random: np.random.Generator) -> None:
    for number, pixels in enumerate(pictures(random, 120, 40)):
        kind = ("png", "jpg", "webp", "gif")[number % 4]
        path = folder / ("val" if number % 5 == 0 else "train") / f"class {number % 3}" / f"{number}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (folder / "train" / "class 0" / "empty.png").write_bytes(b"")
    (folder / "train" / "class 1" / "no image.jpg").write_bytes(b"text")


def draw_tars(folder: Path, random: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(folder / f"{shard:06d}.tar", "w") as tar:
            for number, pixels in enumerate(pictures(random, 60, 40)):
                encoded = io.BytesIO()
                Image.fromarray(pixels).save(encoded, "jpeg")
                for kind, content in (("jpg", encoded.getvalue()), ("cls", b"%d" % (number % 3))):
                    member = tarfile.TarInfo(f"{shard}_{number:05d}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
