"""The table of generated images for the terminal: a row for each thing measured, a column a measure."""

from collections.abc import Mapping

from trainer.evaluation.figures.charts import aligned
from trainer.recipe.generation import ROWS

MEASURES = ("frechet", "kid", "sliced_w2", "precision", "recall", "nearest")
FID = "fid"  # which is Inception's alone, and bears no name


def table(results: Mapping[str, float]) -> str:
    """The figures `generation/ROW/MEASURE` of `results` as plain text; '' where there is none.

    A table an extractor, since figures of two are not comparable; what no extractor measures (the inversion
    of pixel diffusion) comes last.
    """
    tables: dict[str, dict[str, dict[str, float]]] = {}  # extractor -> row -> measure -> figure
    for key, value in results.items():
        kind, _, rest = key.partition("/")
        row, _, measure = rest.partition("/")
        if kind == "generation" and measure and measure != "images" and "/" not in measure:
            extractor, name = split(measure)
            tables.setdefault(extractor, {}).setdefault(row, {})[name] = value
    return "\n\n".join(
        _table(name, tables[name], results) for name in sorted(tables, key=lambda name: (not name, name))
    )


def split(measure: str) -> tuple[str, str]:
    """`frechet_efficientnet_lite0` -> its extractor and `frechet`; '' for what has no extractor."""
    if measure == FID:
        return "inception", FID
    for name in MEASURES:
        if measure.startswith(f"{name}_"):
            return measure.removeprefix(f"{name}_"), name
    return "", measure


def _table(extractor: str, rows: dict[str, dict[str, float]], results: Mapping[str, float]) -> str:
    order = [FID, *MEASURES]
    present = {name for figures in rows.values() for name in figures}
    names = [name for name in order if name in present] + sorted(present - set(order))
    counted = any(f"generation/{row}/images" in results for row in rows)
    lines = [[f"generation, {extractor}" if extractor else "generation", *names, *["images"] * counted]]
    known = [str(row) for row in ROWS]
    for row in sorted(rows, key=lambda row: (known.index(row) if row in known else len(known), row)):
        cells = [f"{rows[row][name]:,.4g}" if name in rows[row] else "-" for name in names]
        if counted:
            count = results.get(f"generation/{row}/images")
            cells.append("-" if count is None else f"{count:,.0f}")
        lines.append([row, *cells])
    return aligned(lines)
