"""A diffusion run that is drawn again: its checkpoint, and the run of its latents, wherever it lies now."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data_pipelines.common.errors import UserError
from trainer.checkpoints.load import Checkpoint
from trainer.recipe.diffusion import Diffuse
from trainer.recipe.drawing import Drawing
from trainer.runs.folder import RunFolder
from trainer.tasks.diffusion_checks import check_drawing
from trainer.tasks.latent_makers import Place
from trainer.tasks.latent_source import (
    CodecSource,
    LatentSource,
    decoding_recipe,
    latent_shapes,
    open_codec,
    open_source,
)
from trainer.tasks.saved_run import choose, diffusion_recipe
from trainer.training.diffusion import sample_shapes


@dataclass(frozen=True)
class DrawnRun:
    """A run of task diffuse and one of its checkpoints.

    `place`: of the run of its latents; None where it draws images.
    """

    folder: RunFolder
    recipe: Diffuse
    checkpoint: Checkpoint
    place: Place | None

    @classmethod
    def find(cls, folder: RunFolder, images: int | None, encoder: str | None) -> "DrawnRun":
        """The run in a folder, before its data set is opened; on rank 0.

        Args:
            images: which checkpoint; None: the newest.
            encoder: the folder of the run of the latents; None: where the recipe says.

        Raises:
            UserError: there is no such run, it has no such checkpoint, or its latents' run is not there.
        """
        recipe = diffusion_recipe(folder)
        place = find_encoder(folder, recipe, encoder)
        return cls(folder, recipe, choose(folder, images, "checkpoint"), place)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of what is drawn, by name. Raises UserError: the latents' run has no decoder."""
        latent = {}
        if self.place is not None:
            latent = latent_shapes(decoding_recipe(self.place.folder, self.place.key))
        return sample_shapes(self.recipe, latent)

    def check(self, options: Drawing) -> None:
        """Raises UserError: the run cannot be drawn so."""
        check_drawing(options, self.recipe.objective.process, self.shapes)

    def source(self, commands: bool) -> LatentSource | None:
        """The run of the latents that it was trained on; None where it draws images; collective.

        Raises:
            UserError: it has other latents.
            Stopped: a signal came while its data set was made.
        """
        if self.place is None:
            return None
        return open_source(self.recipe, commands, self.checkpoint.manifest["data"], self.place)

    def codec(self) -> CodecSource | None:
        """The run of the latents without its data set; None where it draws images; collective.

        Raises:
            UserError: it has other latents.
        """
        if self.place is None:
            return None
        return open_codec(self.recipe, self.checkpoint.manifest["data"], self.place)


def find_encoder(folder: RunFolder, recipe: Diffuse, encoder: str | None) -> Place | None:
    """Where the run of the latents lies; the digest of its latents says later whether it is the one.

    A relative path of the recipe is one of the folder that the run was started in. Where no run lies there
    from here, it is tried from the folders above the run's.

    Raises:
        UserError: it is not there, or the run draws images.
    """
    if recipe.from_ is None:
        if encoder is not None:
            raise UserError(
                f"encoder={encoder}: {folder.path} draws images and no latents, so no encoder belongs to it; "
                "leave that key out"
            )
        return None
    if encoder is not None:
        return Place(RunFolder(Path(encoder)), "encoder", "draw of another run with from=")
    for path in _candidates(folder, Path(recipe.from_)):
        if (path / "recipe.yaml").exists():
            return Place(RunFolder(path), "from", "name its new place with encoder=FOLDER")
    raise UserError(
        f"the recipe of {folder.path} names from={recipe.from_}, and no run lies there; give its new "
        "place with encoder=FOLDER"
    )


def _candidates(folder: RunFolder, named: Path) -> Iterator[Path]:
    """Where a run may lie that the recipe of another one names."""
    yield named
    if not named.is_absolute():
        for above in folder.path.resolve().parents:
            yield above / named
