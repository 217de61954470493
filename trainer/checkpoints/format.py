"""The files of a checkpoint: parts in safetensors' format, with rows of tensors, and manifest.json.

A part is eight bytes with the header's length, the header (JSON), the tensors' bytes; the safetensors library
reads these files. They are written and read here by plain calls because the library maps files into memory
(a part that shrinks or a failing disk is then a SIGBUS that kills the process, not an OSError), leaves a
randomly named file when killed while writing, and makes files that only their owner may read.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from io import FileIO
from itertools import chain
from pathlib import Path

import torch

from data_pipelines.common.files import file_digest, replacing
from trainer.distributed.rows import TensorShard, row_count

FORMAT = 1
MANIFEST = "manifest.json"
BLOCK = 1 << 22  # bytes written between two updates of the digest
CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in CODES}


class Damaged(Exception):
    """A checkpoint that cannot be used; the text is the reason, in a few words."""


def folder_name(images: int) -> str:
    """Name of the folder of the checkpoint after this many images."""
    return f"images-{images:012d}"


def part_name(rank: int, world: int) -> str:
    """File name of the part that `rank` of `world` writes."""
    return f"part-{rank:05d}-of-{world:05d}.safetensors"


# ---- writing ---------------------------------------------------------------------------------------


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> dict:
    """Writes host tensors as a safetensors file, flushed; returns its "size" and "sha256".

    Raises OSError, and KeyError for a dtype that the format does not have.
    """
    header: dict[str, dict] = {"__metadata__": metadata}
    end = 0
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())  # aligns each of them
    for name, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        head = memoryview(len(text).to_bytes(8, "little") + text)
        for content in chain([head], (bytes_of(tensor.contiguous()) for _, tensor in ordered)):
            for start in range(0, len(content), BLOCK):
                digest.update(content[start : start + BLOCK])
                file.write(content[start : start + BLOCK])
        file.flush()
        os.fsync(file.fileno())
    return {"size": 8 + len(text) + end, "sha256": digest.hexdigest()}


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous host tensor, writable."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def write_part(path: Path, parts: Mapping[str, TensorShard]) -> dict:
    """Writes and flushes one rank's rows.

    Returns their description: `size` in bytes, `sha256`, and of each of `tensors` dtype, shape, first row and
    number of rows.
    """
    places = {
        name: {
            "dtype": str(part.rows.dtype).removeprefix("torch."),
            "shape": list(part.shape),
            "offset": part.offset,
            "rows": row_count(part.rows.shape),
        }
        for name, part in parts.items()
    }
    tensors = {name: part.rows for name, part in parts.items()}
    written = write_tensors(path, tensors, {"format": "pt", "tensors": json.dumps(places)})
    return written | {"tensors": places}


def whole_tensors(descriptions: list[dict]) -> dict[str, dict]:
    """The tensors in all parts together: {name: {"dtype", "shape"}}.

    Raises RuntimeError if the ranks disagree on a tensor, or if their rows do not cover it exactly once.
    """
    places: dict[str, list[dict]] = {}
    for description in descriptions:
        for name, place in description["tensors"].items():
            places.setdefault(name, []).append(place)
    for name, pieces in places.items():
        if any((p["dtype"], p["shape"]) != (pieces[0]["dtype"], pieces[0]["shape"]) for p in pieces):
            raise RuntimeError(f"ranks disagree on the shape or dtype of tensor {name!r} while saving")
        end = 0
        for piece in sorted(pieces, key=lambda p: (p["offset"], p["rows"])):
            if piece["offset"] != end:
                raise RuntimeError(f"tensor {name!r}: rows from {end} on are saved by no rank or by two")
            end += piece["rows"]
        if end != row_count(pieces[0]["shape"]):
            raise RuntimeError(f"tensor {name!r}: {end} of {row_count(pieces[0]['shape'])} rows are saved")
    return {name: {"dtype": p[0]["dtype"], "shape": p[0]["shape"]} for name, p in places.items()}


def write_manifest(folder: Path, images: int, descriptions: list[dict], extra: dict) -> None:
    """Writes manifest.json: the parts (from their descriptions in the order of ranks), `extra`, its digest.

    Raises OSError, RuntimeError as `whole_tensors` does, and ValueError if `extra` has a key of these.
    """
    world = len(descriptions)
    manifest = {
        "format": FORMAT,
        "images": images,
        "world": world,
        "parts": {
            part_name(rank, world): {"size": part["size"], "sha256": part["sha256"]}
            for rank, part in enumerate(descriptions)
        },
        "tensors": whole_tensors(descriptions),
    }
    if reserved := extra.keys() & (manifest.keys() | {"digest"}):
        raise ValueError(f"manifest entries {sorted(reserved)} are the checkpoint's own")
    manifest = json.loads(json.dumps(manifest | extra))  # as a reader parses it
    manifest["digest"] = manifest_digest(manifest)
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1))


def manifest_digest(manifest: dict) -> str:
    """sha256 (hex) of the manifest's content without the digest itself; independent of the JSON's layout."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# ---- reading ---------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict:
    """The manifest, if it is whole and of this format. Raises Damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        digest = manifest_digest(manifest) if isinstance(manifest, dict) else None
    except FileNotFoundError:
        raise Damaged(f"{MANIFEST} is missing") from None
    except OSError as error:
        raise Damaged(f"{MANIFEST} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError):
        raise Damaged(f"{MANIFEST} is not JSON") from None
    if not isinstance(manifest, dict):
        raise Damaged(f"{MANIFEST} is not an object")
    if manifest.get("format") != FORMAT:
        raise Damaged(f"{MANIFEST} is of format {manifest.get('format')!r}; this program reads {FORMAT}")
    if manifest.get("digest") != digest:
        raise Damaged(f"the digest of {MANIFEST} does not hold")
    if not _is_formed(manifest):
        raise Damaged(f"{MANIFEST} does not describe a checkpoint")
    return manifest


def _is_formed(manifest: dict) -> bool:
    """Whether the entries that readers rely on have the right types and sizes.

    The digest does not prove it: anybody can compute one.
    """
    try:
        world, parts, tensors = manifest["world"], manifest["parts"], manifest["tensors"].values()
        if type(manifest["images"]) is not int or type(world) is not int or not 0 < world == len(parts):
            return False
        if type(manifest.get("engine", "")) is not str:
            return False
        part_bytes = sum(parts[name]["size"] for name in part_names(manifest))
        if not all(type(parts[name]["sha256"]) is str for name in part_names(manifest)):
            return False
        if not all(type(n) is int and n >= 0 for tensor in tensors for n in tensor["shape"]):
            return False
        tensor_bytes = sum(
            math.prod(tensor["shape"]) * DTYPES[tensor["dtype"]].itemsize for tensor in tensors
        )
        return tensor_bytes <= part_bytes  # no reader allocates more memory than there are bytes on the disk
    except (AttributeError, KeyError, TypeError):
        return False


def part_names(manifest: dict) -> list[str]:
    """The parts' file names in the order of ranks.

    They are made from `world`, not read from the manifest, since they are used as paths.
    """
    return [part_name(rank, manifest["world"]) for rank in range(manifest["world"])]


def verify(folder: Path, digests: bool = True) -> dict:
    """Reads every byte of a checkpoint and returns its manifest. Raises Damaged.

    Without `digests` no part is read, only its size is checked.
    """
    manifest = read_manifest(folder)
    if folder.name != folder_name(manifest["images"]):
        raise Damaged(f"it holds images {manifest['images']}, which is not what its folder is called")
    for name in part_names(manifest):
        stated = manifest["parts"][name]
        try:
            size = os.stat(folder / name).st_size
            if size != stated["size"]:
                raise Damaged(f"{name} has {size} bytes instead of {stated['size']}")
            if digests and file_digest(folder / name) != stated["sha256"]:
                raise Damaged(f"the digest of {name} does not hold")
        except FileNotFoundError:
            raise Damaged(f"{name} is missing") from None
        except OSError as error:
            raise Damaged(f"{name} cannot be read: {error.strerror}") from error
    return manifest


def read_rows(path: Path, targets: dict[str, tuple[int, torch.Tensor]]) -> dict[str, int]:
    """Fills contiguous host tensors with the rows of them that are in this part.

    `targets`: name -> (first row within the whole tensor, tensor to fill). Returns the number of rows filled
    of each. Raises Damaged, OSError.
    """
    filled = {}
    with open(path, "rb", buffering=0) as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= os.stat(path).st_size - 8:
            raise Damaged(f"{path.name} has no header")
        header = json.loads(bytes(read_exactly(file, memoryview(bytearray(length)))))
        for name, place in json.loads(header["__metadata__"]["tensors"]).items():
            if name not in targets:
                continue
            first, tensor = targets[name]
            start = max(place["offset"], first)
            stop = min(place["offset"] + place["rows"], first + row_count(tensor.shape))
            if start >= stop:
                continue
            row = math.prod(place["shape"][1:]) * tensor.element_size()
            file.seek(8 + length + header[name]["data_offsets"][0] + (start - place["offset"]) * row)
            read_exactly(file, bytes_of(tensor)[(start - first) * row : (stop - first) * row])
            filled[name] = stop - start
    return filled


def read_exactly(file: FileIO, target: memoryview) -> memoryview:
    """Fills `target` from the file; one read returns 2 GiB at most on Linux. Raises Damaged, OSError."""
    done = 0
    while done < len(target):
        read = file.readinto(target[done:])
        if not read:
            raise Damaged(f"{Path(str(file.name)).name} ends too early")
        done += read
    return target
