"""A run holds at its end what it held after a fifth, and leaves nothing behind; by night, of 10,000 steps."""

import gc
import os
import shutil
import statistics
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from data_pipelines.dali import ImageViews
from data_pipelines.image_options import ImageOptions
from data_pipelines.loader import Loader
from data_pipelines.plan import BatchShare, Plan
from data_pipelines.reader import Reader
from data_pipelines.views import Normalize, View
from tests.helpers import ROOT
from tests.helpers.faults.tracked_runs import BATCH, PATIENCE, TINY, assert_delivered, progress

SHM = Path("/dev/shm")


@dataclass(frozen=True)
class Sample:
    """What the processes of a run hold at one moment, all of them together."""

    steps: int
    resident: int  # bytes
    counts: dict[str, int]


class Endurance:
    """A run in a process group of its own, with a folder of its own for temporary files, and its samples."""

    def __init__(self, folder: Path, data: Path, world: int, steps: int):
        self.folder, self.steps = folder / "outputs" / "run", steps
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.samples: list[Sample] = []
        self._pids: set[int] = set()
        self._shared: set[str] = set()  # names in /dev/shm that the processes were seen to hold
        launch = [sys.executable]
        if world > 1:
            launch += ["-m", "accelerate.commands.accelerate_cli", "launch", "--main_process_port", "0"]
            launch += ["--config_file", "recipes/launch/ddp.yaml", "--num_processes", str(world)]
        words = [
            f"outputs={folder / 'outputs'}",
            f"data.root={data}",
            "run=run",
            f"images={steps * BATCH}",
            f"log.every={20 * BATCH}",
            f"save.every={40 * BATCH}",  # hundreds are written and retired
            f"evaluate.every={steps // 10 * BATCH}",
            "evaluate.online_images=64",
            "evaluate.knn=20",
        ]
        self.output = folder / "output.txt"
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                [*launch, "trainer/main.py", "recipe=quickstart", *TINY, *words],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(self.temporary)},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def watch(self) -> None:
        """Takes samples until it has ended well."""
        deadline = time.monotonic() + 4 * PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.output.read_text()
            with suppress(psutil.NoSuchProcess):
                self.samples.append(self._sample())
            time.sleep(0.05)
        assert self.process.returncode == 0, self.output.read_text()

    def _sample(self) -> Sample:
        parent = psutil.Process(self.process.pid)
        processes = [parent, *parent.children(recursive=True)]
        self._pids |= {process.pid for process in processes}
        shared = {name for process in processes for name in shared_memory(process.pid)}
        self._shared |= shared
        counts = {
            "processes": len(processes),
            "threads": sum(process.num_threads() for process in processes),
            "files": sum(process.num_fds() for process in processes),
            "shared memory": len(shared),
            "temporary files": len(files_in(self.temporary)),
        }
        resident = sum(process.memory_info().rss for process in processes)
        return Sample(max(0, progress(self.folder)) // BATCH, resident, counts)

    def around(self, step: int) -> list[Sample]:
        """The samples from `step` on, for a tenth of the run."""
        samples = [s for s in self.samples if step <= s.steps < step + self.steps // 10]
        assert len(samples) >= 3
        return samples

    def left_behind(self) -> list[str]:
        """Processes, shared memory and temporary files that are still there."""
        group = [p.pid for p in psutil.process_iter() if in_group(p.pid, self.process.pid)]
        names = {str(pid) for pid in self._pids}
        shared = [n for n in os.listdir(SHM) if n in self._shared or names & set(n.split("_"))]
        hidden = [path for path in (self.folder / "checkpoints").iterdir() if path.name.startswith(".")]
        return [*map(str, group), *shared, *map(str, [*hidden, *files_in(self.temporary)])]


def files_in(folder: Path) -> list[Path]:
    """All of them. No folders: torch's cache has one, always the same, its launcher leaves empty ones."""
    return [path for path in folder.rglob("*") if not path.is_dir()]


def in_group(pid: int, group: int) -> bool:
    with suppress(ProcessLookupError):
        return os.getpgid(pid) == group
    return False


def shared_memory(pid: int) -> set[str]:
    """Names in /dev/shm that a process has mapped or open."""
    paths = set()
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            paths.add(line.partition("/")[2])
        for file in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):
                paths.add(os.readlink(f"/proc/{pid}/fd/{file}")[1:])
    return {name.removeprefix("dev/shm/").split(" ")[0] for name in paths if name.startswith("dev/shm/")}


def test_a_closed_loader_goes_at_once(digits):
    """Its DALI threads with it, not when Python next looks for circles: each evaluation has such loaders."""
    reader = Reader(digits, "test")
    images = ImageOptions(16, Normalize(), 1, torch.device("cpu"))
    plan = Plan(0, reader.shards, 64)
    gc.disable()
    try:
        loader = Loader(
            ImageViews(reader, images, [View()], [0], 0, 16), plan, BatchShare(16), start=0, stop=32
        )
        next(loader)
        loader.close()
        made = weakref.ref(loader.view_maker)
        del loader
        assert made() is None
    finally:
        gc.enable()
        reader.close()


@pytest.mark.parametrize(
    ("world", "steps"),
    [
        pytest.param(1, 2_500, marks=pytest.mark.slow),
        pytest.param(2, 1_500, marks=pytest.mark.slow),
        pytest.param(1, 10_000, marks=pytest.mark.night),
    ],
)
def test_nothing_grows_and_nothing_is_left_behind(tmp_path, digits, world, steps):
    run = Endurance(tmp_path, digits.root, world, steps)
    run.watch()
    early, late = run.around(steps // 5), run.around(steps - steps // 10)

    before, after = (statistics.median(s.resident for s in samples) for samples in (early, late))
    print(f"{world} x {steps}: {before / 2**20:.0f} MiB, then {after / 2**20:.0f}; {late[0].counts}")
    assert after <= 1.03 * before
    # What comes and goes (a checkpoint being written) is not counted: a leak raises what is always there.
    for what in early[0].counts:
        before, after = (min(s.counts[what] for s in samples) for samples in (early, late))
        assert after <= before, f"{what}: {before}, then {after}"

    assert run.left_behind() == []
    assert len(list((run.folder / "checkpoints").iterdir())) == 2
    uri = f"sqlite:///{run.folder.parent / 'mlflow.db'}"
    assert_delivered(uri, "hybrid-infomax", run.folder)
    shutil.rmtree(run.folder.parent)
