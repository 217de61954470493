"""Compares what two runs left, file by file; for benchmarks/unchanged.sh.

The same run made twice differs in what is listed here, and in nothing else. A journal's lines are compared in
their order by kind, name, images and value, without `time`; checkpoints and the encoder tensor by tensor, bit
by bit, with the cut into parts; manifests by all that they say but for sizes and digests of the parts' files;
`recipe.yaml`, also the copy in the encoder, but for the folder of outputs; other JSON by its values; all else
by its bytes. Both folders hold the same files.
"""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace

from unchanged_tensors import first_bytes, first_numbers, header

CLOCKS = ("images_per_second", "data_wait")  # metrics of the journal and of MLflow: speed
OWN = ("journal.id", "journal.receipt")  # tags of the journal and of MLflow: random, new in each run
# Files that are there on both sides and whose content is not compared: MLflow's address; a drawing of CLOCKS.
UNREAD = ("delivered.json", "figures/curves.png")
PATHS = ("outputs:",)  # beginnings of lines of recipe.yaml
RENAMED = {"patience": "retry_seconds"}  # keys of recipe.yaml by their names today; their values are compared


@dataclass(frozen=True)
class Declared:
    """A difference that is meant.

    file: a pattern of its path in the run's folder. name: a pattern of what differs in it: a tensor's name, a
    key of JSON, of a journal `KIND NAME FIELD at IMAGES`, of text `line N`. interrupted: only where a run did
    not end by itself, or failed.
    """

    why: str
    file: str
    name: str = "*"
    interrupted: bool = False


DECLARED = [
    Declared("images that were really seen", "failed", "line 1", interrupted=True),
    Declared("images that were really seen", "journal.jsonl", "end end.* images at *", interrupted=True),
]

SHOWN = 12  # differences of a run that are printed; the rest is counted, and in the log


@dataclass
class Report:
    """Differences of one run, each printed as it is found, and how much was compared."""

    run: str
    interrupted: bool = False
    log: Path | None = None
    differences: int = 0
    declared: int = 0
    checkpoints: int = 0
    tensors: int = 0
    lines: int = 0
    files: int = 0

    def differs(self, file: str, name: str, old: object, new: object) -> None:
        """Tells one difference, unless it is declared."""
        admitted = [one for one in DECLARED if self.interrupted or not one.interrupted]
        if any(fnmatchcase(file, one.file) and fnmatchcase(name, one.name) for one in admitted):
            self.declared += 1
            return
        self.differences += 1
        line = f"DIFFERS  {self.run}  {file}  {name}: old {shown(old)}, new {shown(new)}"
        if self.log:
            with open(self.log, "a") as log:
                print(line, file=log)
        if self.differences <= SHOWN:
            print(line, flush=True)
        elif self.differences == SHOWN + 1:
            print(f"DIFFERS  {self.run}  and more: {self.log}", flush=True)

    def values(self, file: str, old: object, new: object) -> None:
        """Compares what JSON holds, key by key."""
        one, other = dict(leaves(old)), dict(leaves(new))
        for key in dict.fromkeys([*one, *other]):
            before, after = one.get(key, ABSENT), other.get(key, ABSENT)
            if repr(before) != repr(after):  # as text, in which NaN equals itself and 1 is not 1.0
                self.differs(file, key or "value", before, after)


ABSENT = SimpleNamespace()


def shown(value: object) -> str:
    text = "(absent)" if value is ABSENT else value if isinstance(value, str) else repr(value)
    return text if len(text) <= 160 else f"{text[:157]}..."


def leaves(value: object, at: str = "") -> Iterator[tuple[str, object]]:
    """Each value within nested JSON by its dotted key; the order of keys has no meaning."""
    items = list(
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    if not items:
        yield at, value
    for key, inner in items:
        yield from leaves(inner, f"{at}.{key}" if at else str(key))


def files(folder: Path) -> list[str]:
    """All files below a folder, links as files."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- a run's folder ----------------------------------------------------------------------------------


def compare_runs(report: Report, old: Path, new: Path, continued: bool = False) -> None:
    """Everything in the folders of two runs.

    continued: the new one was ended half way and went on, and may be saved where it was ended.
    """
    names, others = files(old), files(new)
    if continued:
        stops = tuple(f"checkpoints/images-{images:012d}/" for images in resumed(report, new))
        others = [name for name in others if name in names or not name.startswith(stops)]
    for name in sorted(set(names) ^ set(others)):
        sides = ("there", ABSENT) if name in names else (ABSENT, "there")
        report.differs(name, "file", *sides)
    for name in sorted(set(names) & set(others)):
        report.files += 1
        if name == "journal.jsonl":
            compare_journals(report, name, old / name, new / name, ("resumed", "end") if continued else ())
        elif name not in UNREAD:
            compare_files(report, name, old / name, new / name)


def resumed(report: Report, run: Path) -> list[int]:
    """Images seen at which a run went on; it must have."""
    starts = [record["images"] for record in records(run / "journal.jsonl") if record["kind"] == "resumed"]
    if not starts or not all(starts):
        report.differs("journal.jsonl", "resumed", "goes on from a checkpoint", f"went on at {starts}")
    return starts


def compare_files(report: Report, name: str, old: Path, new: Path) -> None:
    last = name.rpartition("/")[2]
    if last.endswith(".safetensors"):
        compare_tensors(report, name, old, new)
    elif last == "manifest.json":
        report.checkpoints += 1
        report.values(name, *(manifest(path) for path in (old, new)))
    elif last.endswith(".json"):
        report.values(name, *(json.loads(path.read_bytes()) for path in (old, new)))
    elif last == "recipe.yaml":
        compare_text(report, name, *(without_paths(path.read_text()) for path in (old, new)))
    elif old.read_bytes() != new.read_bytes():
        try:
            compare_text(report, name, old.read_text(), new.read_text())
        except UnicodeDecodeError:
            report.differs(name, "bytes", *first_bytes(old.read_bytes(), new.read_bytes()))


def manifest(path: Path) -> dict:
    """What a manifest means: sizes and digests are those of bytes that are compared by themselves."""
    content = json.loads(path.read_bytes())
    return content | {"parts": sorted(content["parts"]), "digest": None}


def without_paths(text: str) -> str:
    """The lines of a recipe that are compared, renamed keys by their new name."""
    lines = [line for line in text.split("\n") if not line.startswith(PATHS)]
    return "\n".join(map(renamed, lines))


def renamed(line: str) -> str:
    key = line.partition(":")[0].strip()
    if key not in {*RENAMED, *RENAMED.values()}:
        return line
    return " ".join(line.replace(key, RENAMED.get(key, key), 1).split())  # the name decides the padding


def compare_text(report: Report, name: str, old: str, new: str) -> None:
    one, other = old.split("\n"), new.split("\n")
    for number in range(max(len(one), len(other))):
        before, after = (side[number] if number < len(side) else ABSENT for side in (one, other))
        if before != after:
            report.differs(name, f"line {number + 1}", before, after)


# ---- tensors -----------------------------------------------------------------------------------------


def compare_tensors(report: Report, name: str, old: Path, new: Path) -> None:
    """Two safetensors files: metadata, names, dtypes, shapes, bits."""
    (one, old_bytes), (other, new_bytes) = header(old), header(new)
    report.values(name, *(metadata(side) for side in (one, other)))
    for tensor in dict.fromkeys([*one, *other]):
        if tensor == "__metadata__":
            continue
        report.tensors += 1
        if tensor not in one or tensor not in other:
            sides = ("there", ABSENT) if tensor in one else (ABSENT, "there")
            report.differs(name, tensor, *sides)
            continue
        places = one[tensor], other[tensor]
        kinds = [f"{place['dtype']} {place['shape']}" for place in places]
        if kinds[0] != kinds[1]:
            report.differs(name, tensor, *kinds)
            continue
        contents = [
            data[slice(*place["data_offsets"])]
            for data, place in zip((old_bytes, new_bytes), places, strict=True)
        ]
        if contents[0] != contents[1]:
            report.differs(name, tensor, *first_numbers(places[0]["dtype"], *contents))


def metadata(described: dict) -> dict:
    """A file's own words; those that are JSON or a recipe are read as such."""
    entries = {}
    for key, text in described.get("__metadata__", {}).items():
        try:
            entries[key] = without_paths(text) if key == "recipe" else json.loads(text)
        except ValueError:
            entries[key] = text
    return entries


# ---- journals and MLflow -----------------------------------------------------------------------------


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def compare_journals(report: Report, name: str, old: Path, new: Path, left_out: tuple[str, ...]) -> None:
    """Line by line, but for kinds left out: of a continued run those that tell of its starts and ends."""
    lines = [[r for r in records(path) if r["kind"] not in left_out] for path in (old, new)]
    one, other = ({line_key(r): r for r in side} for side in lines)
    report.lines += len(lines[0])
    gone: dict[tuple, list] = {}
    for key in dict.fromkeys([*one, *other]):
        if key in one and key in other:
            compare_records(report, name, one[key], other[key])
        else:
            gone.setdefault((*key[:2], key in one), []).append((one.get(key) or other[key])["images"])
    for (kind, what, before), images in gone.items():
        line = f"{len(images)} lines, at {images[:3]} images"
        report.differs(name, f"{kind} {what}", *((line, ABSENT) if before else (ABSENT, line)))
    twice = [len(side) - len(keyed) for side, keyed in zip(lines, (one, other), strict=True)]
    if twice[0] != twice[1]:
        report.differs(name, "lines that are there twice", *twice)
    if one.keys() == other.keys() and list(one) != list(other):
        at = next(i for i, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
        report.differs(name, f"order, from line {at + 1} on", *(list(side)[at] for side in (one, other)))


def line_key(record: dict) -> tuple:
    """What names a line: events are numbered, others are there once at so many images."""
    event = record["kind"] in ("resumed", "warning", "end")
    return (record["kind"], record["name"]) if event else (record["kind"], record["name"], record["images"])


def compare_records(report: Report, file: str, old: dict, new: dict) -> None:
    for key in sorted((old.keys() | new.keys()) - {"time"}):
        before, after = old.get(key, ABSENT), new.get(key, ABSENT)
        if key == "value" and old["name"] in (*CLOCKS, *OWN):
            before, after = type(before), type(after)
        if repr(before) != repr(after):
            report.differs(file, f"{old['kind']} {old['name']} {key} at {old['images']}", before, after)


TABLES = {  # of MLflow's database; times come from the journal, which has its own
    "metrics": "SELECT r.name, m.key, m.step, m.value, m.is_nan FROM metrics m JOIN runs r USING (run_uuid)",
    "params": "SELECT r.name, p.key, 0, p.value, 0 FROM params p JOIN runs r USING (run_uuid)",
    "tags": "SELECT r.name, t.key, 0, t.value, 0 FROM tags t JOIN runs r USING (run_uuid)",
    "runs": "SELECT r.name, 'status', 0, r.status, r.source_type FROM runs r",
}


def compare_mlflow(report: Report, old: Path, new: Path) -> None:
    """What was delivered into two SQLite files."""
    tables = []
    for path in (old, new):
        rows = {}
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        for table, query in TABLES.items():
            for run, key, step, value, more in connection.execute(query):
                own = key in (*CLOCKS, *OWN)
                rows[f"{table} {run} {key} {step}"] = "its own" if own else f"{value} {more}"
        connection.close()
        tables.append(rows)
    report.lines += len(tables[0])
    report.values("mlflow.db", *tables)
