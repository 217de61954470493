"""The control that a hybrid must beat: y of a contrastive run beside the latent of an autoencoder's run."""

from collections.abc import Iterable

from trainer.report.groups import Group
from trainer.report.methods import AUTOENCODER, CONTRASTIVE, HYBRID
from trainer.report.rows import (
    DEVICE,
    ERROR,
    HOURS,
    IMAGES,
    KNN,
    LINEAR,
    PARTS,
    PSNR,
    SEEDS,
    SSIM,
    D,
    run_row,
)
from trainer.report.tables import Cell, Column, Figure, Row, summed

LETTERS = "ABCD"  # of the pairs that get a row: those of the highest accuracies
COUNTED = (
    "concatenation: D counts |y| of the one run and all that the decoder of the other reads, its y and w; "
    "parameters, images and hours are those of both"
)
CONTROL = "control: concatenation "
PARAMETERS = Column("parameters", 0)
SMALLER, LARGER = -1, 1
COMPARED = {
    D: SMALLER,
    PARAMETERS: SMALLER,
    IMAGES: SMALLER,
    HOURS: SMALLER,
    LINEAR["y"]: LARGER,
    ERROR: SMALLER,
}


def concatenations(groups: Iterable[Group]) -> tuple[list[Row], list[str]]:
    """Rows of contrastive runs beside autoencoders, all of one data set, and lines that compare hybrids.

    Accuracies are the contrastive run's, the error is the autoencoder's; D, parameters, images and hours are
    sums. Of the autoencoder's latent all counts that its decoder reads, its y too: without it the error would
    be another.
    """
    groups = list(groups)
    contrasts = [g for g in groups if g.family == CONTRASTIVE and g.figure("probe/linear/y")]
    codecs = [g for g in groups if g.family == AUTOENCODER and g.figure("reconstruction/sse")]
    pairs = [(contrast, codec) for contrast in contrasts for codec in codecs]
    pairs.sort(key=lambda pair: (-_mean(pair[0], "probe/linear/y"), _mean(pair[1], "reconstruction/sse")))
    rows = [_row(letter, *pair) for letter, pair in zip(LETTERS, pairs, strict=False)]
    notes = [COUNTED] if rows else []
    if len(pairs) > len(LETTERS):
        notes.append(f"{len(pairs) - len(LETTERS)} further concatenations, of lower accuracy, are left out")
    for hybrid in groups:
        if hybrid.family == HYBRID:
            notes += [comparison(run_row(hybrid), row) for row in rows]
    return rows, notes


def _mean(group: Group, name: str) -> float:
    figure = group.figure(name)
    assert figure is not None  # pairs are made of groups that have it
    return figure.mean


def _row(letter: str, contrast: Group, codec: Group) -> Row:
    one, other = run_row(contrast).cells, run_row(codec).cells

    def total(column: Column) -> Cell:
        return summed([_figure(one.get(column.title)), _figure(other.get(column.title))])

    y, latent = contrast.latent, codec.latent
    cells: dict[str, Cell] = {column.title: one[column.title] for column in (LINEAR["y"], KNN)}
    cells |= {column.title: other[column.title] for column in (ERROR, PSNR, SSIM)}
    cells[D.title] = Figure(y.y + latent.size) if y and latent else None
    cells |= {column.title: total(column) for column in (PARTS["encoder"], IMAGES, HOURS)}
    cells[PARTS["decoder"].title] = other[PARTS["decoder"].title]
    devices = {one[DEVICE.title], other[DEVICE.title]}
    cells[DEVICE.title] = one[DEVICE.title] if len(devices) == 1 else None
    cells[SEEDS.title] = f"{one[SEEDS.title]} + {other[SEEDS.title]}"
    label = f"{CONTROL}{letter}: y of {contrast.label} beside the latent of {codec.label}"
    return Row(label, "control", cells)


def _figure(cell: Cell) -> Figure | None:
    return None if isinstance(cell, str) else cell


# ---- what a hybrid beats -------------------------------------------------------------------------


def comparison(hybrid: Row, control: Row) -> str:
    """A line: in which of size, time and quality the hybrid is better, in which it is not.

    Hours on different devices are not compared.
    """
    better: list[str] = []
    worse: list[str] = []
    for column, direction in COMPARED.items():
        one, other = _value(hybrid, column), _value(control, column)
        same_device = hybrid.cells.get(DEVICE.title) == control.cells.get(DEVICE.title)
        if one is None or other is None or (column == HOURS and not same_device):
            continue
        sign = "<" if one.mean < other.mean else ">" if one.mean > other.mean else "="
        within = one.spread is not None and other.spread is not None
        within = within and abs(one.mean - other.mean) <= (one.spread or 0) + (other.spread or 0)
        figures = f"{column.text(one.without_spread())} {sign} {column.text(other.without_spread())}"
        text = f"{column.title} ({figures}{', within the spreads' * within})"
        (better if direction * (one.mean - other.mean) > 0 else worse).append(text)
    name = control.label.removeprefix("control: ").partition(":")[0]
    return f"{hybrid.label} against {name}: better in {_listed(better)}; not in {_listed(worse)}"


def _value(row: Row, column: Column) -> Figure | None:
    if column == PARAMETERS:
        parts = [_figure(row.cells.get(PARTS[part].title)) for part in ("encoder", "decoder")]
        return summed(parts)
    return _figure(row.cells.get(column.title))


def _listed(texts: list[str]) -> str:
    return ", ".join(texts) or "nothing"
