"""The papers' tables: Table 1 of the hybrid paper, classification and SVMs of the DIM paper.

Published figures stand in columns of their own, on the row of the run that has the method, or on one of
theirs.
"""

from collections.abc import Iterable, Sequence

from trainer.report import methods, published
from trainer.report.generation import distance_columns, distances
from trainer.report.groups import Group
from trainer.report.methods import AUTOENCODER, CONTRASTIVE, HYBRID, PIXEL_DIFFUSION
from trainer.report.published import DIM_PAPER, HYBRID_PAPER, Published
from trainer.report.rows import ERROR, INVERSION, INVERTED, SEEDS
from trainer.report.tables import Cell, Column, Row, Table

ACCURACY = Column(
    "accuracy, %", note="accuracy: of a linear probe on y; of a diffusion on pixels on the inverted noise"
)
PUBLISHED = {  # measure of TABLE_1 -> its column
    "error": Column("error, published", published=HYBRID_PAPER),
    "fid": Column("FID, published", published=HYBRID_PAPER),
    "accuracy": Column("accuracy, %, published", published=HYBRID_PAPER),
}
FEATURES = ("conv", "fc", "y")
PROBES = {"mlp": "MLP", "linear": "linear", "linear_sgd": "linear by SGD"}
PROTOCOL = "the paper's MLP has 200 units and reads features as they are, not standardised"
UNTRAINED, PIXELS = "control/untrained/", "control/pixels/"


def table_1(groups: list[Group]) -> list[Table]:
    """Error, Fréchet distance and accuracy of each method; a hybrid with each diffusion on its latents.

    No table where there is nothing but accuracies, which other tables have.
    """
    rows = []
    for group in groups:
        if group.family in (HYBRID, CONTRASTIVE, AUTOENCODER):
            rows += _codec_rows(group, [other for other in groups if other.source is group])
        elif not any(other is group.source for other in groups):  # the others are on their encoder's row
            error = group.figure(INVERSION[ERROR])
            cells: dict[str, Cell] = {ERROR.title: error, ACCURACY.title: group.figure(INVERTED, 100)}
            rows.append((group, Row(group.label, "ours", cells | distances(group, "samples"))))
    together = _beside(rows, published.TABLE_1.get(_paper_data(groups[0].data), []), PUBLISHED)
    theirs = PUBLISHED["error"], PUBLISHED["fid"], PUBLISHED["accuracy"]
    columns = [ERROR, theirs[0], *distance_columns(groups), theirs[1], ACCURACY, theirs[2]]
    table = Table("As Table 1 of the hybrid paper", groups[0].data, columns, together)
    return [table] if len(table.trimmed().columns) > 1 else []


def _codec_rows(group: Group, diffusions: Sequence[Group]) -> list[tuple[Group, Row]]:
    """An encoder's row, and one with the samples of each diffusion on its latents."""
    cells: dict[str, Cell] = {
        ERROR.title: group.figure("reconstruction/sse"),
        ACCURACY.title: group.figure("probe/linear/y", 100),
    }
    drawn = [
        (
            group,
            Row(f"{group.label} + {methods.name(other.recipe)}", "ours", cells | distances(other, "samples")),
        )
        for other in diffusions
    ]
    return drawn or [(group, Row(group.label, "ours", cells))]


def _paper_data(data: str) -> str:
    return data.partition(",")[0]


def _beside(
    rows: list[tuple[Group, Row]], listed: Sequence[Published], columns: dict[str, Column]
) -> list[Row]:
    """Rows of ours with the published figures of their method in the columns for those, then the others.

    columns: measure -> the column of its published figures.
    """
    used, together = set(), []
    for group, row in rows:
        match = next((p for p in listed if p.method in paper_names(group)), None)
        if match:
            used.add(match.method)
        together.append(Row(row.label, row.origin, row.cells | _published(match, columns)))
    return together + [
        Row(f"published: {one.method}", "published", _published(one, columns))
        for one in listed
        if one.method not in used
    ]


def _published(one: Published | None, columns: dict[str, Column]) -> dict[str, Cell]:
    figures = one.figures if one else {}
    return {columns[measure].title: figure for measure, figure in figures.items()}


def paper_names(group: Group) -> list[str]:
    """What the papers call the method of a group.

    The DIM paper names no bound where it is JSD, and matches a prior in all of its rows.
    """
    objective = group.recipe["objective"]
    if group.family == HYBRID:
        return ["Hybrid"]
    if group.family == PIXEL_DIFFUSION:
        return ["DDIM"] if objective.get("process") == "ddim" else []
    if group.family != CONTRASTIVE:
        return []
    name = methods.contrastive_name(objective).replace(", prior", "")
    return [name, name.removesuffix(" JSD")]


# ---- the DIM paper -------------------------------------------------------------------------------


def dim_tables(groups: list[Group]) -> list[Table]:
    """Classification by probes on conv, fc and y, and by SVMs; empty without runs that have such features."""
    some = [group for group in groups if any(name.endswith("/conv") for name in group.names())]
    if not some:
        return []
    data = _paper_data(groups[0].data)
    classification = _probe_table(
        "Classification, as in the DIM paper", some, PROBES, published.DIM_CLASSIFICATION.get(data, [])
    )
    svm = _probe_table("SVMs, as in the DIM paper", some, {"svm": "SVM"}, published.DIM_SVM.get(data, []))
    ours = {column.title for column in svm.columns if not column.published} - {SEEDS.title}
    measured = any(row.cells.get(title) for row in svm.rows for title in ours)
    return [classification, svm] if measured else [classification]


def _probe_table(title: str, groups: list[Group], probes: dict[str, str], listed: list[Published]) -> Table:
    columns = {f"{p}/{f}": Column(f"{name} {f}, %") for p, name in probes.items() for f in FEATURES}
    theirs = {
        name: Column(f"{column.title}, published", published=DIM_PAPER)
        for name, column in columns.items()
        if any(name in one.figures for one in listed)
    }
    rows = []
    for group in groups:
        cells: dict[str, Cell] = {c.title: group.figure(f"probe/{name}", 100) for name, c in columns.items()}
        rows.append((group, Row(group.label, "ours", cells | {SEEDS.title: group.seeds()})))
    together = _beside(rows, listed, theirs)
    together[len(rows) : len(rows)] = _probe_controls(groups, columns)
    ordered = [c for name, column in columns.items() for c in (column, theirs.get(name)) if c]
    return Table(title, groups[0].data, [*ordered, SEEDS], together, [PROTOCOL] * ("mlp" in probes))


def _probe_controls(groups: Iterable[Group], columns: dict[str, Column]) -> list[Row]:
    """The untrained networks, one row for each encoder, and raw pixels, which are one feature."""
    rows: dict[str, Row] = {}
    for group in groups:
        encoder = methods.encoder_name(group.recipe.get("encoder") or {})
        cells: dict[str, Cell] = {
            column.title: group.figure(f"{UNTRAINED}probe/{name}", 100) for name, column in columns.items()
        }
        label = f"control: untrained network ({encoder})"
        if any(cells.values()):
            rows.setdefault(label, Row(label, "control", cells))
        pixels: dict[str, Cell] = {
            column.title: group.figure(f"{PIXELS}probe/{name.partition('/')[0]}", 100)
            for name, column in columns.items()
            if name.endswith("/y")
        }
        if any(pixels.values()):
            rows.setdefault("control: raw pixels", Row("control: raw pixels", "control", pixels))
    return list(rows.values())
