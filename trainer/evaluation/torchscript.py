"""Extractors that are files of TorchScript, as StyleGAN2-ADA and EDM call them.

A TorchScript is a program, which runs in torch's interpreter. It is run only where its digest is known: from
`sha256`, from the file's name, or since it is the Inception network that everybody uses.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from data_pipelines.common.errors import UserError
from trainer.evaluation.extractors import PUBLISHED, EfficientNetLite, Extractor, checked_digest

# The networks of the FID, by the beginnings of their digests: inception-2015-12-05.pt of StyleGAN2-ADA, and
# the weights that torch-fidelity and pytorch-fid use, whose file names bear theirs.
INCEPTIONS = ("f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4", "6726825d")
IN_NAME = re.compile(r"(?:^|[-_.])([0-9a-f]{8})$")  # as torch.hub names files
RESERVED = {"inception", *PUBLISHED}  # names of extractors that another file must not take


class TorchScript(Extractor):
    """A module that is called with uint8 images [n, 3, H, W] and `return_features=True`.

    Args:
        path: its file.
        sha256: the digest that the user gives, 64 hexadecimal digits; None: none.
        device: that it runs on.

    Raises:
        UserError: the file is not there, has another digest than `sha256` or its name say, has a digest that
            nobody gives, or is no TorchScript.
    """

    def __init__(self, path: Path, sha256: str | None, device: torch.device):
        digest = verified(path, sha256)
        self.is_inception = digest.startswith(INCEPTIONS)
        super().__init__("inception" if self.is_inception else name_of(path, digest), digest, device)
        self.path = path
        try:
            self.module = torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError):  # their text speaks of torch's own files
            raise UserError(f"{path}: is no TorchScript; give a file of torch.jit.save") from None

    def features(self, images: Tensor) -> Tensor:
        try:
            rows: Tensor = self.module(images, return_features=True)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise UserError(
                f"{self.path}: cannot be called with uint8 images {list(images.shape)} and "
                f"return_features=True ({first_line(error)}); give a TorchScript that can"
            ) from None
        return rows


def verified(path: Path, sha256: str | None) -> str:
    """The sha256 of a TorchScript that may be run. Raises UserError as `TorchScript`."""
    digest = checked_digest(path, sha256, "check the file, evaluate.extractor= and evaluate.sha256=")
    in_name = IN_NAME.search(path.stem)
    if in_name:
        checked_digest(path, in_name[1], "the name bears another: fetch the file again, or rename it")
    if not (sha256 or in_name or digest.startswith(INCEPTIONS)):
        raise UserError(
            f"{path}: a TorchScript is a program, and nothing says that it is the one you mean; if it is, "
            f"add evaluate.sha256={digest}"
        )
    return digest


def name_of(path: Path, digest: str) -> str:
    """The file's name without its ending, as names of figures allow; no name of another extractor's."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", path.stem)
    return f"{name}-{digest[:8]}" if name in RESERVED else name


def first_line(error: Exception) -> str:
    """The first line of an error's message that says anything; TorchScript's last one does."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[0] if lines else repr(error))


def build_extractor(extractor: str, sha256: str | None, size: int, device: torch.device) -> Extractor:
    """The extractor that a recipe names.

    Args:
        extractor: a key of `PUBLISHED`, or the path of a TorchScript.
        sha256: of the TorchScript; None: as its name says.
        size: pixels a side that a published network reads; a TorchScript resizes images itself.
        device: that it runs on.

    Raises:
        UserError: as the extractors.
    """
    if extractor in PUBLISHED:
        return EfficientNetLite(extractor, size, device)
    return TorchScript(Path(extractor), sha256, device)
