"""What the hybrid trades: y's probe against the error of an image, over omega and both layouts of the latent.

    hybrid_tradeoff.py RUN_FOLDERS... [--to tradeoff.png]

Reads recipe.yaml and results.json of evaluated runs (hybrids, and with the same encoder moco and autoencoder
as controls), prints a table and draws the curve. Runs that differ in their seed make one row, mean ± half of
the range.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_pipelines.common.errors import UserError
from trainer.evaluation.figures.charts import DPI, GRID, INK, PALE, bare, save
from trainer.recipe.fingerprint import differences
from trainer.recipe.loading import load_saved

COLUMNS = {  # title -> (key in results.json, decimals, factor to its unit)
    "linear y, %": ("probe/linear/y", 1, 100),
    "linear w, %": ("probe/linear/w", 1, 100),
    "linear z, %": ("probe/linear/z", 1, 100),
    "kNN y, %": ("knn/y", 1, 100),
    "SSE": ("reconstruction/sse", 2, 1),
    "MSE, 10⁻³": ("reconstruction/mse", 2, 1000),
    "PSNR, dB": ("reconstruction/psnr", 1, 1),
    "swap": ("reconstruction/swap_ratio", 3, 1),
}
CONTRAST, PIXELS, HYBRID, DETACHED = "contrastive", "autoencoder", "hybrid", "hybrid, y detached"
CONTROLS = {"untrained": "control/untrained/", "linear codec": "control/linear_codec/"}
COLOURS = {"map": "#0072b2", "pooled": "#d55e00"}


class Kind(NamedTuple):
    """What a row of the table is of; omega is that of the hybrids alone."""

    name: str
    layout: str
    omega: float | None = None


SeedResults = dict[Kind, list[dict[str, float]]]  # the results of each seed


def read(folders: list[Path]) -> SeedResults:
    """The runs and their controls; in the order autoencoder, contrastive, hybrids by omega.

    Raises:
        UserError: a folder is no evaluated run, its encoder has no latent, or runs that do not differ in
            their seed alone would make one row.
    """
    rows: SeedResults = {}
    listed, meanings = set(), {}
    for folder in folders:
        for name in ("recipe.yaml", "results.json"):
            if not (folder / name).exists():
                raise UserError(f"{folder}: {name} is missing; give folders of runs that were evaluated")
        loaded = load_saved(folder / "recipe.yaml")
        recipe = loaded.recipe
        results = json.loads((folder / "results.json").read_text())
        layout, objective = getattr(recipe.encoder, "layout", None), recipe.objective
        if layout is None:
            raise UserError(f"{folder}: encoder.kind={recipe.encoder.kind} has no latent; nvae was expected")
        kind = Kind(PIXELS if objective.kind == "autoencoder" else CONTRAST, layout)
        if objective.kind == "hybrid":
            kind = Kind(DETACHED if objective.detach_y else HYBRID, layout, objective.weighed()[0])
        meaning = loaded.fingerprint() | {"images": recipe.images}
        for other, known in meanings.setdefault(kind, {}).items():
            changed = differences(known, meaning)
            if [line.partition(":")[0] for line in changed] != ["seed"]:
                raise UserError(
                    f"{folder} and {other} would make one row, so they must differ in the seed alone; "
                    f"they differ in: {'; '.join(changed[:5]) or 'nothing'}"
                )
        meanings[kind][folder] = meaning
        rows.setdefault(kind, []).append(results)
        for name, prefix in CONTROLS.items():
            figures = {key.removeprefix(prefix): v for key, v in results.items() if key.startswith(prefix)}
            if figures and (name, layout, recipe.seed) not in listed:  # equal in all runs of a seed
                listed.add((name, layout, recipe.seed))
                rows.setdefault(Kind(name, layout), []).append(figures)
    order = [*CONTROLS, PIXELS, CONTRAST, HYBRID, DETACHED]
    return dict(sorted(rows.items(), key=lambda row: (row[0].layout, order.index(row[0].name), row[0].omega)))


def mean(seeds: list[dict[str, float]], key: str) -> float | None:
    """The mean over seeds; None where it was not measured."""
    values = [results[key] for results in seeds if key in results]
    return sum(values) / len(values) if values else None


def cell(seeds: list[dict[str, float]], key: str, decimals: int, factor: float) -> str:
    """The mean, and half of the range where there are several seeds."""
    values = [factor * results[key] for results in seeds if key in results]
    if not values:
        return ""
    spread = f" ± {(max(values) - min(values)) / 2:.{decimals}f}" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.{decimals}f}{spread}"


def table(rows: SeedResults) -> str:
    """Rows of Markdown."""
    lines = ["| run | layout | ω | " + " | ".join(COLUMNS) + " |", "|---|---|---:|" + "---:|" * len(COLUMNS)]
    for kind, seeds in rows.items():
        omega = "" if kind.omega is None else f"{kind.omega:g}"
        cells = [cell(seeds, *column) for column in COLUMNS.values()]
        lines.append(f"| {kind.name} | {kind.layout} | {omega} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(path: Path, rows: SeedResults) -> None:
    """The probe on y over the error of an image: a curve of each layout, its controls as straight lines."""
    figure = Figure(figsize=(9.2, 5.0), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    points = {}
    for kind, seeds in rows.items():
        accuracy, error = mean(seeds, "probe/linear/y"), mean(seeds, "reconstruction/sse")
        points[kind] = (error, None if accuracy is None else 100 * accuracy)
    for layout, colour in COLOURS.items():
        curve = {k: p for k, p in points.items() if k[:2] == (HYBRID, layout)}
        if curve:
            axes.plot(*zip(*curve.values(), strict=True), "-o", color=colour, label=f"hybrid, {layout}")
        alone = {k: p for k, p in points.items() if k[:2] == (DETACHED, layout)}
        for number, point in enumerate(alone.values()):
            label = f"{DETACHED}, {layout}" if number == 0 else None
            axes.plot(*point, "o", color=colour, markerfacecolor="white", label=label)
        for kind, point in (curve | alone).items():
            style = {"color": colour, "fontsize": 9, "textcoords": "offset points"}
            style["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
            axes.annotate(f"{kind.omega:g}", point, xytext=(7, -12), **style)
        error, accuracy = points.get(Kind(PIXELS, layout), (None, None))
        if error is not None:
            axes.axvline(error, color=colour, linestyle=":", linewidth=1.2)
            axes.plot(error, accuracy, "s:", color=colour, label=f"autoencoder alone, {layout}")
        _, accuracy = points.get(Kind(CONTRAST, layout), (None, None))
        if accuracy is not None:
            axes.axhline(accuracy, color=colour, linestyle="--", linewidth=1.2)
            axes.plot([], [], "--", color=colour, linewidth=1.2, label=f"contrast alone, {layout}")
    drawn = [p for k, p in points.items() if k.name == "linear codec"]
    for error, _ in drawn[:1]:
        axes.axvline(error, color=PALE, linewidth=1.2, label="linear codec of equal size")
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    axes.set_xlabel("squared error an image, pixels in [0, 1] (less is better)", color=INK)
    axes.set_ylabel("linear probe on y, % (more is better)", color=INK)
    axes.set_title("What the two bounds trade; numbers at the points: ω", loc="left", color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    bare(axes, ("top", "right"))
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    save(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of evaluated runs")
    parser.add_argument("--to", type=Path, help="draw the curve into this PNG file")
    options = parser.parse_args()
    try:
        rows = read(options.runs)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(rows))
    if options.to:
        draw(options.to, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
