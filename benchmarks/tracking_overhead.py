"""What tracking costs a step: real runs with and without it, in turns, with MLflow healthy and with it away.

    python benchmarks/tracking_overhead.py [--pairs 5] [--with outage] [key=value ...]

Each round trains the same recipe without tracking (`tracking.uri=none`), into the SQLite file of its outputs,
into an MLflow server, and into one that is killed for the middle third of the run's steps and then started
again; every second round in the opposite order. A run is compared with that of its round without tracking.
Evaluation and saving are not counted on the clock (as `images_per_second` does not), nor, in either figure,
the first quarter, and what comes before MLflow has something: while the first steps are made it is imported,
once a run. Processor time is that of the training process, its delivering thread included.

Where there are several cores the first half trains and the others have the server, which in life runs
elsewhere; on one core the server's time is in the wall time too.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("sqlite", "server", "outage")
SKIP = 0.25  # of the run's images, which do not count
CORES = sorted(os.sched_getaffinity(0))
TRAINING = CORES[: max(1, len(CORES) // 2)]
SERVING = CORES[len(CORES) // 2 :]


@dataclass(frozen=True)
class Cost:
    """Of a step: milliseconds of the clock, and of the processor."""

    wall: float
    cpu: float


class Server:
    """An MLflow server with its store in `folder`, always at the same address."""

    def __init__(self, folder: Path):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.folder, self.uri, self.process = folder, f"http://127.0.0.1:{self.port}", None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with open(self.folder / "server.log", "ab") as log:
            self.process = on_cores(SERVING, command, log)

    def started(self) -> None:
        """Starts it if it is not there, and waits until it answers."""
        if not self.process:
            self.start()
        while not self.answers():
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=2).status == 200
        except OSError:
            return False

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def on_cores(cores: list[int], command: list[str], output) -> subprocess.Popen:
    """A command in a process group of its own on these cores, with a thread for each."""
    return subprocess.Popen(
        ["taskset", "-c", ",".join(map(str, cores)), *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(len(cores)), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def train(kind: str, folder: Path, server: Server, words: list[str]) -> Cost:
    """One run; the cost of its steps but the first quarter's."""
    uri = {"none": "none", "sqlite": None}.get(kind, server.uri)
    places = [f"outputs={folder}", f"run={kind}", f"data.root={folder.parent / 'digits'}"]
    places += [f"tracking.uri={uri}"] if uri else []
    command = [sys.executable, "trainer/main.py", "recipe=quickstart", "evaluate.every=0"]
    command += ["evaluate.at_end=false", *words, *places]
    folder.mkdir(parents=True, exist_ok=True)
    if kind in ("server", "outage"):
        server.started()
    with open(folder / f"{kind}.txt", "wb") as output:
        process = on_cores(TRAINING, command, output)
    run = folder / kind
    total, batch = recipe_numbers(command, "images", "batch")
    cpu = from_images = to_images = 0
    while process.poll() is None:
        seen = progress(run)
        begun = kind == "none" or (run / "delivered.json").exists()
        if seen >= SKIP * total and begun and not from_images:
            from_images, began = seen, processor_time(process.pid)
        if from_images and seen < total:
            to_images, cpu = seen, processor_time(process.pid) - began
        if kind == "outage" and server.process and total / 3 <= seen < total * 2 / 3:
            server.kill()
        if kind == "outage" and not server.process and seen >= total * 2 / 3:
            server.start()
        time.sleep(0.1)
    if process.returncode:
        sys.exit((folder / f"{kind}.txt").read_text())
    if to_images <= from_images:
        sys.exit(f"{total} images were over before anything could be measured; give more: images=...")
    return Cost(wall(run, from_images) * batch, cpu / (to_images - from_images) * batch * 1e3)


def recipe_numbers(command: list[str], *keys: str) -> list[int]:
    """Numbers of the recipe that a command runs."""
    import yaml

    text = subprocess.run([*command, "--print"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    recipe = yaml.safe_load(text)
    return [recipe[key] for key in keys]


def processor_time(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def records(run: Path) -> list[dict]:
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def progress(run: Path) -> int:
    return records(run)[-1]["images"] if (run / "journal.jsonl").exists() else 0


def wall(run: Path, start: int) -> float:
    """Milliseconds an image since `start` images, from the journal's images a second."""
    seconds = images = before = 0
    for record in records(run):
        if record["name"] == "images_per_second":
            if before >= start:
                seconds += (record["images"] - before) / record["value"]
                images += record["images"] - before
            before = record["images"]
    return seconds / images * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--with", dest="kinds", action="append", choices=KINDS, help="again for several")
    options, words = parser.parse_known_args()
    kinds = options.kinds or KINDS
    names = ["none", *kinds]
    os.sched_setaffinity(0, SERVING)
    print(f"training on cores {TRAINING}, the server on {SERVING}; {' '.join(words) or 'quickstart'}\n")
    print("| pair | tracking | ms a step | ratio | CPU ms a step | ratio |\n|---|---|---:|---:|---:|---:|")
    ratios = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as name:
        server = Server(Path(name))
        try:
            for pair in range(1, options.pairs + 1):
                turn = names if pair % 2 else names[::-1]
                cost = {kind: train(kind, Path(name) / str(pair), server, words) for kind in turn}
                plain = cost["none"]
                for kind in names:
                    wall, cpu = cost[kind].wall / plain.wall, cost[kind].cpu / plain.cpu
                    shown = (f"{cost[kind].wall:.2f}", f"{wall:.3f}", f"{cost[kind].cpu:.2f}", f"{cpu:.3f}")
                    print(f"| {pair} | {kind} | {' | '.join(shown)} |", flush=True)
                    if kind != "none":
                        ratios[kind].append((wall, cpu))
        finally:
            server.kill()
    print("\nmedian of the ratios (bar: at most 1.03)")
    for kind, pairs in ratios.items():
        wall, cpu = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(f"{kind}: {wall:.3f} of the clock, {cpu:.3f} of the processor")


if __name__ == "__main__":
    main()
