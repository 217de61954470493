"""The row of a group of runs: what was measured of its latent, and what it costs."""

from trainer.report.generation import distances
from trainer.report.groups import Group
from trainer.report.methods import CONTRASTIVE, PIXEL_DIFFUSION
from trainer.report.tables import Cell, Column, Figure, Row

LINEAR = {feature: Column(f"linear {feature}, %") for feature in ("y", "w", "z")}
KNN = Column("kNN y, %")
ERROR = Column(
    "error an image", None, note="error an image: squared error, summed over the image, pixels in [0, 1]"
)
PSNR, SSIM, SWAP = Column("PSNR, dB"), Column("SSIM", 3), Column("swap ratio", 3)
D = Column(
    "D = |y| + |w|",
    0,
    note="D: numbers of the latent; of a contrastive run those of y, since nothing teaches its w",
)
PARTS = {part: Column(f"{part}, parameters", 0) for part in ("encoder", "decoder", "denoiser")}
IMAGES, HOURS = (
    Column("images seen", 0),
    Column("hours", None, note="hours: of training, evaluation and saving apart"),
)
DEVICE, SEEDS = Column("device"), Column("seeds")
FIGURES = {  # column -> its name in results.json behind a prefix, and the factor to its unit
    **{column: (f"probe/linear/{feature}", 100.0) for feature, column in LINEAR.items()},
    KNN: ("knn/y", 100.0),
    ERROR: ("reconstruction/sse", 1.0),
    PSNR: ("reconstruction/psnr", 1.0),
    SSIM: ("reconstruction/ssim", 1.0),
    SWAP: ("reconstruction/swap_ratio", 1.0),
}
INVERSION = {  # of a diffusion on pixels, whose latent is the noise that images are inverted to
    ERROR: "generation/inversion/sse",
    PSNR: "generation/inversion/psnr",
}
INVERTED = "probe/linear/inverted_noise"


def run_row(group: Group) -> Row:
    """A group's row."""
    cells: dict[str, Cell] = {column.title: group.figure(*name) for column, name in FIGURES.items()}
    if group.family == PIXEL_DIFFUSION:
        cells |= {column.title: group.figure(name) for column, name in INVERSION.items()}
        cells[LINEAR["z"].title] = group.figure(INVERTED, 100)
    cells |= distances(group, "samples")
    cells |= {column.title: group.parameters(part) for part, column in PARTS.items()}
    cells[D.title] = Figure(size) if (size := trained_numbers(group)) else None
    cells |= {IMAGES.title: group.images(), HOURS.title: group.hours()}
    cells |= {DEVICE.title: group.device(), SEEDS.title: group.seeds()}
    return Row(group.label, "ours", cells)


def trained_numbers(group: Group) -> int | None:
    """D = |y| + |w|; of a contrastive run |y| alone, since nothing teaches its w. None: not known."""
    latent = group.latent
    if latent is None:
        measured = (group.source or group).figure("reconstruction/latent_size")
        return int(measured.mean) if measured else None
    return latent.y if group.family == CONTRASTIVE else latent.size
