"""Reads every byte of a data set again and reports what is wrong with it."""

import io
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipelines.common.errors import UserError
from data_pipelines.common.files import file_digest
from data_pipelines.common.processes import in_processes
from data_pipelines.common.shortage import raise_shortage
from data_pipelines.dataset import INDEX, Dataset, Shard, index_name, missing_parts, tar_path
from data_pipelines.dataset_loading import read_description
from data_pipelines.sources.images import Sums, decode
from data_pipelines.sources.tars import index_shard
from data_pipelines.sources.wds import samples


def verify(root: str | Path, workers: int | None = None, progress: bool = True) -> list[str]:
    """Reads every byte again and returns the problems, a line each; an empty list where there are none.

    Checked are digests, lengths, the tar's structure, the index against the tar and against each fully
    decoded image, labels, counts, mean and std. Raises UserError where there is no data set.
    """
    root = Path(root)
    try:
        dataset = read_description(root)
    except UserError as error:
        if not (root / "dataset.json").exists():
            raise
        return [str(error)]
    shards = [(split, shard) for split, part in dataset.splits.items() for shard in part.shards]
    images = sum(shard.images for _, shard in shards)
    problems: list[list[str]] = [[] for _ in shards]
    sums = Sums()
    with tqdm(desc=f"{root}", total=images, unit="image", disable=None if progress else True) as bar:
        jobs = [(dataset, shard) for _, shard in shards]
        for job, (lines, counted) in in_processes(verify_shard, jobs, images, workers):
            problems[job] = lines
            if shards[job][0] == "train":
                sums.add(counted)
            bar.update(shards[job][1].images)
    lines = [line for of_shard in problems for line in of_shard]
    if not lines and sums.mean_and_std() != (dataset.mean, dataset.std):
        lines.append(f"{root / 'dataset.json'}: mean and std are not those of the train images")
    known = {shard.name for _, shard in shards}
    for path in sorted(root.glob("*/*.tar*")):
        if path.relative_to(root).as_posix() not in known:
            lines.append(f"{path} is not in dataset.json; remove it, or make the data set again")
    return lines


def verify_shard(dataset: Dataset, shard: Shard) -> tuple[list[str], Sums]:
    """The problems of one shard and its index, and the sums over its pixels."""
    root, path, sums = dataset.root, tar_path(dataset.root, shard), Sums()
    problems = missing_parts(root, shard)
    index = _read_index(root, shard, problems)
    try:
        if path.stat().st_size == shard.bytes and file_digest(path) != shard.sha256:
            problems.append(f"{path} was changed: its digest is not dataset.json's")
        expected = index_shard(path) if shard.path is None else _expected_in_place(dataset, path, index)
    except UserError as error:
        if str(error) not in problems:  # a compressed tar is named by its length as well
            problems.append(str(error))
        return problems, sums
    except OSError:
        return problems, sums  # missing, which `missing_parts` has reported
    if len(expected) != shard.images:
        problems.append(f"{path} has {len(expected):,} images where dataset.json says {shard.images:,}")
    if index is not None and len(index) != len(expected):
        rows, images = len(index), len(expected)
        problems.append(f"{root / index_name(shard.name)} has {rows:,} rows for {images:,} images")
        index = None
    with open(path, "rb") as file:
        for row, entry in enumerate(expected):
            offset = int(entry["offset"])
            member = f"{path}: member {_name(os.pread(file.fileno(), 512, offset - 512))!r}"
            try:
                values = decode(os.pread(file.fileno(), int(entry["size"]), offset))
            except Exception as error:  # image decoders raise nearly anything
                raise_shortage(error, f"checking {path}")
                problems.append(f"{member} cannot be decoded ({error or type(error).__name__})")
                continue
            entry["height"], entry["width"] = values.shape[:2]
            sums.count(values)
            if not -1 <= entry["label"] < len(dataset.classes):
                allowed = f"0..{len(dataset.classes) - 1}, or -1 for none"
                problems.append(f"{member} has label {entry['label']}, expected {allowed}")
            if index is not None and index[row] != entry:
                problems.append(f"{member}: its index row is {index[row]}, expected {entry}")
    return problems, sums


def _expected_in_place(dataset: Dataset, path: Path, index: np.ndarray | None) -> np.ndarray:
    """The expected index over an existing tar, image sizes still 0: rows for the samples that the index has.

    Which samples it has was decided when it was made; its digest shows whether it was changed.
    """
    names = dataset.classes
    numbers = names == tuple(map(str, range(len(names))))
    listed, _ = samples(path, dataset.made_with.get("label"), None if numbers else names)
    places = {sample.image.offset: sample for sample in listed if not sample.why}
    kept = [] if index is None else [places[row] for row in index["offset"].tolist() if row in places]
    return np.array([(s.image.offset, s.image.size, 0, 0, s.label) for s in kept], dtype=INDEX)


def _read_index(root: Path, shard: Shard, problems: list[str]) -> np.ndarray | None:
    path = root / index_name(shard.name)
    try:
        data = path.read_bytes()
        if len(data) == shard.index_bytes and file_digest(path) != shard.index_sha256:
            problems.append(f"{path} was changed: its digest is not dataset.json's")
        index = np.load(io.BytesIO(data), allow_pickle=False)
        if index.dtype == INDEX and index.ndim == 1:
            return index
        problems.append(f"{path} is no index: it holds {index.dtype} {index.shape}")
    except FileNotFoundError:
        pass  # `missing_parts` has reported it
    except Exception as error:  # numpy parses a damaged header as Python, which raises nearly anything
        problems.append(f"{path} cannot be read as an index ({' '.join(str(error).split())})")
    return None


def _name(header: bytes) -> str:
    """A member's name, from the tar header that precedes its data."""
    return header[:100].split(b"\0")[0].decode("utf-8", "replace")
