"""What diffusion runs draw: distances to images by any extractor, a row for each thing that is measured."""

import re
from collections.abc import Iterable

from trainer.report import published
from trainer.report.groups import Group
from trainer.report.methods import PIXEL_DIFFUSION
from trainer.report.published import DDIM_PAPER
from trainer.report.tables import Cell, Column, Row, Table

NAME = re.compile(r"generation/([^/]+)/([^/]+)")
MEASURES = {  # how the name of a measure begins -> its title, its decimals, the factor to its unit
    "frechet": ("Fréchet", None, 1.0),
    "fid": ("FID", 2, 1.0),
    "kid": ("KID", None, 1.0),
    "sliced_w2": ("sliced W2", None, 1.0),
    "precision": ("precision, %", 1, 100.0),
    "recall": ("recall, %", 1, 100.0),
    "nearest": ("nearest training image", None, 1.0),
    "sse": ("error an image", None, 1.0),
    "mse": ("error an element", None, 1.0),
    "psnr": ("PSNR, dB", 1, 1.0),
    "ssim": ("SSIM", 3, 1.0),
    "images": ("images", 0, 1.0),
    "steps": ("steps", 0, 1.0),
}
COUNTS = ("images", "steps")  # which are settings, equal for all seeds
ROWS = {
    "test": "test images",
    "reconstruction": "reconstructions of test images",
    "samples": "samples",
    "samples_of_train_y": "samples of w, y of training images",
    "gaussian_full": "Gaussian fitted to z, full covariance",
    "gaussian_channel": "Gaussian fitted to z, each channel alone",
    "inversion": "inversion, and sampling again",
}
LADDER = {"noise": "noise {} on the latents, decoded", "blur": "blur {0} x {0}"}
FID_PUBLISHED = Column("FID, published", published=DDIM_PAPER)


def measure(name: str) -> tuple[Column, float]:
    """The column of a measure such as `frechet_efficientnet_lite0`, and the factor to its unit."""
    for beginning, (title, decimals, factor) in MEASURES.items():
        if name == beginning:
            return Column(title, decimals), factor
        if name.startswith(f"{beginning}_"):
            return Column(f"{title}: {name.removeprefix(f'{beginning}_')}", decimals), factor
    return Column(name, None), 1.0


def measures(group: Group, row: str) -> list[str]:
    """The names of what is measured of a row, in the order of MEASURES."""
    names = [m[2] for name in group.names() if (m := NAME.fullmatch(name)) and m[1] == row]
    order = list(MEASURES)
    return sorted(
        names, key=lambda name: next((i for i, m in enumerate(order) if name.startswith(m)), len(order))
    )


def distances(group: Group, row: str) -> dict[str, Cell]:
    """The Fréchet distances of a row, by the title of the extractor's column."""
    cells: dict[str, Cell] = {}
    for name in measures(group, row):
        if name.startswith("frechet") or name == "fid":
            column, factor = measure(name)
            cells[column.title] = group.figure(f"generation/{row}/{name}", factor)
    return cells


def distance_columns(groups: Iterable[Group]) -> list[Column]:
    """The columns of the Fréchet distances that any of the groups has."""
    names = {
        match[2]
        for group in groups
        for name in group.names()
        if (match := NAME.fullmatch(name)) and (match[2].startswith("frechet") or match[2] == "fid")
    }
    return [measure(name)[0] for name in sorted(names, key=lambda name: (name != "fid", name))]


def row_title(row: str) -> str:
    """`noise_0.3` -> noise 0.3 on the latents, decoded"""
    kind, _, size = row.partition("_")
    return LADDER[kind].format(size) if kind in LADDER and size else ROWS.get(row, row)


def generation_table(group: Group) -> Table | None:
    """All that was measured of a run's images; None where nothing was."""
    names = [m[1] for name in group.names() if (m := NAME.fullmatch(name))]
    rest = sorted(set(names) - set(ROWS), key=lambda row: (row.partition("_")[0] != "noise", row))
    present = [row for row in [*ROWS, *rest] if row in names]
    if not present:
        return None
    columns: dict[str, Column] = {}
    rows = []
    for row in present:
        cells: dict[str, Cell] = {}
        for name in measures(group, row):
            column, factor = measure(name)
            columns.setdefault(column.title, column)
            figure = group.figure(f"generation/{row}/{name}", factor)
            cells[column.title] = figure.without_spread() if figure and name in COUNTS else figure
        rows.append(Row(row_title(row), "ours", cells))
    ordered = sorted(columns.values(), key=lambda column: column.title in COUNTS)
    notes = [f"seeds: {group.seeds()}"] if len(group.records) > 1 else []
    if group.family == PIXEL_DIFFUSION:
        for one in published.DDIM_SAMPLES.get(group.data.partition(",")[0], ()):
            row_cells: dict[str, Cell] = {FID_PUBLISHED.title: one.figures["fid"]}
            rows.append(Row(f"published: {one.method}", "published", row_cells))
        ordered.append(FID_PUBLISHED)
    return Table(f"Generation: {group.label}", group.data, ordered, rows, notes)
