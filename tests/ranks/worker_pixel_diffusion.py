"""What the test of pixel diffusion runs on each of several ranks: worker_pixel_diffusion.py JOBS.json"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from data_pipelines.common.errors import SharedError
from tests.helpers.tiny_diffusion import context_of, digit_images, pixel_diffusion, tiny_unet
from trainer.distributed import collectives, launch
from trainer.evaluation import denoiser_features, inversion
from trainer.evaluation.pixel_diffusion import Images
from trainer.recipe.pixel_evaluation import DenoiserFeatures, Inversion


def main(file: Path) -> None:
    context = launch.start("float32")
    torch.set_num_threads(1)
    train, test = digit_images(120, 50)
    folder = file.parent / f"run-{context.world_size}"
    pixels = context_of(pixel_diffusion(tiny_unet(), train), folder, train, test, batch=25)
    features = DenoiserFeatures(layers=["mid", "up.0.1"], noise=[0.1, 0.3], images=60)
    inverted = Inversion(steps=4, images=20, train_images=60)  # test images are fewer batches than ranks
    figures = denoiser_features.measure(pixels, features) | inversion.measure(pixels, inverted)
    refused = []
    with torch.no_grad():
        pixels.objective.average.conv_out.bias.fill_(torch.nan)
    one = Images("train", train.pixels[:1], train.labels[:1])
    for diverged in (
        lambda: inversion.measure(pixels, inverted),
        lambda: denoiser_features.measure(replace(pixels, train=one), features),
        lambda: denoiser_features.measure(pixels, features.model_copy(update={"layers": ["up.7.0"]})),
    ):
        try:
            diverged()
        except SharedError as error:
            refused.append(str(error).partition(";")[0])
    ranks = collectives.run_on_all(lambda: [figures, refused])
    if context.is_main:
        file.with_name(f"results-{context.world_size}.json").write_text(json.dumps(ranks))
    launch.leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
