"""Writes one shard with its index, whole or not at all."""

import hashlib
import io
import json
import os
import socket
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data_pipelines.common.errors import UserError
from data_pipelines.common.files import file_digest, replace_bytes, replacing
from data_pipelines.common.shortage import raise_shortage
from data_pipelines.dataset import Shard, index_name
from data_pipelines.sources.images import Sums
from data_pipelines.sources.source import Chunk
from data_pipelines.sources.tars import index_shard
from data_pipelines.sources.wds import Tars

UNFINISHED = ".making"  # folder inside the data set's, for as long as it is being made


def note_of(root: Path, name: str) -> Path:
    """The file that says that a shard of an unfinished data set is written."""
    return root / UNFINISHED / (name.replace("/", "-") + ".json")


def temporary(root: Path, name: str) -> Path:
    """Where this process writes a file of an unfinished data set until it is whole.

    Machine and process are in its name: the worker of a killed run, or another part's, may be writing too.
    """
    return root / UNFINISHED / f"{name}.{socket.gethostname()}-{os.getpid()}.part"


def write_shard(chunk: Chunk | Tars, root: Path, name: str, classes: int) -> dict:
    """Writes a chunk's images to root/name and its index beside it.

    A sample that cannot be decoded or has a wrong label is left out and named. A shard that was written
    before, from equal input, and still has its digests is kept.

    Args:
        chunk: a `wds.Tars` is indexed in place.
        classes: their number; a label lies in 0..classes-1.

    Returns:
        The shard's entry of dataset.json, and beside it "left_out", "sums" and "classes": the number of
        classes up to its highest label.

    Raises:
        UserError: the disk refuses.
    """
    note = note_of(root, name)
    part = temporary(root, name.replace("/", "-"))
    try:
        wanted = chunk.digest()
        if (done := _finished(note, root, name, wanted)) is not None:
            return done
        (root / name).parent.mkdir(exist_ok=True)
        place = {}
        if isinstance(chunk, Tars):
            place["path"] = _reference(chunk.paths[0], root)
            index, left_out, sums = chunk.index()
        else:
            with replacing(root / name, temporary=part):
                index, left_out, sums = _write_tar(chunk, part, classes)
        tar = root / place.get("path", name)
        buffer = io.BytesIO()
        np.save(buffer, index, allow_pickle=False)
        replace_bytes(root / index_name(name), buffer.getvalue(), part)
        entry = {
            "name": name,
            "images": len(index),
            "bytes": tar.stat().st_size,
            "sha256": file_digest(tar),
            "index_bytes": len(buffer.getvalue()),
            "index_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
            **place,
            "left_out": left_out,
            "sums": asdict(sums),
            "classes": int(index["label"].max(initial=-1)) + 1,
        }
        replace_bytes(note, json.dumps({"input": wanted, "entry": entry}).encode(), part)
    except OSError as error:
        what = f"{root / name} cannot be written"
        if error.filename and not str(error.filename).startswith(str(root)):
            what = f"{error.filename} cannot be read"
        raise UserError(
            f"{what} ({error.strerror or error}); "
            "mend that and give the same command, which continues from here"
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return entry


def _reference(tar: str, root: Path) -> str:
    """The path of a tar: relative to root if both are in one folder, which may be moved; else absolute."""
    above = os.path.realpath(root.parent)
    if os.path.realpath(tar).startswith(os.path.join(above, "")):
        return os.path.relpath(os.path.realpath(tar), os.path.realpath(root))
    return tar


def _finished(note: Path, root: Path, name: str, wanted: str) -> dict | None:
    """The entry of a shard that was written before from the same input; None: it is to be written."""
    try:
        noted = json.loads(note.read_bytes())
        entry = noted["entry"]
        if (
            noted["input"] == wanted
            and {*Shard.__dataclass_fields__, "left_out", "sums", "classes"} - {"path"} <= entry.keys()
            and file_digest(root / entry.get("path", name)) == entry["sha256"]
            and file_digest(root / index_name(name)) == entry["index_sha256"]
        ):
            return entry
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # not finished, or damaged: it is written again
    return None


def _write_tar(chunk: Chunk, path: Path, classes: int) -> tuple[np.ndarray, list[dict], Sums]:
    """Writes all usable samples; returns the index, what is left out, and sums over pixels."""
    # Imported here, because it imports torch, which `verify` does not need.
    from webdataset import TarWriter

    sizes, left_out, sums = [], [], Sums()
    # A fixed time and owner: equal input gives equal bytes, and a second run the same digests.
    fixed = {"mtime": 0, "user": "user", "group": "user"}
    with open(path, "wb") as stream, TarWriter(stream, encoder=False, **fixed) as tar:
        for sample in chunk.samples():
            label = -1 if sample.label is None else sample.label
            try:
                picture = sample.load()
                if sample.label is not None and not 0 <= label < classes:
                    raise ValueError(f"label {label} is not in 0..{classes - 1}")
            except Exception as error:  # image decoders raise nearly anything
                raise_shortage(error, f"writing {path}")
                why = " ".join(str(error).split()) or type(error).__name__
                left_out.append({"member": sample.name, "why": why})
                continue
            tar.write({"__key__": sample.key, picture.kind: picture.encoded, "cls": str(label).encode()})
            sizes.append(picture.values.shape[:2])
            sums.count(picture.values)
    index = index_shard(path)
    index["height"], index["width"] = np.reshape(sizes, (-1, 2)).T
    return index, left_out, sums
