"""Runs that differ in their seed alone, as one group: a row of the tables."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.recipe.fingerprint import changed, fingerprint
from trainer.report import methods
from trainer.report.drawings import drawing_of
from trainer.report.folders import source_places
from trainer.report.methods import Latent
from trainer.report.records import RunRecord
from trainer.report.tables import Figure


@dataclass
class Group:
    """Runs of one recipe and as many images, which differ in their seed.

    Attributes:
        source: of a diffusion on latents the group of the encoder's run, where that is among the runs.
        label: the row's name, unlike that of every other group.
    """

    records: list[RunRecord]
    meaning: dict[str, Any]
    data: str
    source: "Group | None" = None
    label: str = field(default="", compare=False)

    @property
    def recipe(self) -> dict[str, Any]:
        return self.records[0].recipe

    @property
    def family(self) -> str:
        return methods.family(self.recipe)

    @property
    def latent(self) -> Latent | None:
        """That of the encoder, also for a diffusion on its latents."""
        return self.source.latent if self.source else methods.latent(self.recipe)

    def figure(self, name: str, factor: float = 1.0) -> Figure | None:
        """A figure of results.json over the seeds; None where no run has it."""
        return Figure.of([r.results[name] for r in self.records if name in r.results], factor)

    def samplings(self) -> list[tuple[int, str]]:
        """(images, drawing) of all that was sampled and measured: as the runs' recipe says first."""
        drawn = {(one.images, one.drawing) for r in self.records for one in r.sampled() if one.results}
        first = self.records[0].sampled()[0]
        return sorted(drawn, key=lambda one: (one != (first.images, first.drawing), -one[0], one[1]))

    def sampled(self, images: int, drawing: str) -> list[dict[int | None, dict[str, float]]]:
        """For each run: seed -> its figures of samples of that checkpoint that were drawn so."""
        runs = []
        for record in self.records:
            by_seed: dict[int | None, dict[str, float]] = {}
            for one in record.sampled():
                if (one.images, one.drawing) == (images, drawing) and one.results:
                    by_seed.setdefault(one.seed, one.results)
            runs.append(by_seed)
        return [by_seed for by_seed in runs if by_seed]

    def names(self) -> list[str]:
        """The names of all figures that some run has."""
        return sorted({name for record in self.records for name in record.results})

    def parameters(self, part: str) -> Figure | None:
        counts = [record.parameters[part] for record in self.records if part in record.parameters]
        figure = Figure.of(counts)
        return figure.without_spread() if figure else None

    def hours(self) -> Figure | None:
        figure = Figure.of([record.hours for record in self.records if record.hours is not None])
        return figure.without_spread() if figure else None

    def images(self) -> Figure:
        return Figure(self.records[0].images)

    def device(self) -> str:
        return ", ".join(dict.fromkeys(record.device for record in self.records if record.device))

    def seeds(self) -> str:
        return ", ".join(str(record.seed) for record in self.records)


def grouped(records: Iterable[RunRecord]) -> tuple[list[Group], list[str]]:
    """The groups of runs that have figures, and a line for each run that repeats another one.

    Encoders come first: diffusions on the latents of two seeds of one encoder are seeds of one group. An
    encoder that was not evaluated is the source of its diffusions, and no group of its own.
    """
    groups: list[Group] = []
    lines: list[str] = []
    for record in sorted(
        records, key=lambda record: (bool(record.recipe.get("from")), not record.has_figures)
    ):
        group = _new_group(record, _source(record, groups))
        same = next((other for other in groups if _is_same(other, group)), None)
        if same is None:
            groups.append(group)
            continue
        repeated = next((other for other in same.records if other.seed == record.seed), None)
        if not repeated:
            same.records.append(record)
        elif record.has_figures:
            lines.append(f"{record.folder}: left out, it repeats {repeated.folder} (recipe, seed and images)")
    _name(groups)
    shown = [group for group in groups if group.records[0].has_figures]  # those with figures came first
    for group in shown:
        group.records = sorted((r for r in group.records if r.has_figures), key=lambda record: record.seed)
    return sorted(shown, key=_place), lines


def _place(group: Group) -> tuple[str, int, str]:
    return group.data, methods.FAMILIES.index(group.family), group.label


def _new_group(record: RunRecord, source: Group | None) -> Group:
    meaning = fingerprint(record.recipe) | {"images": record.images, "from": record.recipe.get("from")}
    if record.is_diffusion:  # no fingerprint has it, since training does not depend on it
        meaning["draw"] = drawing_of(record.recipe)
    data = methods.data_name(record.recipe, record.dataset) or (source.data if source else "data unknown")
    return Group([record], meaning, data, source)


def _is_same(one: Group, other: Group) -> bool:
    """Whether two groups differ in nothing but the seed."""
    if one.source is not other.source:
        return False
    differing = set(changed(one.meaning, other.meaning)) - {"seed"}
    return not (differing - {"from"} if one.source else differing)


def _source(record: RunRecord, groups: list[Group]) -> Group | None:
    """The group of the run that `from` names: by its path, or else by its name beside this run."""
    if not record.recipe.get("from"):
        return None
    runs = [(group, other.folder) for group in groups for other in group.records]
    places = source_places(record)
    return next(
        (group for place in places for group, folder in runs if os.path.realpath(folder) == place), None
    )


def _name(groups: list[Group]) -> None:
    """Labels that are unlike each other: what differs between groups of one name stands behind it."""
    for latents in (False, True):  # whose labels name the encoder's group
        some = [group for group in groups if (group.family == methods.LATENT_DIFFUSION) == latents]
        for group in some:
            group.label = methods.name(group.recipe)
            if latents:
                run = Path(str(group.recipe["from"])).name
                group.label += f", of {group.source.label if group.source else run}"
        shown = [group for group in some if group.records[0].has_figures]
        for key in {(group.label, group.data) for group in shown}:
            _distinguish([group for group in shown if (group.label, group.data) == key])


def _distinguish(alike: list[Group]) -> None:
    if len(alike) < 2:
        return
    keys = [
        key
        for key in dict.fromkeys(key for group in alike for key in changed(alike[0].meaning, group.meaning))
        if key not in ("seed", "from")
    ]
    for group in alike:
        parts = [methods.shown_difference(key, group.meaning.get(key)) for key in keys[:2]]
        group.label += (
            f", {' '.join(parts)}" if len(keys) <= 2 and parts else f", {group.records[0].folder.name}"
        )
