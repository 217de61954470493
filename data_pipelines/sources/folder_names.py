"""What the names of folders that are neither classes nor splits say: the images, masks, a set to tune on.

All are compared without regard to case.
"""

import re
from collections.abc import Collection

# "The images", which no class is named.
IMAGES = frozenset({"images", "image", "imgs", "img", "jpegimages"})
# These may be classes beside others (photos, paintings); alone they are "the images", too.
IMAGES_IF_ALONE = IMAGES | {"pictures", "photos", "data"}
# What belongs to images pixel by pixel and is stored as images.
COMPANIONS = frozenset(
    {
        "mask",
        "masks",
        "label",
        "labels",
        "annotation",
        "annotations",
        "segmentation",
        "segmentations",
        "segmentationclass",
        "segmentationobject",
        "trimap",
        "trimaps",
        "groundtruth",
        "gt",
    }
)
TUNING = frozenset({"dev", "devel", "development", "eval", "evaluation", "holdout"})  # a val by another name


def means_images(name: str, alone: bool = False) -> bool:
    """Whether a folder is "the images"; alone: none beside it holds images."""
    return name.strip().lower() in (IMAGES_IF_ALONE if alone else IMAGES)


def is_companion(name: str) -> bool:
    """Whether a folder holds masks or their like: masks, train_masks, Ground-Truth."""
    *_, last = name.strip().lower().replace("-", "_").replace(" ", "_").split("_")
    return last in COMPANIONS or _joined(name) in COMPANIONS


def tuning(name: str) -> bool:
    """Whether a folder is a split for validation by a name that is none of ours."""
    return name.strip().lower() in TUNING


def no_class(name: str) -> bool:
    """Whether a name is rather one of images, masks or a split for validation than that of a class."""
    return means_images(name) or is_companion(name) or tuning(name)


def _joined(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def images_and_companions(names: Collection[str], loose: bool) -> tuple[str, str] | None:
    """Two of the folders side by side that are no classes: images, and what lies beside them; None: no such.

    loose: whether images lie beside the folders, too; the second name is "" where it is these.
    """
    ordered = sorted(names)
    for name in ordered:
        others = [other for other in ordered if other != name]
        companions = [other for other in others if is_companion(other)]
        # A face_mask beside a face may be a class; face_masks are those of the faces.
        plural = [other for other in companions if not other.lower().endswith(("mask", "label"))]
        stem = re.sub("(images?|imgs?)$", "", _joined(name))  # train_images beside train_masks
        pair = next((other for other in plural if _joined(other).startswith(stem)), None)
        if pair:
            return name, pair
        if means_images(name) and (others or loose):
            return name, (companions or others or [""])[0]
        if means_images(name, alone=True) and companions:
            return name, companions[0]
    return None
