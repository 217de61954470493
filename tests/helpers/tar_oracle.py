"""What source=wds takes of a tar, by the rules of data_pipelines/README.md, read slowly and on its own.

It shares no code with the product: blocks of 512 bytes are parsed by hand, in memory.
"""

import json
import unicodedata
from dataclasses import dataclass, field

from tests.helpers.folder_oracle import IMAGES, SYSTEM_FOLDERS


@dataclass
class Part:
    """A member; kind: the type in its header."""

    name: str
    kind: str
    offset: int
    data: bytes


@dataclass
class Expected:
    """What becomes of a tar.

    images: (key, offset, bytes, label), in order; left_out: (key, member, a word of why); remark: of the tar.
    """

    images: list[tuple[str, int, bytes, int]] = field(default_factory=list)
    left_out: list[tuple[str, str, str]] = field(default_factory=list)
    remark: str | None = None


def expected_of(data: bytes, label: str | None, classes: list[str] | None) -> Expected:
    archives, remark = read_archives(data)
    expected = Expected(remark=remark)
    unlabelled: list[tuple[str, int, bytes, int]] = []
    for number, parts in enumerate(archives):
        samples: dict[str, list[Part]] = {}
        for part in parts:
            base = part.name.split("/")[-1]
            key = part.name[: len(part.name) - len(base)] + base.split(".")[0]
            wanted = base.split(".")[-1].lower() in [*IMAGES, "cls", "json"] and "." in base
            if part.kind == "5" or (part.kind not in "0\0" and not wanted):
                continue
            while key.startswith("./"):
                key = key[2:]
            samples.setdefault(key if "." in base[:-1] else f"{part.name} alone", []).append(part)
        if remark == "damaged" and number == len(archives) - 1:
            keys = [key for key in samples if not key.endswith(" alone")]
            samples.pop(keys[-1] if keys else "") if keys else None
        for members in samples.values():
            base = members[0].name.split("/")[-1]
            key = members[0].name[: len(members[0].name) - len(base)] + base.split(".")[0]
            _take(expected, unlabelled, key, members, label, classes)
    if remark == "damaged" and any(image[3] >= 0 for image in expected.images):
        for image in unlabelled:
            expected.images.remove(image)
            expected.left_out.append((image[0], str(image[1]), "may have been in the part"))
    for image in [image for image in expected.images if len(image[2]) < 60]:  # shorter than a whole picture
        expected.images.remove(image)
        why = "identify it as an image" if image[2] else "an empty file"
        expected.left_out.append((image[0], str(image[1]), why))
    return expected


def _take(expected: Expected, unlabelled: list, key: str, members: list[Part], label, classes) -> None:
    names: list[str] = []
    usable = []
    for part in members:
        *folders, base = part.name.split("/")
        clutter = ["system" for name in folders if name.lower() in SYSTEM_FOLDERS]
        clutter += ["hidden" for name in [*folders, base] if name.startswith(".") and name not in (".", "..")]
        if clutter:
            expected.left_out.append((key, part.name, clutter[0]))
        elif part.name in names:
            expected.left_out.append((key, part.name, "same name"))
        else:
            usable.append(part)
            names.append(part.name)
    suffixes = {part.name: part.name.split("/")[-1].partition(".")[2].lower() for part in usable}
    images = [part for part in usable if suffixes[part.name].split(".")[-1] in IMAGES]
    images.sort(
        key=lambda part: (suffixes[part.name].count("."), IMAGES.index(suffixes[part.name].split(".")[-1]))
    )
    if not images:
        expected.left_out += [(key, part.name, "no image") for part in usable]
        return
    first = images[0]
    ending = "cls" if label is None else "json"
    stems = {part.name: suffixes[part.name].rpartition(".")[0] for part in usable}
    labels = [part for part in usable if suffixes[part.name].split(".")[-1] == ending]
    near = [part for part in labels if stems[part.name] == stems[first.name]]
    near += [part for part in labels if suffixes[part.name] == f"{suffixes[first.name]}.{ending}"]
    near += [part for part in labels if stems[part.name] == ""]
    for part in labels:
        if part not in near[:1] and stems[part.name] not in [stems[other.name] for other in images[1:]]:
            expected.left_out.append((key, part.name, "not the label"))
    expected.left_out += [(key, part.name, "first dot") for part in images[1:]]
    if first.kind not in "0\0":
        expected.left_out.append((key, first.name, "sparse" if first.kind == "S" else "link"))
        return
    value, why = label_of(near[0], label, classes) if near else (-1, "")
    if why:
        expected.left_out.append((key, first.name, why))
        return
    expected.images.append((key, first.offset, first.data, value))
    if not near:
        unlabelled.append(expected.images[-1])


def label_of(part: Part, label: str | None, classes: list[str] | None) -> tuple[int, str]:
    """The label, -1: none, and what is wrong with it."""
    if part.kind not in "0\0":
        return -1, "its label"
    if label is None:
        value = part.data.decode("utf-8", "replace").strip()
    else:
        try:
            entry = json.loads(part.data)
        except ValueError:
            return -1, "cannot be read"
        if not isinstance(entry, dict):
            return -1, "no dict"
        value = entry.get(label)
        if value is None:
            return -1, ""
    if isinstance(value, str):
        value = unicodedata.normalize("NFC", value)
        if value in (classes or []):
            return (classes or []).index(value), ""
        try:
            value = int(value)
        except ValueError:
            return -1, "expected a whole number"
    wrong = isinstance(value, (bool, float, list)) or not -1 <= value < (
        1_000_000 if classes is None else len(classes)
    )
    return (-1, "expected a whole number") if wrong else (value, "")


def read_archives(data: bytes) -> tuple[list[list[Part]], str | None]:
    """The members of each archive in a file, and "damaged", "surplus", "empty", or None."""
    archives: list[list[Part]] = [[]]
    position, name = 0, None
    while True:
        block = data[position : position + 512]
        if len(block) < 512:
            return archives, "damaged"
        if not any(block):
            if position + 1024 > len(data) or any(data[position : position + 1024]):
                return archives, "damaged"
            while position < len(data) and not any(data[position : position + 512]):
                position += 512
            if position >= len(data):
                return archives, None if any(archives) else "empty"
            if not _is_header(data[position : position + 512]):
                return archives, "surplus"
            archives.append([])
            continue
        if not _is_header(block):
            return archives, "damaged"
        size, kind = int(block[124:135], 8), chr(block[156])
        start = position + 512
        body = data[start : start + size]
        if kind in "0\0SLx" and len(body) < size:
            return archives, "damaged"
        position = start + (size + 511) // 512 * 512 if kind in "0\0SLx" else start
        if kind == "L":
            name = body.rstrip(b"\0").decode()
        elif kind == "x":
            name = next(r.split("path=", 1)[1] for r in body.decode().splitlines() if " path=" in r)
        else:
            name = name or block[:100].rstrip(b"\0").decode("utf-8", "surrogateescape")
            archives[-1].append(Part(name, kind, start, body))
            name = None


def _is_header(block: bytes) -> bool:
    try:
        checksum = int(block[148:154], 8)
    except ValueError:
        return False
    return len(block) == 512 and checksum == sum(block[:148]) + 8 * 32 + sum(block[156:])
