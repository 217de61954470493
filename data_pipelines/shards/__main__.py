"""Writes and verifies WebDataset shards with an index.

python -m data_pipelines.shards source=digits to=data/digits
python -m data_pipelines.shards source=cifar10 from=data/raw to=data/cifar10
python -m data_pipelines.shards source=folder from=photos to=data/photos
python -m data_pipelines.shards source=wds from='laion/*.tar' to=data/laion
python -m data_pipelines.shards verify data/cifar10

source=   digits    scikit-learn's handwritten digits, embedded
          cifar10, cifar100    the official archive or its folder; fetched when from= is left out
          stl10     the official folder stl10_binary: train, test and unlabelled
          folder    image files: train/CLASS/..., val/CLASS/... or CLASS/..., or no classes at all
          wds       WebDataset tars, indexed where they lie: train/*.tar, name-val-000000.tar, ...
from=     the source's own files: a folder, an archive, for wds a folder or a quoted pattern
to=       the folder to make; after any interruption, the same command continues
shard=    images a shard; digits 500, cifar10 and cifar100 5000, stl10 and folder 1000
workers=  processes; one in 5000 images and one a tar, up to the cores
test_percent=   of folder and wds without splits: how many in 100 become test, by a hash of each name; 10
label=    of wds: the key of the label in <key>.json; <key>.cls when it is left out. classes.txt beside the
          tars names the classes, one a line

Nothing unreadable stops it: such images are named, left out and counted.
"""

import re
import sys
import time
from pathlib import Path

from data_pipelines.common.errors import UserError
from data_pipelines.common.suggest import closest, did_you_mean
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.shards.make import is_made, make
from data_pipelines.shards.verify import verify


def main(arguments: list[str]) -> int:
    """The command. Returns its exit status: 1 where verify found something, 2 for a user's mistake."""
    try:
        if arguments[:1] == ["verify"] and len(arguments) == 2 and "=" not in arguments[1]:
            return _verify(arguments[1])
        if {"-h", "--help"} & set(arguments):
            print(__doc__.strip())
            return 0
        if not arguments or not all("=" in argument for argument in arguments):
            print(__doc__.strip(), file=sys.stderr)
            return 2
        return _make(_options(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130


def _options(arguments: list[str]) -> dict:
    known, options = ("source", "from", "to", "shard", "workers", "test_percent", "label"), {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in known:
            hint = did_you_mean(closest(key, known)) or ";"
            raise UserError(f"{argument}: unknown key {key!r}{hint} known: {', '.join(known)}")
        if key in options or not value:
            what = "given twice" if key in options else "has no value"
            raise UserError(f"{argument}: {what}; give {key}= once")
        if key in ("shard", "workers"):
            if not re.fullmatch("[1-9][0-9]*", value):
                raise UserError(f"{argument}: expected a whole number of at least 1")
            value = int(value)
        if key == "test_percent":
            if not re.fullmatch("[0-9]{1,2}", value):
                raise UserError(f"{argument}: expected a whole number from 0 to 99")
            value = int(value)
        options[key] = value
    for key in ("source", "to"):
        if key not in options:
            raise UserError(f"{key}= is missing; for example source=digits to=data/digits")
    return options


def _make(options: dict) -> int:
    start = time.monotonic()
    to = options["to"]
    more = {"from_": options.get("from"), "images_per_shard": options.get("shard")}
    more |= {key: options.get(key) for key in ("workers", "test_percent", "label")}
    there = is_made(Path(to))
    dataset = make(options["source"], to, **more)
    parts = [f"{name} {part.images:,} in {len(part.shards)} shards" for name, part in dataset.splits.items()]
    print(f"{to}: {dataset.source}, {len(dataset.classes)} classes; images: {', '.join(parts)}; ", end="")
    took = "made before, its source was not read again" if there else f"{time.monotonic() - start:.1f} s"
    print(f"left out: {len(dataset.left_out):,}; {took}")
    for member in dataset.left_out[:10]:
        print(f"left out: {member['member']}: {member['why']}")
    if len(dataset.left_out) > 10:
        print(f"left out: {len(dataset.left_out) - 10:,} more, named in {to}/dataset.json")
    return 0


def _verify(root: str) -> int:
    problems = verify(root)
    for line in problems:
        print(line)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems):,} problems"
        print(f"{root}: {count}; remove the folder and make it again")
        return 1
    dataset = load_dataset(root)
    images = sum(part.images for part in dataset.splits.values())
    shards = sum(len(part.shards) for part in dataset.splits.values())
    print(f"{root}: all of {images:,} images in {shards} shards are as they were written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
