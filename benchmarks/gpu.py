"""The rows of benchmarks/gpu.sh, each in a process of its own with a limit of time; see there.

python benchmarks/gpu.py [TASK ...] [--device cpu] [--sizes tiny] [--to FOLDER] [--minutes 9] [--list]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from trainer.distributed import launch

launch.set_environment()

import torch

from benchmarks.gpu_rows import Row, Rows, table
from data_pipelines.common.errors import UserError

NAMES = ("dim_local", "moco_cifar10", "hybrid_cifar10", "moco_imagenet")
LIMITS = {"attention": 30, "steps": 40, "resume": 70, "product": 20}  # seconds
LIMITS |= {f"{kind}/{name}": limit for name in NAMES for kind, limit in (("ours", 58), ("plain", 37))}
RESULT = "result: "  # begins the line of a task's process that holds its row
LEAST = 10  # seconds left, with which a task is still begun
SLOWER = {"cuda": 1, "cpu": 5}  # a trial's limits are longer: the machine may be shared


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="default: all, in their order")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sizes", choices=("full", "tiny"), default="full")
    parser.add_argument(
        "--to", type=Path, default=ROOT / "outputs" / "gpu", help="folder of rows and pictures"
    )
    parser.add_argument("--minutes", type=float, default=9, help="of this call; another goes on")
    parser.add_argument("--seconds", type=float, default=6, help="of each measurement of speed")
    parser.add_argument("--list", action="store_true", help="prints the tasks and their limits, in seconds")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.to = options.to.resolve()
    if options.list:
        print("\n".join(f"{task:24}{limit:4}" for task, limit in LIMITS.items()))
        return 0
    if unknown := [task for task in options.tasks if task not in LIMITS]:
        raise UserError(f"there is no task {unknown[0]}; expected {', '.join(LIMITS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no GPU here; with DEVICE=cpu SIZES=tiny the same runs on a CPU")
    if options.run:
        print(RESULT + json.dumps(figures(options)), flush=True)
        return 0
    return measure(options)


def measure(options: argparse.Namespace) -> int:
    """All tasks that have no row yet, while there is time; the status is 1 where one is missing or failed."""
    rows, end = Rows(options.to / "rows.jsonl", setting(options)), time.monotonic() + 60 * options.minutes
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a task's processes end with this one
    tasks = options.tasks or list(LIMITS)
    for task in tasks:
        left = end - time.monotonic()
        if rows.finished(task) or left < LEAST:
            continue
        began = time.monotonic()
        limit = min(left, LIMITS[task] * SLOWER[options.device])
        row = in_process(task, options, limit, rows.rows.get("product", {}).get("bf16_rate"))
        rows.add(task, row | {"seconds": time.monotonic() - began})
        print(
            f"{task}: {row.get('failed') or row.get('said') or 'measured'}, {time.monotonic() - began:.0f} s",
            file=sys.stderr,
        )
    where = "{name}, torch {torch}, {sizes} sizes, commit {commit}".format(**rows.setting)
    text = f"{where}\n\n" + table([rows.rows[task] for task in LIMITS if task in rows.rows])
    missing = [task for task in tasks if task not in rows.rows]
    if missing:
        text += f"\n\nNo time was left for {', '.join(missing)}: the same command goes on."
    (options.to / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return int(any(not rows.finished(task) or not rows.rows[task].get("passed", True) for task in tasks))


def setting(options: argparse.Namespace) -> Row:
    """What a row depends on beside its task; rows of another setting are left as they are."""
    cuda = options.device == "cuda"
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # a copy without history
        commit = "of no commit"
    name = torch.cuda.get_device_name() if cuda else f"CPU, {len(os.sched_getaffinity(0))} cores"
    return {"name": name, "sizes": options.sizes, "torch": torch.__version__, "commit": commit}


def in_process(task: str, options: argparse.Namespace, limit: float, peak: float | None) -> Row:
    """The row of a task, from a process that is killed with all that it started when its time is over."""
    own = ["--device", options.device, "--sizes", options.sizes, "--to", str(options.to)]
    own += ["--seconds", str(options.seconds), "--run", json.dumps({"task": task, "peak": peak})]
    process = subprocess.Popen(
        [sys.executable, __file__, *own],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"cut off after {limit:.0f} s"}
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    for line in said.splitlines():
        if line.startswith(RESULT):
            return json.loads(line.removeprefix(RESULT))
    (options.to / f"{task.replace('/', '_')}.log").write_text(said, encoding="utf-8")
    last = (said.strip().splitlines() or ["it said nothing"])[-1]
    return {"failed": f"status {process.returncode}: {last[:300]}"}


def figures(options: argparse.Namespace) -> Row:
    """The row of one task, in its own process."""
    from benchmarks import gpu_checks, gpu_recipes

    work = json.loads(options.run)
    if options.device == "cpu":  # also where there is a GPU
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    kind, _, name = work["task"].partition("/")
    pictures = options.to / "data"
    if kind == "resume":
        return gpu_checks.resume(options.sizes, pictures, options.to / f"runs_{os.getpid()}")
    context = launch.start("float32")
    if kind == "attention":
        return gpu_checks.attention(context.device, options.sizes)
    if kind == "steps":
        return gpu_checks.steps(context, options.sizes, pictures)
    if kind == "product":
        return gpu_recipes.product(context.device, options.sizes, options.seconds)
    opened = gpu_recipes.opened(name, [], pictures, options.sizes, context.device)
    step = gpu_recipes.ours if kind == "ours" else gpu_recipes.plain
    return step(name, opened, context, options.seconds, work["peak"])


if __name__ == "__main__":
    try:
        status = main()
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        status = 2
    launch.leave(status)
