"""What the test of generated images runs on each of several ranks: worker_generation.py JOBS.json"""

import json
import sys
from pathlib import Path

import torch

from data_pipelines.common.errors import SharedError
from tests.helpers.tiny_dataset import pictures
from tests.helpers.tiny_extractors import Linear
from trainer.distributed import collectives, launch
from trainer.evaluation.feature_statistics import Reference
from trainer.evaluation.generation import Comparison, shared_extractor
from trainer.evaluation.image_sources import InMemory
from trainer.recipe.generation import Generation

SIDE = 8


class Broken(InMemory):
    """Its last images cannot be had: on several ranks one fails, which is not rank 0."""

    def images(self, start: int, n: int) -> torch.Tensor:
        if start + n == self.count:
            raise OSError("no more images")
        return super().images(start, n)


def drawn(n: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(pictures(n, SIDE, SIDE, seed)).permute(0, 3, 1, 2)


def main(file: Path) -> None:
    launch.start("float32")
    torch.set_num_threads(1)
    results = {}
    for job in json.loads(file.read_text()):
        options = Generation(samples=job["train"], batch=job["batch"])
        extractor = Linear(job["width"], SIDE)
        reference = Reference(InMemory("train", drawn(job["train"], 0)), {}, Path(job["cache"]))
        figures = []
        for _ in range(2):  # extracted, then read
            comparison = Comparison.against(reference, extractor, options, 0, lambda line: None)
            figures.append(comparison.row(InMemory("samples", drawn(job["samples"], 1))).figures)
        try:
            comparison.row(Broken("broken", drawn(job["samples"], 1)))
        except (OSError, SharedError) as error:
            refused = str(error)
        results[job["name"]] = collectives.run_on_all(lambda: [figures, refused])  # noqa: B023
    try:
        shared_extractor(Generation(extractor=str(file.with_name("no.pt"))), torch.device("cpu"))
    except SharedError as error:
        line = str(error)
        results["missing"] = collectives.run_on_all(lambda: line)
    if collectives.rank() == 0:
        file.with_name(f"results-{collectives.world_size()}.json").write_text(json.dumps(results))
    launch.leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
