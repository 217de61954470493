"""The section `evaluate` of a diffusion: what is drawn and measured of generated images."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from data_pipelines.common.home import expand_home
from data_pipelines.common.section import Count, Positive, Section, Wording, key
from trainer.recipe.evaluation import LinearProbe
from trainer.recipe.pixel_evaluation import DenoiserFeatures, Inversion

EXTRACTORS = ("efficientnet_lite0", "efficientnet_lite2")
Row = Literal[
    "test",
    "reconstruction",
    "samples",
    "samples_of_train_y",
    "gaussian_full",
    "gaussian_channel",
    "noise_0.1",
    "noise_0.3",
    "noise_1",
    "blur_2",
    "blur_4",
]
ROWS: list[Row] = [
    *("test", "reconstruction", "samples", "samples_of_train_y", "gaussian_full", "gaussian_channel"),
    *("noise_0.1", "noise_0.3", "noise_1", "blur_2", "blur_4"),
]
Measure = Literal["frechet", "kid", "sliced_w2", "precision_recall", "nearest"]
MEASURES: list[Measure] = ["frechet", "kid", "sliced_w2", "precision_recall", "nearest"]
WITH_ROWS = frozenset(MEASURES) - {"frechet"}  # those that need every image's features


def check_extractor(name: str) -> str:
    """A published extractor, or a path with its home folder. Raises ValueError for another name."""
    if name in EXTRACTORS:
        return name
    if "/" not in name and not name.endswith((".pt", ".pth", ".ts")):
        raise ValueError(f"expected {', '.join(EXTRACTORS)}, or the path of a TorchScript (.pt)")
    return expand_home(name)


def check_digest(digest: str) -> str:
    """A sha256. Raises ValueError for anything else."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise ValueError("expected 64 hexadecimal digits, as `sha256sum` prints them")
    return digest.lower()


class Generation(Section):
    """How generated images are looked at while a diffusion trains, and measured at its end.

    Every row is compared with as many training images, in the features of one extractor. Figures of other
    extractors, or of other numbers of images, are not comparable.
    """

    every: Count = key(0, "images from one online look at samples to the next; 0: none", "images")
    at_end: bool = key(True, "whether the rows are measured when training is done")
    samples: Annotated[int, Field(ge=2)] = key(
        5000, "images of each row, and training images beside them, at most; the FID's are 50,000", "images"
    )
    rows: list[Row] = key(ROWS, "what is measured, of that which the run can make")
    extractor: Annotated[str, AfterValidator(check_extractor)] | None = key(
        None,
        "what images are compared by: `efficientnet_lite0`, `efficientnet_lite2` (of the extra `features`) "
        "or a TorchScript's path: `inception-2015-12-05.pt` measures the FID; null: nothing is compared",
    )
    sha256: Annotated[str, AfterValidator(check_digest), Wording("64 hexadecimal digits")] | None = key(
        None, "digest of the TorchScript, which is a program; null: Inception's, or as the file's name ends"
    )
    size: Positive = key(112, "side that images are resized to for an EfficientNet", "pixels")
    measures: Annotated[list[Measure], Field(min_length=1)] = key(
        MEASURES, "distances and shares; `frechet` alone keeps no features"
    )
    neighbours: Positive = key(3, "neighbour whose distance is a ball's radius in precision and recall", "1")
    batch: Positive = key(250, "images that are decoded and extracted at a time", "images")
    cache: Annotated[str, AfterValidator(expand_home)] | None = key(
        None,
        "folder of statistics of training images, for other runs too; null: statistics/ beside the runs",
    )
    shown: Positive = key(64, "samples in a picture", "images")
    linear: LinearProbe = LinearProbe()
    denoiser_features: DenoiserFeatures | None = key(None, "the probe of a denoiser of images; null: none")
    inversion: Inversion | None = key(None, "the noise of images, of a denoiser of images; null: none")

    @model_validator(mode="after")
    def _digest_of_a_file(self) -> "Generation":
        if self.sha256 and (self.extractor is None or self.extractor in EXTRACTORS):
            raise ValueError(
                "sha256: is the digest of a TorchScript, and `extractor` names none; leave it out"
            )
        return self

    @property
    def keeps_features(self) -> bool:
        """Whether some measure needs the features of every image."""
        return bool(WITH_ROWS & set(self.measures))
