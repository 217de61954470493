"""What the test of pixel diffusion runs on each of several ranks: worker_pixel_diffusion.py JOBS.json"""

import json
import sys
from pathlib import Path

import torch

from data_pipelines.common.errors import SharedError
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.reader import Reader
from tests.helpers.tiny_diffusion import context_of, pixel_diffusion, tiny_unet
from trainer.distributed import collectives, launch
from trainer.evaluation import denoiser_features, inversion
from trainer.recipe.pixel_evaluation import DenoiserFeatures, Inversion


def main(file: Path) -> None:
    (job,) = json.loads(file.read_text())
    context = launch.start("float32")
    torch.set_num_threads(1)
    dataset, folder = load_dataset(job["data"]), file.parent / f"run-{context.world_size}"
    train, test = Reader(dataset, "train"), Reader(dataset, "test")
    pixels = context_of(pixel_diffusion(tiny_unet()), folder, train, test, batch=50)
    features = DenoiserFeatures(layers=["mid", "up.0.1"], noise=[0.1, 0.3], images=200)
    inverted = Inversion(steps=4, images=20, train_images=100)  # test images are one batch: ranks without any
    figures = denoiser_features.measure(pixels, features) | inversion.measure(pixels, inverted)
    refused = []
    with torch.no_grad():
        pixels.objective.average.conv_out.bias.fill_(torch.nan)
    for mistake in (
        lambda: inversion.measure(pixels, inverted),
        lambda: denoiser_features.measure(pixels, features.model_copy(update={"layers": ["up.7.0"]})),
    ):
        try:
            mistake()
        except SharedError as error:
            refused.append(str(error).partition(";")[0])
    ranks = collectives.run_on_all(lambda: [figures, refused])
    if context.is_main:
        file.with_name(f"results-{context.world_size}.json").write_text(json.dumps(ranks))
    launch.leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
