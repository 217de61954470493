"""The recipes of diffusion: `diffuse` trains a denoiser of latents or of images, `sample` draws with it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from data_pipelines.common.section import Count, Positive, Section, key
from data_pipelines.views import Shuffle
from trainer.recipe.denoisers import DiffusionObjective
from trainer.recipe.drawing import Drawing
from trainer.recipe.generation import Generation
from trainer.recipe.groups import Groups
from trainer.recipe.optimizers import Optimizer
from trainer.recipe.schema import (
    COMPILE,
    DETERMINISTIC,
    PRECISION,
    TF32,
    Constant,
    Cosine,
    Data,
    Folder,
    Log,
    Name,
    Save,
    Tracking,
)

PAIR = 2  # images that share a generator of noise, and have antithetic times
ENCODER = "where the run of the latents lies now, with its checkpoint; null: where the run's recipe says"


class Diffuse(Section):
    """Training of a denoiser: of the latents of an encoder's run (`from`), or of images (`data`)."""

    trains: ClassVar[Literal[True]] = True

    task: Literal["diffuse"]
    seed: Count = key(0, "seed of everything random in the run", "1")
    precision: Literal["auto", "float64", "float32", "bf16"] = key("float32", PRECISION)
    tf32: bool = key(False, TF32)
    deterministic: bool = key(True, DETERMINISTIC)
    compile: bool | Literal["auto"] = key(False, COMPILE)
    outputs: Folder = key("outputs", "folder of all runs")
    run: Name | None = key(None, "name of the run and its folder; null: the recipe's")
    batch: Positive = key(..., "size of an optimizer step, of all ranks together, even", "images")
    accumulate: Positive = key(1, "parts of a step, one after the other in less memory", "micro-batches")
    images: Positive = key(..., "length of training", "images")
    from_: Annotated[Folder | None, Field(alias="from")] = key(
        None, "the folder of a run with a decoder, whose latents are the samples; null: images are"
    )
    checkpoint: Positive | None = key(
        None, "which checkpoint of that run, by the images seen; null: the newest", "images"
    )
    mirrored: bool = key(
        True, "whether the latents of mirror images are samples too; images are mirrored by `data.views`"
    )
    data: Data | None = key(None, "the images that are the samples; null: the latents of `from` are")
    objective: DiffusionObjective = key(..., "what the denoiser learns")
    optimizer: Optimizer = key(..., "how a step follows the gradient")
    schedule: Annotated[Constant | Cosine, Field(discriminator="kind")] = key(
        Constant(kind="constant"), "how the learning rate changes"
    )
    save: Save
    log: Log
    draw: Drawing = Drawing()
    evaluate: Generation = Generation()
    tracking: Tracking = Tracking()
    step_timeout: Annotated[float, Field(ge=0)] = key(
        600, "the most for a stage of a step, then the run fails; 0: any time", "seconds"
    )
    profile: Count = key(0, "steps that torch's profiler records, after ten others, to profile.json", "steps")

    @model_validator(mode="after")
    def _has_one_kind_of_samples(self) -> "Diffuse":
        if (self.from_ is None) == (self.data is None):
            got = "both are" if self.data else "neither is"
            raise ValueError(
                f"expected either from=RUN, whose latents are drawn, or data, whose images are; {got} given"
            )
        if self.checkpoint is not None and self.from_ is None:
            raise ValueError(f"checkpoint={self.checkpoint} is one of the run in `from`, and none is given")
        if self.data and len(self.data.views) != 1:
            raise ValueError(f"data.views describes {len(self.data.views)} views; a denoiser reads 1")
        if self.data is None and (self.evaluate.denoiser_features or self.evaluate.inversion):
            raise ValueError(
                "evaluate.denoiser_features and evaluate.inversion are of images, not of latents; leave "
                "them out"
            )
        self.draw.check(self.objective.process)
        return self

    def folder(self, name: str) -> Path:
        """The run's folder, for a recipe of this name."""
        return Path(self.outputs) / (self.run or name)

    @property
    def launch_precision(self) -> str:
        """What the ranks are prepared to compute in."""
        return self.precision

    @property
    def stage_timeout(self) -> float:
        """Seconds that a stage of a step may take, also to wait for its data; 0: any time."""
        wait = self.data.retry_seconds if self.data else 0.0
        return self.step_timeout and self.step_timeout + wait

    @property
    def groups(self) -> Groups:
        """Images that share random draws stay on one rank."""
        return Groups(norm=PAIR)

    @property
    def key_shuffle(self) -> Shuffle | None:
        return None

    @property
    def other_samples(self) -> tuple[str, str]:
        """What a person reads where the samples are not those of the run so far, and what may help."""
        if self.data:
            return f"the data set in {self.data.root} is not the one it was trained on", ""
        why = f"the latents of {self.from_} are not those that it was trained on"
        return why, "name the checkpoint that they came from with checkpoint=IMAGES, or "

    def advice(self, images: int | None) -> Iterator[str]:
        """Lines that a person should read before the run starts."""
        return self.objective.advice("group", images)


class SampleRun(Section):
    """Images of a finished or unfinished diffusion run, in a folder of its own."""

    trains: ClassVar[Literal[False]] = False

    task: Literal["sample"]
    from_: Annotated[Folder, Field(alias="from")] = key(..., "the folder of a run of task diffuse")
    checkpoint: Positive | None = key(
        None, "which of its checkpoints, by the images seen; null: the newest", "images"
    )
    encoder: Folder | None = key(None, ENCODER)
    samples: Positive = key(64, "how many", "images")
    seed: Count = key(0, "seed of their noise: sample i is the same on any ranks", "1")
    precision: Literal["float64", "float32", "bf16"] = key("float32", "what is computed in")
    draw: Drawing = Drawing()
    to: Folder | None = key(
        None,
        "the folder that is made for them; null: samples/NAME in `from`, NAME says how many, and how drawn",
    )
    files: bool = key(False, "whether each is a PNG too, beside samples.npy and the page of the first ones")

    def folder(self, name: str) -> Path:
        """The folder of the run that draws."""
        return Path(self.from_)

    @property
    def launch_precision(self) -> str:
        """What the ranks are prepared to compute in."""
        return self.precision


class MeasureRun(Section):
    """Images of a diffusion run measured again: by another extractor, more of them, or drawn otherwise.

    What is left at its default in `draw`, `evaluate` and `tracking` is as the run's own recipe says.
    """

    trains: ClassVar[Literal[False]] = False

    task: Literal["measure"]
    from_: Annotated[Folder, Field(alias="from")] = key(..., "the folder of a run of task diffuse")
    checkpoint: Positive | None = key(
        None, "which of its checkpoints, by the images seen; null: the newest", "images"
    )
    encoder: Folder | None = key(None, ENCODER)
    seed: Count | None = key(
        None, "seed of the samples and of the choice of images beside them; null: the run's", "1"
    )
    draw: Drawing = Drawing()
    evaluate: Generation = Generation()
    tracking: Tracking = Tracking()

    def folder(self, name: str) -> Path:
        """The folder of the run that is measured."""
        return Path(self.from_)

    @property
    def launch_precision(self) -> str:
        """What the ranks are prepared to compute in; the run's own recipe decides what they do."""
        return "float32"
