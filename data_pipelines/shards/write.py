"""Writes one shard with its index, so that it is there as a whole or not at all."""

import hashlib
import io
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data_pipelines.common.errors import UserError
from data_pipelines.common.files import file_digest, replace_bytes, replacing
from data_pipelines.dataset import index_name
from data_pipelines.sources.images import Sums
from data_pipelines.sources.tars import index_shard
from data_pipelines.sources.wds import Tars

UNFINISHED = ".making"  # folder inside the data set's, for as long as it is being made


def write_shard(chunk, root: Path, name: str, classes: int) -> dict:
    """Writes a chunk's images to root/name, its index beside it, and returns what is to be known of them.

    chunk: has digest() and samples(), as `sources.Pixels`; or is a `wds.Tars`, which is indexed where it
    lies. classes: how many, a label lies in 0..classes-1. A sample that cannot be decoded or has another
    label is left out and named. What was written before, from equal input, and still has its digests is
    kept as it is.

    Returns the shard's entry of dataset.json with "left_out" and "sums" and "classes", the number of
    classes up to its highest label, beside it. Raises UserError when the disk refuses.
    """
    note = root / UNFINISHED / (name.replace("/", "-") + ".json")
    # Until it is whole it has a name of its own process: a killed run's worker may be at its last write.
    part = root / UNFINISHED / f"{name.replace('/', '-')}.{os.getpid()}.part"
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
    """Where a tar lies, seen from root if both are in one folder, which may then be moved; else absolute."""
    above = os.path.realpath(root.parent)
    if os.path.realpath(tar).startswith(os.path.join(above, "")):
        return os.path.relpath(os.path.realpath(tar), os.path.realpath(root))
    return tar


def _finished(note: Path, root: Path, name: str, wanted: str) -> dict | None:
    try:
        found = json.loads(note.read_bytes())
        entry = found["entry"]
        if (
            found["input"] == wanted
            and file_digest(root / entry.get("path", name)) == entry["sha256"]
            and file_digest(root / index_name(name)) == entry["index_sha256"]
        ):
            return entry
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not finished, or torn: it is written again
    return None


def _write_tar(chunk, path: Path, classes: int) -> tuple[np.ndarray, list[dict], Sums]:
    """Writes all that can be used; its index, what is left out, and sums over pixels."""
    # Here, because it imports torch, which verifying has no need of. It is what its ShardWriter writes with.
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
                why = " ".join(str(error).split()) or type(error).__name__
                left_out.append({"member": sample.name, "why": why})
                continue
            tar.write({"__key__": sample.key, picture.kind: picture.encoded, "cls": str(label).encode()})
            sizes.append(picture.values.shape[:2])
            sums.count(picture.values)
    index = index_shard(path)
    index["height"], index["width"] = np.reshape(sizes, (-1, 2)).T
    return index, left_out, sums
