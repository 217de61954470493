"""What is asked for, and what a folder was begun with: it is continued with equal options alone."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines.access import ONCE, Access
from data_pipelines.common.errors import UserError
from data_pipelines.dataset_loading import read_description
from data_pipelines.shards.official import compared_with_published
from data_pipelines.shards.turns import LOCK
from data_pipelines.shards.write import UNFINISHED
from data_pipelines.sources.archives import obtain
from data_pipelines.sources.catalog import Option, open_source
from data_pipelines.sources.source import Source


@dataclass(frozen=True)
class Request:
    """What a person wants made.

    Args:
        source: its name in `sources.catalog`.
        to: the data set's folder.
        from_: the archive or folder of the source, where it has one.
        images_per_shard: None for that of the unfinished data set, else the source's default.
        workers: processes; None for one for each 5,000 images, up to the cores.
        progress: a bar, where there is a terminal.
        access: where what is fetched is kept, and how long a transfer that fails is tried again.
        options: test_percent and label, as in `catalog.open_source`.
    """

    source: str
    to: Path
    from_: str | Path | None = None
    images_per_shard: int | None = None
    workers: int | None = None
    progress: bool = True
    access: Access = ONCE
    options: Mapping[str, Option] = field(default_factory=dict)

    def refuse_another(self) -> dict:
        """The options that the folder was begun with, such as {"source", "shard"}, or {}.

        Raises UserError where they differ from those wanted, or the folder holds something else.
        """
        wanted = {"source": self.source, "shard": self.images_per_shard, **self.options}
        if self.from_ is not None:
            wanted["from"] = os.path.abspath(self.from_)
        return _refuse_another(self.to, wanted)

    def opened(self, begun: dict) -> tuple[Source, int]:
        """The source, opened whole, and the images of a shard: mistakes are found before a shard is written.

        An unfinished data set continues with the options that it was `begun` with. Raises UserError.
        """
        from_ = begun.get("from", self.from_)
        options = {key: begun[key] for key in begun.keys() - {"source", "from", "shard"}} | dict(self.options)
        inside = from_ is not None and Path(os.path.realpath(self.to)).is_relative_to(os.path.realpath(from_))
        if self.source == "folder" and inside:
            raise UserError(f"to={self.to} lies in from={from_}, among the images; choose another folder")
        with compared_with_published(self.source, from_, self.to):
            from_ = obtain(self.source, from_, self.to, self.to / UNFINISHED, self.access, self.progress)
            source = open_source(self.source, from_, self.progress, **options)
        return source, _images_per_shard(source, begun.get("shard") or self.images_per_shard)

    @contextmanager
    def one_line(self) -> Iterator[None]:
        """Raises UserError in place of an OSError: the folder cannot be written."""
        try:
            yield
        except OSError as error:
            why, to = error.strerror or error, self.to
            if error.filename and Path(error.filename).is_relative_to(to) and Path(error.filename) != to:
                why = f"{Path(error.filename).relative_to(to)}: {why}"
            raise UserError(
                f"to={to} cannot be written ({why}); mend that or choose another folder"
            ) from None


def _images_per_shard(source: Source, per_shard: int | None) -> int:
    """The images of a shard, by default those of the source. Raises UserError: it keeps its shards."""
    if per_shard and not source.images_per_shard:
        raise UserError(
            f"shard={per_shard}: source={source.name} keeps its tars as they are; leave shard= out"
        )
    return per_shard or source.images_per_shard


def _refuse_another(to: Path, wanted: dict) -> dict:
    """The options that `to` was begun with, such as {"source", "shard"}, or {}.

    Raises UserError where they differ from those `wanted`, or the folder holds something else.
    """
    if to.exists() and not to.is_dir():
        raise UserError(f"to={to} is a file; choose a folder")
    # Listed before plan.json is read: another process may be finishing it, and plan.json goes after
    # dataset.json has come.
    others = sorted(set(os.listdir(to)) - {LOCK, UNFINISHED}) if to.exists() else []
    try:
        plan = json.loads((to / UNFINISHED / "plan.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        if (to / "dataset.json").exists():
            plan = vars(read_description(to))
        elif others:
            what = f"holds something else ({others[0]!r}); choose an empty or a new folder"
            if (to / UNFINISHED / "plan.json").exists():
                what = f"was begun, but {UNFINISHED}/plan.json is damaged; remove the folder {to}"
            raise UserError(f"to={to} {what}") from None
        else:
            return {}
    begun = _options_of(plan, to)
    for key, value in wanted.items():
        # A source with one possible content does not keep where its archive was.
        if value is None or value == begun.get(key) or (key == "from" and key not in begun):
            continue
        was = " ".join(f"{key}={value}" for key, value in begun.items() if value)
        raise UserError(f"to={to} was begun with {was}; choose another folder, or remove this one")
    return begun


def _options_of(plan: object, to: Path) -> dict:
    """The options that a data set was begun with. Raises UserError where its plan.json is damaged."""
    made_with = plan.get("made_with", {}) if isinstance(plan, dict) else None
    if not (
        isinstance(plan, dict) and isinstance(made_with, dict) and {"source", "images_per_shard"} <= set(plan)
    ):
        raise UserError(f"to={to} was begun, but {UNFINISHED}/plan.json is damaged; remove the folder {to}")
    return {"source": plan["source"], "shard": plan["images_per_shard"], **made_with}
