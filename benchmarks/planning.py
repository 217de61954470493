"""Time and memory to open a data set of 100,000,000 images, and to plan and look up its first batch.

    python benchmarks/planning.py

Two data sets of that size, 10,000 shards of 10,000 images and 100 of 1,000,000, are laid out as links to one
shard. Each is opened in a process of its own: `load_dataset`, `Reader`, `Plan`, a batch's ids and index rows.
Memory is what these add to the highest that importing took. Seconds are wall time; those of the processor
stand beside them, for a shared machine. The exit status is 1 where the bar is missed.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from drawn_pictures import links

from data_pipelines.dataset_loading import load_dataset
from data_pipelines.plan import Plan
from data_pipelines.reader import Reader

IMAGES, BATCH, SECONDS, MEGABYTES = 100_000_000, 4096, 5, 200


def main() -> int:
    print("| shards | images a shard | seconds | CPU seconds | MB |\n|---|---|---|---|---|")
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        for shards in (10_000, 100):
            root = Path(folder) / str(shards)
            links(root, shards, IMAGES // shards)
            child = subprocess.run(
                [sys.executable, __file__, root], capture_output=True, text=True, check=True
            )
            seconds, cpu, megabytes = json.loads(child.stdout)
            print(f"| {shards:,} | {IMAGES // shards:,} | {seconds:.2f} | {cpu:.2f} | {megabytes:.0f} |")
            missed |= seconds > SECONDS or megabytes > MEGABYTES
    print(f"\nbar: at most {SECONDS} s and {MEGABYTES} MB; {'MISSED' if missed else 'met'}")
    return int(missed)


def measure(root: str) -> list[float]:
    """Seconds, seconds of the processor, MB."""
    before, began, worked = highest_memory(), time.perf_counter(), time.process_time()
    reader = Reader(load_dataset(root), "train")
    plan = Plan(0, reader.shards, window=16)
    assert len(reader.entries(plan.ids(0, BATCH))) == BATCH
    return [time.perf_counter() - began, time.process_time() - worked, highest_memory() - before]


def highest_memory() -> float:
    """MB of memory that this process has held at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        sys.exit(main())
