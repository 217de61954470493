"""The old place of `load_encoder`, which is in `trainer.exports.encoder` now."""

import warnings

from trainer.exports.encoder import load_encoder

__all__ = ["load_encoder"]

warnings.warn(
    "trainer.assembly has moved: from trainer.exports.encoder import load_encoder",
    FutureWarning,
    stacklevel=2,
)
