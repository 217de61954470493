"""Which checkpoint of a frozen run has made latents that are known by their digest."""

from dataclasses import dataclass
from pathlib import Path

from data_pipelines.common.errors import UserError
from trainer.checkpoints.format import Damaged, read_manifest, verify
from trainer.checkpoints.load import Checkpoint, visible
from trainer.generation.latents import codec_folder, digest_of, latents_folder
from trainer.recipe.schema import Pretrain
from trainer.runs.folder import RunFolder


@dataclass(frozen=True)
class Place:
    """The folder of the run whose latents are drawn, and words for a message about it.

    `key`: of the recipe, which names the folder. `otherwise`: what helps beside naming another folder.
    """

    folder: RunFolder
    key: str
    otherwise: str


def key_of(recipe: Pretrain, manifest: dict, data: str) -> dict[str, str | int]:
    """What latents are a function of: a checkpoint, by its manifest; a data set; a recipe."""
    return {
        "checkpoint": manifest["digest"],
        "data": data,
        "split": recipe.data.train,
        "size": recipe.data.size,
    }


def checkpoint_of(place: Place, encoder: Pretrain, trained_on: str, data: str | None = None) -> Checkpoint:
    """The checkpoint that made the latents of this digest, of the run's or of those kept beside latents.

    Args:
        data: fingerprint of the data set; None: that which the checkpoint names.

    Raises:
        UserError: there is none, or it is damaged.
    """
    damage = ""
    for path in _makers(place.folder, encoder, trained_on, data):
        try:
            manifest = verify(path)
            return Checkpoint(path, manifest["images"], manifest)
        except Damaged as why:
            damage = damage or f"checkpoint {path}, which made the latents, is damaged ({why})"
    if damage:
        raise UserError(f"{place.key}={place.folder.path}: {damage}; put it back")
    raise UserError(
        f"{place.key}={place.folder.path}: the denoiser was trained on the latents of another run, of other "
        f"images or of a checkpoint that is gone; give the folder of that run, or {place.otherwise}"
    )


def may_have_made(folder: RunFolder, encoder: Pretrain, trained_on: str) -> bool:
    """Whether the run in a folder has made the latents of this digest, or nothing there tells. Cheap."""
    of_it = (latents_folder(folder.path, trained_on), codec_folder(folder.path, trained_on))
    if any(path.exists() for path in of_it) or not visible(folder.checkpoints):
        return True
    return bool(_makers(folder, encoder, trained_on, None))


def _makers(folder: RunFolder, encoder: Pretrain, trained_on: str, data: str | None) -> list[Path]:
    """The checkpoints that make the latents of this digest, those of the run first. Parts are not read."""
    beside = codec_folder(folder.path, trained_on)
    makers = []
    for _, path in (*reversed(visible(folder.checkpoints)), *visible(beside)):
        try:
            manifest = read_manifest(path)
        except Damaged:
            continue
        key = key_of(encoder, manifest, data or manifest.get("data", ""))
        # What is kept beside latents has made them, also of a data set that the encoder was not trained on.
        if digest_of(key) == trained_on or (data is None and path.parent == beside):
            makers.append(path)
    return makers
