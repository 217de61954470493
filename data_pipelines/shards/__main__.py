"""The command that makes and verifies data sets: python -m data_pipelines.shards"""

import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from data_pipelines.access import Access
from data_pipelines.common.arguments import HELP_WORDS, MISTAKE, help_page
from data_pipelines.common.errors import UserError
from data_pipelines.common.home import expand_home
from data_pipelines.common.output import outlive_readers
from data_pipelines.common.paths import refused_paths
from data_pipelines.common.suggest import closest, did_you_mean
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.shards.make import is_made, make_whole
from data_pipelines.shards.parts import Part, make_part
from data_pipelines.shards.request import Request
from data_pipelines.shards.summary import summary, without_test
from data_pipelines.shards.verify import verify

PROGRAM = "python -m data_pipelines.shards"
RETRY_SECONDS = 60.0  # for which a transfer that breaks off is continued
HELP = help_page(
    "Makes a data set: WebDataset shards with an index, or an index of tars where they lie.\n"
    "Nothing unreadable stops it: such images are named, left out and counted.",
    [f"{PROGRAM} source=SOURCE [from=FILES] to=DIR [KEY=VALUE ...]", f"{PROGRAM} verify DIR"],
    {
        "source=digits": "scikit-learn's handwritten digits, embedded",
        "source=cifar10": "the official archive or its folder, also cifar100",
        "source=stl10": "the official archive or its folder stl10_binary: train, test and unlabelled",
        "source=folder": "image files: train/CLASS/..., val/CLASS/... or CLASS/..., or no classes at all",
        "source=wds": "WebDataset tars, indexed where they lie: train/*.tar, name-val-000000.tar, ...",
        "from=FILES": "the source's own files: a folder, an archive, for wds a folder or a quoted pattern; "
        "left out, cifar10, cifar100 and stl10 are taken from the folder raw beside DIR, or fetched",
        "to=DIR": "the folder to make; after any interruption, the same command continues",
        "shard=N": "images a shard; default: digits 500, cifar10 and cifar100 5000, stl10 and folder 1000",
        "workers=N": "processes; default: one in 5000 images and one a tar, up to the cores",
        "test_percent=N": "of folder and wds without splits: how many in 100 become test, by a hash of each "
        "name; default: 10",
        "label=KEY": "of wds: the key of the label in <key>.json; default: <key>.cls. classes.txt beside the "
        "tars names the classes, one a line",
        "part=I/N": "makes every N-th shard from the I-th on: parts run at the same time, on machines that "
        "share DIR, and the last to end completes the data set; a part that was killed is given again",
        "verify DIR": "reads every byte of a data set again",
    },
    [
        f"{PROGRAM} source=digits to=data/digits",
        f"{PROGRAM} source=cifar10 to=data/cifar10",
        f"{PROGRAM} source=folder from=photos to=data/photos",
        f"{PROGRAM} source=wds from='laion/*.tar' to=data/laion",
        f"{PROGRAM} source=folder from=ILSVRC/Data/CLS-LOC to=data/imagenet part=3/16",
    ],
    {
        0: "the data set is made, also by an earlier start; with part=: that part is",
        1: "verify: something differs from what was written",
        2: MISTAKE,
        130: "interrupted; the same command continues",
        143: "ended by SIGTERM or SIGUSR1; the same command continues",
    },
)
VERIFY_HELP = help_page(
    "Reads every byte of a data set and compares it with what was written.",
    [f"{PROGRAM} verify DIR"],
    {"DIR": "the folder of a data set, which holds dataset.json"},
    [f"{PROGRAM} verify data/digits"],
    {0: "all is as it was written", 1: "a line for each file or image that differs", 2: MISTAKE},
)


class _Terminated(KeyboardInterrupt):
    """A batch system's signal: workers are ended as after Ctrl-C, and leave no semaphores behind."""


def main(arguments: list[str]) -> int:
    """The command. Returns its exit status: 1 where verify found something, 2 for a user's mistake."""
    try:
        with refused_paths():
            return _run(arguments)
    except _Terminated as signalled:
        print(f"ended by {signalled}; the same command continues", file=sys.stderr)
        return 143
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    if HELP_WORDS & set(arguments):
        print(VERIFY_HELP if arguments[0] == "verify" else HELP)
        return 0
    if arguments[:1] == ["verify"] and len(arguments) == 2 and "=" not in arguments[1]:
        return _verify(arguments[1])
    if not arguments or not all("=" in argument for argument in arguments):
        print(HELP, file=sys.stderr)
        return 2
    return _make(_options(arguments))


def _options(arguments: list[str]) -> dict:
    known = ("source", "from", "to", "shard", "workers", "test_percent", "label", "part")
    options: dict[str, Any] = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in known:
            hint = did_you_mean(closest(key, known)) or ";"
            raise UserError(f"{argument}: unknown key {key!r}{hint} known: {', '.join(known)}")
        if key in options or not value:
            what = "given twice" if key in options else "has no value"
            raise UserError(f"{argument}: {what}; give {key}= once")
        if key in ("shard", "workers") and not re.fullmatch("[1-9][0-9]*", value):
            raise UserError(f"{argument}: expected a whole number of at least 1")
        if key == "test_percent" and not re.fullmatch("[0-9]{1,2}", value):
            raise UserError(f"{argument}: expected a whole number from 0 to 99")
        if key == "part":
            options[key] = _part(argument, value)
            continue
        if key in ("from", "to"):
            try:
                value = expand_home(value)
            except ValueError as error:
                raise UserError(f"{argument}: {error}") from None
        options[key] = int(value) if key in ("shard", "workers", "test_percent") else value
    for key in ("source", "to"):
        if key not in options:
            raise UserError(f"{key}= is missing; for example source=digits to=data/digits")
    return options


def _part(argument: str, value: str) -> Part:
    numbers = re.fullmatch("([1-9][0-9]*)/([1-9][0-9]*)", value)
    if numbers is None or int(numbers[1]) > int(numbers[2]):
        raise UserError(f"{argument}: expected I/N, the I-th of N parts, such as part=1/16 to part=16/16")
    return Part(int(numbers[1]), int(numbers[2]))


def _make(options: dict) -> int:
    start = time.monotonic()
    to = options["to"]
    request = Request(
        *(options["source"], Path(to), options.get("from"), options.get("shard"), options.get("workers")),
        access=Access(retry_seconds=RETRY_SECONDS),
        options={key: options[key] for key in ("test_percent", "label") if key in options},
    )
    there, part = is_made(request.to), options.get("part")
    if part is None:
        dataset = make_whole(request)
    elif (made := make_part(part, request)) is not None:
        dataset = made
    else:
        took = f"{time.monotonic() - start:.1f} s"
        print(f"{to}: part {part.number} of {part.of} is made; shards of others are missing; {took}")
        return 0
    for line in summary(dataset):
        print(line)
    parts = [f"{name} {part.images:,} in {len(part.shards)} shards" for name, part in dataset.splits.items()]
    print(f"{to}: {dataset.source}, {len(dataset.classes)} classes; images: {', '.join(parts)}; ", end="")
    took = "made before, its source was not read again" if there else f"{time.monotonic() - start:.1f} s"
    print(f"left out: {len(dataset.left_out):,}; {took}")
    for member in dataset.left_out[:10]:
        print(f"left out: {member['member']}: {member['why']}")
    if len(dataset.left_out) > 10:
        print(f"left out: {len(dataset.left_out) - 10:,} more, named in {to}/dataset.json")
    for line in without_test(dataset):
        print(line)
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


def _terminate(number: int, _: object) -> None:
    raise _Terminated(signal.Signals(number).name)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGUSR1):  # the latter Slurm sends before a time limit
        signal.signal(number, _terminate)
    outlive_readers()
    sys.exit(main(sys.argv[1:]))
