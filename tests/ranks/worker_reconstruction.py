"""What the test of reconstructions runs on each of several ranks: worker_reconstruction.py JOBS.json"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from data_pipelines.common.errors import SharedError
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.image_options import ImageOptions
from data_pipelines.reader import Reader
from data_pipelines.views import Normalize
from trainer.distributed import collectives, launch
from trainer.evaluation.features import Sample
from trainer.evaluation.reconstruction import measure, reconstruction_scores
from trainer.networks.nvae import NvaeEncoder
from trainer.objectives.autoencoder import Autoencoder
from trainer.recipe.encoders import Nvae
from trainer.recipe.evaluation import Evaluate


def main(file: Path) -> None:
    (job,) = json.loads(file.read_text())
    context = launch.start("float32")
    torch.set_num_threads(1)
    dataset = load_dataset(job["data"])
    readers = Reader(dataset, "train"), Reader(dataset, "test")
    torch.manual_seed(0)
    options = Nvae(kind="nvae", width=8, halvings=1, tower=1, decoder_tower=1, expansion=2, latent=2)
    encoder = NvaeEncoder(**options.model_dump(exclude={"kind"}), size=8, group=32)
    codec = Autoencoder(encoder, Normalize()).double().eval().codec
    images = ImageOptions(8, Normalize(), 1, context.device, torch.float64)
    figures, linear = measure(codec, *readers, images, Evaluate(batch=100), 0, lambda line: None)
    few = Sample(readers[1], np.arange(2), images, 100)  # fewer images than ranks
    (errors,) = reconstruction_scores(lambda view: linear(codec.pixels(view)), codec, few).tolist()
    try:
        diverged = torch.nan if context.is_main else 1.0
        reconstruction_scores(lambda view: codec.pixels(view) * diverged, codec, few)
    except SharedError as error:
        refused = str(error)
    ranks = collectives.run_on_all(lambda: [figures, errors, refused])
    if context.is_main:
        file.with_name(f"results-{context.world_size}.json").write_text(json.dumps(ranks))
    launch.leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
