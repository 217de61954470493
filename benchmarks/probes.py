"""All probe heads on cached features, 50,000 x 4,096 and 10,000 to test: how long each takes, and the total.

python benchmarks/probes.py                                                                        one process
accelerate launch --config_file recipes/launch/ddp.yaml --num_processes 2 benchmarks/probes.py         two

The features are drawn: ten classes, each a cloud around its centre along 256 directions of unequal
size, seen through a random matrix and a ReLU. Every process makes its rows and writes them to a file that all
of them map, as an evaluation's cache is.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from trainer.distributed import launch

launch.set_environment()

import torch

from trainer.distributed import collectives
from trainer.evaluation.features import Examples
from trainer.evaluation.suite import Job, assign_jobs, jobs, run_all
from trainer.recipe.evaluation import Evaluate, SgdProbe, SvmProbe

CLASSES, HIDDEN, BLOCK = 10, 256, 1000


def draw(images: int, width: int, first: int, to: Path | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    """`images` features [images, width] and labels, mapped from `to`, which rank 0 writes."""
    scene = torch.Generator().manual_seed(0)
    spread = torch.arange(1, HIDDEN + 1) ** -0.5
    centres = 0.15 * torch.randn(CLASSES, HIDDEN, generator=scene) * spread
    mix = torch.randn(HIDDEN, width, generator=scene)
    labels = torch.arange(images) % CLASSES

    def write() -> None:
        with open(to, "wb") as file:
            for start in range(0, images, BLOCK):
                draws = torch.Generator().manual_seed(first + start)
                cloud = torch.randn(min(BLOCK, images - start), HIDDEN, generator=draws) * spread
                rows = (centres[labels[start : start + BLOCK]] + cloud) @ mix
                file.write((rows + 0.1 * torch.randn(rows.shape, generator=draws)).relu().numpy().data)

    collectives.run_on_main(write)
    size = images * width
    return torch.from_file(str(to), size=size, dtype=torch.float32).view(images, width), labels


def timed(job: Job, rank: int, lines: list[str]) -> Job:
    """The job, which also notes what it took."""

    def run() -> dict[str, float]:
        wall, used = time.perf_counter(), time.thread_time()
        figures = job.run()
        wall, used = time.perf_counter() - wall, time.thread_time() - used
        lines.append(f"{job.name:<12} rank {rank}  {wall:7.1f} s wall  {used:7.1f} s CPU")
        return figures

    return replace(job, run=run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--train", type=int, default=50_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=4096)
    options = parser.parse_args()
    context = launch.start("float32")
    Path("outputs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="outputs", prefix="probes-") as made:
        folder = Path(collectives.broadcast_object(made))
        sets = []
        for number, (images, first) in enumerate(((options.train, 0), (options.test, 10**6))):
            rows, labels = draw(images, options.width, first, folder / str(number))
            sets.append(Examples({"y": rows}, labels, None))
        collectives.barrier()
        began, cpu = time.perf_counter(), time.process_time()
        everything = Evaluate(linear_sgd=SgdProbe(), svm=SvmProbe())
        work = jobs(*sets, CLASSES, everything, 0, context.device)
        lines: list[str] = []
        jobs_of_rank = [
            timed(job, context.rank, lines) for job in assign_jobs(work, context.world_size)[context.rank]
        ]
        figures = run_all(jobs_of_rank, everything.threads, context.device)
        parts = collectives.run_on_all(lambda: (lines, figures, time.process_time() - cpu))
        wall = time.perf_counter() - began
        if context.is_main:
            for lines, _, _ in parts:
                print("\n".join(lines))
            used = sum(seconds for _, _, seconds in parts)
            print(
                f"all          {context.world_size} x {context.threads} threads  "
                f"{wall:.1f} s wall  {used:.1f} s CPU"
            )
            for name, value in sorted(
                pair for _, part, _ in parts for job in part.values() for pair in job.items()
            ):
                print(f"{name:<24} {value:.4f}")
    launch.leave(0)


if __name__ == "__main__":
    main()
