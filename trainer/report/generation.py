"""What diffusion runs draw: distances to images by any extractor, a row for each thing that is measured."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from trainer.report import published
from trainer.report.groups import Group
from trainer.report.methods import PIXEL_DIFFUSION
from trainer.report.published import DDIM_PAPER
from trainer.report.tables import Cell, Column, Figure, Row, Table

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
    "images": ("images", 0, 1.0),
    "steps": ("steps", 0, 1.0),
}
COUNTS = ("images", "steps")  # which are settings, equal for all seeds
FID_IMAGES = 50_000  # of the published ones
FID_NOTE = "FID: the published ones are of 50,000 images; of fewer images it is larger"
DRAWN = Column("sampling seeds")
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


def place(name: str) -> tuple[int, str]:
    """Puts measures in the order of MEASURES."""
    order = list(MEASURES)
    return next((i for i, m in enumerate(order) if name.startswith(m)), len(order)), name


# ---- distances in tables of runs -----------------------------------------------------------------


def is_distance(name: str) -> bool:
    return name.startswith("frechet") or name == "fid"


def distances(group: Group, row: str) -> dict[str, Cell]:
    """The Fréchet distances of a row as the runs' recipe draws it, by the title of the extractor's column.

    Distances over other numbers of images stand in other columns: one over fewer images is larger.
    """
    return {counted(*key).title: figure for key, figure in _distances(group, row).items()}


def distance_columns(groups: Iterable[Group], rows: Sequence[str] = ("samples",)) -> list[Column]:
    """The columns of the Fréchet distances that any of the groups has of some rows."""
    keys = {key for group in groups for row in rows for key in _distances(group, row)}
    return [counted(*key) for key in sorted(keys, key=lambda k: (k[0] != "fid", k[0], -(k[1] or 0)))]


def _distances(group: Group, row: str) -> dict[tuple[str, float | None], Figure]:
    """(measure, number of images) -> the figure over the runs."""
    values: dict[tuple[str, float | None], list[float]] = {}
    for record in group.records:
        images = record.results.get(f"generation/{row}/images")
        for name, value in record.results.items():
            match = NAME.fullmatch(name)
            if match and match[1] == row and is_distance(match[2]):
                values.setdefault((match[2], images), []).append(value)
    return {key: figure for key, some in values.items() if (figure := Figure.of(some))}


def counted(name: str, images: float | None) -> Column:
    """The column of a distance over a number of images."""
    column = measure(name)[0]
    if images is None:
        return column
    title = f"{column.title}, {images:,.0f} images"
    if name != "fid":
        return replace(column, title=title)
    return replace(column, title=title + " (not 50,000)" * (images != FID_IMAGES), note=FID_NOTE)


# ---- all that was measured of a diffusion --------------------------------------------------------


def row_title(row: str) -> str:
    """`noise_0.3` -> noise 0.3 on the latents, decoded"""
    kind, _, size = row.partition("_")
    return LADDER[kind].format(size) if kind in LADDER and size else ROWS.get(row, row)


class Measured(NamedTuple):
    """Figures of a row of so many images: by measure, and the seeds that the samples were drawn with."""

    figures: dict[str, Figure]
    seeds: str


def generation_tables(group: Group) -> list[Table]:
    """All that was measured of a run's images, a table for each checkpoint and each way to draw samples."""
    samplings = group.samplings()
    tables = [table for one in samplings if (table := _table(group, *one))]
    if tables and group.family == PIXEL_DIFFUSION:
        tables[0].columns.append(FID_PUBLISHED)
        for one in published.DDIM_SAMPLES.get(group.data.partition(",")[0], ()):
            row_cells: dict[str, Cell] = {FID_PUBLISHED.title: one.figures["fid"]}
            tables[0].rows.append(Row(f"published: {one.method}", "published", row_cells))
    return tables


def _table(group: Group, images: int, drawing: str) -> Table | None:
    """The table of one checkpoint and one way to draw; None where nothing of that was measured."""
    runs = group.sampled(images, drawing)
    gathered = measured(runs)
    if not gathered:
        return None
    counts = Counter(count for _, count in gathered if count is not None)
    usual = max(counts, key=lambda count: (counts[count], count), default=None)
    columns: dict[Column, tuple[bool, tuple[int, str]]] = {}  # in the order of these
    rows = []
    for (row, count), one in gathered.items():
        cells: dict[str, Cell] = {DRAWN.title: one.seeds}
        for name in sorted(one.figures, key=place):
            column, _ = measure(name)
            if name == "fid":
                other = " (not of 50,000 images)" * (count not in (None, FID_IMAGES))
                column = replace(column, title=column.title + other, note=FID_NOTE)
            columns[column] = name != "images", place(name)
            figure = one.figures[name]
            cells[column.title] = figure.without_spread() if name in COUNTS else figure
        rows.append(Row(row_title(row) + _other_count(count, usual), "ours", cells))
    seeds = {one.seeds for one in gathered.values()}
    ordered = sorted(columns, key=columns.__getitem__)
    ordered += [DRAWN] * (len(seeds) > 1)
    notes = []
    if len(counts) > 1:
        notes.append(f"figures are of {usual:,.0f} images where their row says no other number")
    if len(seeds) == 1:
        notes.append(f"sampling seeds: {seeds.pop()}")
    if len(runs) > 1 and any(len(by_seed) > 1 for by_seed in runs):
        notes.append("each run counts once, with the mean over its sampling seeds; ± is over runs")
    first = group.records[0].sampled()[0]
    title = f"Generation: {group.label}"
    title += f"; drawn by {drawing}" * (drawing != first.drawing)
    title += f"; checkpoint of {images:,} images" * (images != first.images)
    return Table(title, group.data, ordered, rows, notes)


def _other_count(count: float | None, usual: float | None) -> str:
    if count == usual:
        return ""
    return f", {count:,.0f} images" if count is not None else ", number of images not known"


def measured(runs: list[dict[int | None, dict[str, float]]]) -> dict[tuple[str, float | None], Measured]:
    """(row, number of images) -> its figures, in the order of rows; other numbers of images are other rows.

    Of one run a figure is the mean over its sampling seeds. Of several it is the mean over the runs, each of
    which has one figure, the mean over its own seeds.

    Args:
        runs: of each run, by sampling seed, figures as in results.json.
    """
    values: dict[tuple[str, float | None], dict[int, dict[int | None, dict[str, float]]]] = {}
    for run, by_seed in enumerate(runs):
        for seed, results in by_seed.items():
            for name, value in results.items():
                if match := NAME.fullmatch(name):
                    key = match[1], results.get(f"generation/{match[1]}/images")
                    of_run = values.setdefault(key, {}).setdefault(run, {})
                    of_run.setdefault(seed, {})[match[2]] = value
    return {key: _gathered(values[key]) for key in sorted(values, key=_row_place)}


def _row_place(key: tuple[str, float | None]) -> tuple[int, bool, str, float]:
    row, count = key
    order = list(ROWS)
    return order.index(row) if row in order else len(order), not row.startswith("noise_"), row, -(count or 0)


def _gathered(by_run: dict[int, dict[int | None, dict[str, float]]]) -> Measured:
    figures = {}
    for name in {name for by_seed in by_run.values() for results in by_seed.values() for name in results}:
        of_runs = [
            [results[name] for results in by_seed.values() if name in results] for by_seed in by_run.values()
        ]
        of_runs = [some for some in of_runs if some]
        single = of_runs[0] if len(of_runs) == 1 else [sum(some) / len(some) for some in of_runs]
        figure = Figure.of(single, measure(name)[1])
        assert figure is not None  # the name is that of a figure
        figures[name] = figure
    lists = [
        ", ".join(str(seed) for seed in sorted(some, key=str) if seed is not None) for some in by_run.values()
    ]
    several = any(len(some) > 1 for some in by_run.values())
    return Measured(figures, ("; " if several else ", ").join(lists))
