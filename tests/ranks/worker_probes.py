"""What the test of probes on several ranks runs on each of them: worker_probes.py JOBS.json"""

import json
import sys
from pathlib import Path

import torch

from data_pipelines.dataset_loading import load_dataset
from data_pipelines.image_options import ImageOptions
from data_pipelines.reader import Reader
from data_pipelines.views import Normalize
from trainer.distributed import collectives, launch
from trainer.evaluation.features import cached, gathered, labelled_ids
from trainer.evaluation.suite import measure_probes
from trainer.recipe.evaluation import Evaluate, FewShot


def encode(view: torch.Tensor) -> dict[str, torch.Tensor]:
    flat = view.flatten(1)
    return {"conv": flat, "y": flat[:, ::5].relu()}


def main(file: Path) -> None:
    (job,) = json.loads(file.read_text())
    context = launch.start("float32")
    torch.set_num_threads(2 // context.world_size)  # that many jobs at a time, each on one thread
    dataset = load_dataset(job["data"])
    readers = Reader(dataset, "train"), Reader(dataset, "test")
    images = ImageOptions(8, Normalize(), 1, context.device)
    folder = file.parent / f"features-{context.world_size}"
    splits = [(reader, labelled_ids(reader)) for reader in readers]
    with cached(folder, encode, splits, images, 100) as sets:
        figures, _ = measure_probes(*sets, 10, Evaluate.model_validate(job["evaluate"]), 0, context.device)
        sums = [rows.double().sum().item() for examples in sets for rows in examples.features.values()]
        impossible = Evaluate(linear=None, mlp=None, few_shot=FewShot(shots=1000))
        (refused,) = measure_probes(*sets, 10, impossible, 0, context.device)[1].values()
    features = gathered(encode, readers[1], splits[1][1][:1], images, 100)  # fewer images than ranks
    rows = features[0]["conv"].tolist() if features else None
    ranks = collectives.run_on_all(lambda: [figures, sums, refused, folder.exists()])
    if context.is_main:
        results = {"ranks": ranks, "rows": rows}
        file.with_name(f"results-{context.world_size}.json").write_text(json.dumps(results))
    launch.leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
