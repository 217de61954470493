"""Tables of figures: a mean over seeds and its spread, rows of a kind, columns that are ours or published."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

SPREAD = (
    "± is half of the range where a row has two seeds, the sample standard deviation where it has three or "
    "more"
)
DIGITS = 3  # that count, of figures that are not written with fixed decimals
MOST_DECIMALS = 6


@dataclass(frozen=True)
class Figure:
    """A mean over seeds; its spread is half of the range of two, the standard deviation of more."""

    mean: float
    spread: float | None = None
    seeds: int = 1

    @classmethod
    def of(cls, values: Sequence[float], factor: float = 1.0) -> "Figure | None":
        """The figure of one value a seed, in units of 1 / factor; None where there is none."""
        scaled = [factor * value for value in values]
        if not scaled:
            return None
        if len(scaled) == 1:
            return cls(scaled[0])
        half_range = (max(scaled) - min(scaled)) / 2
        mean = sum(scaled) / len(scaled)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in scaled) / (len(scaled) - 1))
        return cls(mean, half_range if len(scaled) == 2 else deviation, len(scaled))

    def without_spread(self) -> "Figure":
        return replace(self, spread=None)


Cell: TypeAlias = Figure | str | None
Origin: TypeAlias = Literal["ours", "control", "published"]


@dataclass(frozen=True)
class Column:
    """A column, whose title has the unit.

    Attributes:
        decimals: how a figure is written; None: with as many as show DIGITS digits that count.
        published: the source of its figures, where they are published ones; no figure of ours is among them.
        note: what the title does not say.
    """

    title: str
    decimals: int | None = 1
    published: str = ""
    note: str = ""

    def text(self, cell: Cell) -> str:
        """A cell as text, a spread with as many decimals as its mean; '' where there is nothing."""
        if cell is None or isinstance(cell, str):
            return cell or ""
        form = self.form(cell.mean)
        mean = format(cell.mean, form)
        return mean if cell.spread is None else f"{mean} ± {format(cell.spread, form)}"

    def form(self, value: float) -> str:
        """The format of a figure."""
        decimals = self.decimals
        if decimals is None:
            exponent = math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
            decimals = min(max(0, DIGITS - 1 - exponent), MOST_DECIMALS)
        return f",.{decimals}f"


@dataclass(frozen=True)
class Row:
    """A row: what it is of, whose figures it has in columns that are not published, cells by title."""

    label: str
    origin: Origin
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Table:
    """A table with the name of its data set, and lines below it."""

    title: str
    data: str
    columns: list[Column]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    def trimmed(self) -> "Table":
        """Without columns that no row has a cell in, and without rows that have none; with all its notes."""
        columns = [column for column in self.columns if any(row.cells.get(column.title) for row in self.rows)]
        titles = {column.title for column in columns}
        rows = [row for row in self.rows if any(row.cells.get(title) for title in titles)]
        spreads = any(isinstance(cell, Figure) and cell.spread is not None for cell in _cells(rows))
        sources = [f"published figures: {column.published}" for column in columns if column.published]
        notes = [
            *(column.note for column in columns if column.note),
            *[SPREAD] * spreads,
            *self.notes,
            *sources,
        ]
        return replace(self, columns=columns, rows=rows, notes=list(dict.fromkeys(notes)))

    def lines(self) -> list[list[str]]:
        """Rows of text, the label first."""
        return [
            [row.label, *(column.text(row.cells.get(column.title)) for column in self.columns)]
            for row in self.rows
        ]


def _cells(rows: Iterable[Row]) -> Iterable[Cell]:
    return (cell for row in rows for cell in row.cells.values())


def summed(parts: Sequence[Figure | None]) -> Figure | None:
    """The sum of the means; None where one of them is not known."""
    means = [part.mean for part in parts if part is not None]
    return Figure(sum(means)) if len(means) == len(parts) else None
