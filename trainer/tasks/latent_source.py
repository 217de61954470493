"""The run whose latents are drawn: its checkpoint, its data, its latents, and its way back to pixels."""

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_pipelines.common.errors import UserError
from data_pipelines.dataset import Dataset
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.image_options import ImageOptions
from data_pipelines.reader import Reader
from data_pipelines.rows import Joined, Table
from data_pipelines.views import Normalize
from trainer.checkpoints.load import Checkpoint, kept
from trainer.distributed import collectives
from trainer.evaluation.features import write_features
from trainer.generation.latents import (
    FOLDER,
    NAMED,
    PARTS,
    RECORD,
    Latents,
    digest_of,
    open_latents,
    stored_bytes,
)
from trainer.objectives.codec import Codec
from trainer.objectives.denoiser import Diffusion, PooledDiffusion
from trainer.objectives.drawing import Artist, Decode
from trainer.objectives.objective import Objective
from trainer.recipe.diffusion import Diffuse
from trainer.recipe.schema import Pretrain
from trainer.runs.folder import RunFolder
from trainer.tasks.data_making import make_missing
from trainer.tasks.saved_run import choose, encoder_recipe, load_weights
from trainer.training.build import build_objective
from trainer.training.data import image_options

BATCH = 256  # images that are encoded together


@dataclass(frozen=True)
class Place:
    """The folder of the run whose latents are drawn, and words for a message about it.

    `key`: of the recipe, which names the folder. `otherwise`: what helps beside naming another folder.
    """

    folder: RunFolder
    key: str
    otherwise: str


@dataclass(frozen=True)
class LatentSource:
    """A frozen run with a decoder, and the data set that it was trained on.

    `mirrored`: whether the latents of mirror images are samples too.
    """

    folder: RunFolder
    recipe: Pretrain
    checkpoint: Checkpoint
    dataset: Dataset
    mirrored: bool

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of y and w."""
        return latent_shapes(self.recipe)

    @cached_property
    def digest(self) -> str:
        """Of all that the latents are a function of."""
        return digest_of(self._key())

    @property
    def missing_bytes(self) -> int:
        """What of the latents must be written; 0 where they are there."""
        if (self.folder.path / FOLDER / self.digest[:NAMED] / RECORD).exists():
            return 0
        return stored_bytes(self.shapes, self.dataset.split(self.recipe.data.train).images)

    def _key(self) -> dict[str, str | int]:
        return {
            "checkpoint": self.checkpoint.manifest["digest"],
            "data": self.dataset.fingerprint,
            "split": self.recipe.data.train,
            "size": self.recipe.data.size,
        }

    def codec(self, device: torch.device, dtype: torch.dtype | None = None) -> Codec:
        """Images to latents and back, in evaluation mode; `dtype` None: as its run computes."""
        objective = load_weights(build_objective(self.recipe), self.checkpoint)
        codec = objective.to(device, dtype).eval().requires_grad_(False).codec
        assert codec is not None  # `open_source` has looked
        return codec

    def images(self, device: torch.device) -> ImageOptions:
        """How its images are decoded to be encoded."""
        return replace(image_options(self.recipe, device), decode="exact")

    def latents(self, device: torch.device) -> Latents:
        """Those of all training images and their mirror images; collective, encoded where they are not."""
        codec, images = self.codec(device), self.images(device)

        def encode(views: Tensor) -> dict[str, Tensor]:
            return dict(zip(PARTS, (*codec.encode(views), *codec.encode(views.flip(-1))), strict=True))

        with Reader(self.dataset, self.recipe.data.train) as reader:
            ids = np.arange(reader.images)
            return open_latents(
                *(self.folder.path, self._key(), self.shapes, reader.images, self.mirrored),
                write=lambda to: write_features(to, encode, reader, ids, images, BATCH, whole_batches=True),
            )


def open_source(
    recipe: Diffuse, commands: bool, trained_on: str | None, place: Place | None = None
) -> LatentSource:
    """The run of `from`; collective. Its data set is made where it is missing.

    Args:
        trained_on: digest of the latents that the denoiser was trained on, which one of the run's checkpoints
            makes; None: of a new denoiser.
        place: where the run lies now; None: where the recipe says.

    Raises:
        UserError: it is no run, has no decoder, or no such checkpoint.
        Stopped: a signal came while the data set was made.
    """
    if place is None:
        assert recipe.from_ is not None  # the recipe is one of latents
        place = Place(RunFolder(Path(recipe.from_)), "from", "start another with run=NAME")
    folder = place.folder

    def opened() -> LatentSource:
        access = encoder.data.access(commands)
        dataset = load_dataset(encoder.data.root, encoder.data.source, access)
        checkpoint = choose(folder, recipe.checkpoint, "checkpoint")
        source = LatentSource(folder, encoder, checkpoint, dataset, recipe.mirrored)
        if trained_on is None or source.digest == trained_on:
            return source
        for images in kept(folder.checkpoints):  # the encoder's run may have gone on
            with suppress(UserError):
                earlier = replace(source, checkpoint=choose(folder, images, "checkpoint"))
                if earlier.digest == trained_on:
                    return earlier
        raise UserError(
            f"{place.key}={folder.path}: the denoiser was trained on the latents of another run, of other "
            f"images or of a checkpoint that is gone; give the folder of that run, or {place.otherwise}"
        )

    encoder = collectives.run_on_main(lambda: decoding_recipe(folder, place.key))
    make_missing(encoder.data)
    return collectives.run_on_main(opened)


def decoding_recipe(folder: RunFolder, key: str = "from") -> Pretrain:
    """The recipe of a run with a decoder, whose folder `key` names.

    Raises:
        UserError: it has none, or there is no run.
    """
    recipe = encoder_recipe(folder, key)
    check_decodes(recipe, folder, key)
    return recipe


def check_decodes(recipe: Pretrain, folder: RunFolder, key: str = "from") -> None:
    """Raises UserError: the recipe of the run in a folder has no decoder."""
    if not recipe.objective.reconstructs:
        raise UserError(
            f"{key}={folder.path}: objective.kind={recipe.objective.kind} has no decoder, so latents drawn "
            "of it cannot become images; give a run of a hybrid or an autoencoder"
        )


def latent_shapes(recipe: Pretrain) -> dict[str, tuple[int, ...]]:
    """Of y and w of a run with a decoder: [d] of a vector, [C, H, W] of a map."""
    with torch.device("meta"):
        encoder = build_objective(recipe).encoder
    return {name: encoder.maps.get(name, (encoder.widths[name],)) for name in ("y", "w")}


def tables_of(latents: Latents, shapes: dict[str, tuple[int, ...]]) -> dict[str, Table]:
    """The tables of what is drawn, by name: y and w, or z."""
    if "z" in shapes:
        return {"z": Joined([latents.tables["y"], latents.tables["w"]])}
    return {name: latents.tables[name] for name in shapes}


def decoding(codec: Codec, shapes: dict[str, tuple[int, ...]], latent: dict[str, tuple[int, ...]]) -> Decode:
    """From samples of y and w, or of z, to pixels."""

    def decode(samples: dict[str, Tensor]) -> Tensor:
        if "z" in shapes:
            y, w = samples["z"].split([latent["y"][0], latent["w"][0]], 1)
        else:
            y, w = samples["y"], samples["w"]
        return codec.decode(y.flatten(1), w.flatten(1))

    return decode


def denormalised(normalize: Normalize) -> Decode:
    """From samples of normalised images to pixels."""

    def decode(samples: dict[str, Tensor]) -> Tensor:
        x = samples["x"]
        mean, std = (x.new_tensor(values)[:, None, None] for values in (normalize.mean, normalize.std))
        return x * std + mean

    return decode


def artist_of(
    recipe: Diffuse,
    objective: Objective,
    shapes: dict[str, tuple[int, ...]],
    source: LatentSource | None,
    device: torch.device,
) -> Artist:
    """Draws samples of a diffusion run; `source` is that of its latents, None where samples are images."""
    assert isinstance(objective, Diffusion | PooledDiffusion)  # `build_diffusion` builds no other
    if source is not None:
        dtype = next(objective.parameters()).dtype
        decode = decoding(source.codec(device, dtype), shapes, source.shapes)
    else:
        assert recipe.data is not None  # either of the two is there
        decode = denormalised(recipe.data.normalize)
    bf16 = recipe.precision == "bf16"
    return Artist(objective, shapes, decode, recipe.draw, recipe.seed, bf16)
