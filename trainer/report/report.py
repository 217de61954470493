"""The report of some folders: all tables, and lines about what is amiss."""

from dataclasses import dataclass
from pathlib import Path

from trainer.report.folders import read_runs
from trainer.report.generation import generation_tables
from trainer.report.groups import Group, grouped
from trainer.report.paper_tables import dim_tables, table_1
from trainer.report.records import RunRecord
from trainer.report.rows import DEVICE, HOURS, IMAGES
from trainer.report.run_table import run_table
from trainer.report.tables import Cell, Column, Figure, Row, Table

ROW, SEED, MADE_OF = Column("row"), Column("seed"), Column("from")


@dataclass(frozen=True)
class Report:
    """Tables in the order of their data sets, lines about runs, and the runs whose figures are in tables."""

    tables: list[Table]
    lines: list[str]
    runs: list[RunRecord]


def make_report(folders: list[Path]) -> Report:
    """Reads the runs below folders, each of which may be a run, and makes their tables.

    Raises:
        UserError: a folder is missing, or there is no run in any.
    """
    records, lines = read_runs(folders)
    groups, repeated = grouped(records)
    by_data: dict[str, list[Group]] = {}
    for group in groups:
        by_data.setdefault(group.data, []).append(group)
    tables: list[Table] = []
    for some in by_data.values():
        tables += [*table_1(some), run_table(some), *dim_tables(some)]
        tables += [table for group in some for table in generation_tables(group)]
    tables += [folder_table(groups)] if groups else []
    trimmed = [table.trimmed() for table in tables]
    runs = [record for group in groups for record in group.records]
    return Report([table for table in trimmed if table.rows], lines + repeated, runs)


def folder_table(groups: list[Group]) -> Table:
    """Which runs each row is made of."""
    rows = []
    for group in groups:
        for record in group.records:
            hours = None if record.hours is None else Figure(record.hours)
            cells: dict[str, Cell] = {
                ROW.title: group.label,
                SEED.title: str(record.seed),
                IMAGES.title: Figure(record.images),
                HOURS.title: hours,
                DEVICE.title: record.device,
            }
            rows.append(Row(str(record.folder), "ours", cells))
    columns = [ROW, SEED, IMAGES, HOURS, DEVICE]
    return Table("Folders", "all data", columns, rows)
