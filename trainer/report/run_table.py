"""The table of all runs of a data set: what each was measured at, what it costs, and controls beside it."""

import json
from collections.abc import Iterable

from trainer.report.concatenation import concatenations
from trainer.report.generation import distance_columns, distances
from trainer.report.groups import Group
from trainer.report.methods import encoder_name
from trainer.report.rows import DEVICE, FIGURES, HOURS, IMAGES, LINEAR, PARTS, SEEDS, D, run_row
from trainer.report.tables import Cell, Figure, Row, Table

GAUSSIANS = {"gaussian_full": "full covariance", "gaussian_channel": "each channel alone"}
SAMPLED = ("samples", *GAUSSIANS)
CODEC = "control/linear_codec/"
CONTROLS = {"untrained network": "control/untrained/", "linear codec": CODEC}


def run_table(groups: list[Group]) -> Table:
    """Rows of the groups of one data set, then controls."""
    between, notes = concatenations(groups)
    rows = [run_row(group) for group in groups]
    rows += [*between, *_denoiser_features(groups), *_controls(groups), *_gaussians(groups)]
    columns = [*FIGURES, *distance_columns(groups, SAMPLED), D, *PARTS.values(), IMAGES, HOURS, DEVICE, SEEDS]
    return Table("Runs", groups[0].data, columns, rows, notes)


# ---- controls ------------------------------------------------------------------------------------


def _denoiser_features(groups: Iterable[Group]) -> list[Row]:
    """The best inner features of a denoiser of pixels, no latent that it decodes (arXiv 2303.09769)."""
    rows = []
    for group in groups:
        accuracy = group.figure("probe/linear/denoiser_features", 100)
        if accuracy:
            cells: dict[str, Cell] = {LINEAR["y"].title: accuracy, SEEDS.title: group.seeds()}
            rows.append(Row(f"control: the denoiser's own features, {group.label}", "control", cells))
    return rows


def _gaussians(groups: Iterable[Group]) -> list[Row]:
    """A Gaussian fitted to latents in the place of a diffusion."""
    rows = []
    for group in groups:
        for name, covariance in GAUSSIANS.items():
            if cells := distances(group, name):
                label = f"control: Gaussian fitted to z, {covariance}; {group.label}"
                rows.append(Row(label, "control", {**cells, SEEDS.title: group.seeds()}))
    return rows


def _controls(groups: Iterable[Group]) -> list[Row]:
    """Controls that runs have measured, once a seed: all runs of an encoder and a seed have the same ones."""
    rows = []
    for name, prefix in CONTROLS.items():
        by_encoder: dict[str, tuple[Group, dict[int, dict[str, float]]]] = {}
        for group in groups:
            for record in group.records:
                figures = {
                    key.removeprefix(prefix): value
                    for key, value in record.results.items()
                    if key.startswith(prefix)
                }
                if figures:
                    _, by_seed = by_encoder.setdefault(_measured_on(group, prefix), (group, {}))
                    by_seed.setdefault(record.seed, figures)
        made = [_control_row(name, group, by_seed) for group, by_seed in by_encoder.values()]
        rows += [row for row in made if any(row.cells[column.title] for column in FIGURES)]
    return rows


def _measured_on(group: Group, prefix: str) -> str:
    """What a control depends on: a linear codec on the numbers of the latent alone."""
    if prefix == CODEC:
        return str(group.latent)
    return json.dumps(group.recipe.get("encoder"), sort_keys=True)


def _control_row(name: str, group: Group, by_seed: dict[int, dict[str, float]]) -> Row:
    cells: dict[str, Cell] = {
        column.title: Figure.of([figures[key] for figures in by_seed.values() if key in figures], factor)
        for column, (key, factor) in FIGURES.items()
    }
    cells[D.title] = Figure(group.latent.size) if group.latent else None
    cells[SEEDS.title] = ", ".join(map(str, sorted(by_seed)))
    of = "" if name == "linear codec" else f" ({encoder_name(group.recipe.get('encoder') or {})})"
    return Row(f"control: {name}{of}", "control", cells)
