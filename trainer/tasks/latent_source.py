"""The run whose latents are drawn: its checkpoint, its data, its latents, and its way back to pixels."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_pipelines.common.errors import UserError
from data_pipelines.common.files import cannot_write
from data_pipelines.dataset import Dataset
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.image_options import ImageOptions
from data_pipelines.reader import Reader
from data_pipelines.rows import Joined, Table
from data_pipelines.views import Normalize
from trainer.checkpoints.copies import copy, is_copied
from trainer.checkpoints.load import Checkpoint
from trainer.distributed import collectives
from trainer.evaluation.features import write_features
from trainer.generation.latents import (
    PARTS,
    PLACE,
    RECORD,
    Latents,
    codec_folder,
    digest_of,
    latents_folder,
    one_run_at_a_time,
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
from trainer.tasks.latent_makers import Place, checkpoint_of, key_of
from trainer.tasks.saved_run import choose, encoder_recipe, load_weights
from trainer.training.build import build_objective
from trainer.training.data import image_options

BATCH = 256  # images that are encoded together


@dataclass(frozen=True)
class CodecSource:
    """A frozen run with a decoder: all that images are made with."""

    folder: RunFolder
    recipe: Pretrain
    checkpoint: Checkpoint

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of y and w."""
        return latent_shapes(self.recipe)

    def codec(self, device: torch.device, dtype: torch.dtype | None = None) -> Codec:
        """Images to latents and back, in evaluation mode; `dtype` None: as its run computes."""
        objective = load_weights(build_objective(self.recipe), self.checkpoint)
        codec = objective.to(device, dtype).eval().requires_grad_(False).codec
        assert codec is not None  # `decoding_recipe` has looked
        return codec

    @property
    def unfinished(self) -> list[str]:
        """A line where the run is not done: latents of a later checkpoint would be others."""
        if (self.folder.path / "done").exists():
            return []
        return [
            f"from={self.folder.path}: that run is not done; the latents are those of its checkpoint after "
            f"{self.checkpoint.images:,} of {self.recipe.images:,} images, which is kept beside them"
        ]


@dataclass(frozen=True)
class LatentSource(CodecSource):
    """A frozen run with a decoder, and the data set that it was trained on.

    `mirrored`: whether the latents of mirror images are samples too.
    """

    dataset: Dataset
    mirrored: bool

    @cached_property
    def digest(self) -> str:
        """Of all that the latents are a function of."""
        return digest_of(self._key())

    @property
    def missing_bytes(self) -> int:
        """What of the latents must be written; 0 where they are there."""
        if (latents_folder(self.folder.path, self.digest) / RECORD).exists():
            return 0
        return stored_bytes(self.shapes, self.dataset.split(self.recipe.data.train).images)

    def _key(self) -> dict[str, str | int]:
        return key_of(self.recipe, self.checkpoint.manifest, self.dataset.fingerprint)

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

    def kept(self) -> "LatentSource":
        """The same with the checkpoint kept beside the latents, since its run may prune its own; collective.

        Raises:
            SharedError: on every rank, where one cannot write there.
        """
        folder = codec_folder(self.folder.path, self.digest)

        def keep() -> None:
            try:
                if not is_copied(self.checkpoint, folder):  # another has kept it meanwhile
                    copy(self.checkpoint, folder)
            except OSError as error:
                raise cannot_write(folder, error, PLACE) from None

        if not collectives.run_on_main(lambda: is_copied(self.checkpoint, folder)):
            with one_run_at_a_time(latents_folder(self.folder.path, self.digest)):
                collectives.run_on_main(keep)
        path = folder / self.checkpoint.path.name
        return replace(self, checkpoint=replace(self.checkpoint, path=path))


def open_source(
    recipe: Diffuse, commands: bool, trained_on: str | None, place: Place | None = None
) -> LatentSource:
    """The run of `from`; collective. Its data set is made where it is missing.

    Args:
        trained_on: digest of the latents that the denoiser was trained on, which one of the run's checkpoints
            makes, or one that is kept beside latents; None: of a new denoiser.
        place: where the run lies now; None: where the recipe says.

    Raises:
        UserError: it is no run, has no decoder, or no such checkpoint.
        Stopped: a signal came while the data set was made.
    """
    place = place or place_of(recipe)
    folder = place.folder

    def opened() -> LatentSource:
        access = encoder.data.access(commands)
        dataset = load_dataset(encoder.data.root, encoder.data.source, access)
        if trained_on is None:
            checkpoint = choose(folder, recipe.checkpoint, "checkpoint")
        else:
            checkpoint = checkpoint_of(place, encoder, trained_on, dataset.fingerprint)
        return LatentSource(folder, encoder, checkpoint, dataset, recipe.mirrored)

    encoder = collectives.run_on_main(lambda: decoding_recipe(folder, place.key))
    make_missing(encoder.data)
    return collectives.run_on_main(opened)


def open_codec(recipe: Diffuse, trained_on: str, place: Place | None = None) -> CodecSource:
    """The run of `from` without its data set, to draw with; collective.

    Args:
        trained_on, place: as of `open_source`.

    Raises:
        UserError: it is no run, has no decoder, or no such checkpoint.
    """
    place = place or place_of(recipe)

    def opened() -> CodecSource:
        encoder = decoding_recipe(place.folder, place.key)
        return CodecSource(place.folder, encoder, checkpoint_of(place, encoder, trained_on))

    return collectives.run_on_main(opened)


def source_folder(recipe: Diffuse) -> RunFolder:
    """The run of `from`, of a recipe of latents."""
    assert recipe.from_ is not None  # the recipe is one of latents
    return RunFolder(Path(recipe.from_))


def place_of(recipe: Diffuse) -> Place:
    """The run of `from`, where the recipe says."""
    return Place(source_folder(recipe), "from", "start another with run=NAME")


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
    source: CodecSource | None,
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
