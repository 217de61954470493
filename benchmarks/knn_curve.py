"""The kNN accuracy of runs against images and minutes: knn_curve.py RUN_FOLDER ...

From the journal, of runs that go on too. Minutes are those of training: images by the images/s that were
logged, so evaluation, saving and the time between two starts of a run are left out.
"""

import json
import statistics
import sys
from pathlib import Path

import numpy as np

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_pipelines.common.errors import UserError
from trainer.tracking.journal import read


def series(journal: Path, name: str) -> dict[int, float]:
    """The values of a metric by images seen, in their order."""
    records = (record for record, _ in read(journal))
    values = {r["images"]: r["value"] for r in records if r["kind"] == "metric" and r["name"] == name}
    return dict(sorted(values.items()))


def curve(journal: Path) -> list[tuple[int, float, float]]:
    """Images, minutes and the accuracy of the online kNN, by time."""
    speeds = series(journal, "images_per_second")
    reached = [0, *speeds]
    seconds = np.cumsum([0.0, *(np.diff(reached) / list(speeds.values()))])
    accuracies = series(journal, "knn/y/online")
    return [(images, np.interp(images, reached, seconds) / 60, value) for images, value in accuracies.items()]


def report(folder: Path) -> None:
    """Prints a run's table.

    Raises:
        UserError: it is no run's folder.
    """
    journal = folder / "journal.jsonl"
    if not journal.exists():
        raise UserError(f"{folder}: journal.jsonl is missing; give a run's folder")
    world = json.loads((folder / "world.json").read_text())
    print(
        f"{folder.name}, {world['device']}, {world['processes']} process(es), torch {world['torch']}", end=""
    )
    speeds, waits = series(journal, "images_per_second"), series(journal, "data_wait")
    if speeds:
        medians = statistics.median(speeds.values()), statistics.median(waits.values())
        print(f"; medians of the run: {medians[0]:,.1f} images/s, {medians[1]:.1%} data wait", end="")
    print("\n\n| images | minutes | kNN on y, % |\n|---:|---:|---:|")
    for images, minutes, accuracy in curve(journal):
        print(f"| {images:,} | {minutes:.1f} | {100 * accuracy:.2f} |")
    print(flush=True)


if __name__ == "__main__":
    try:
        for folder in sys.argv[1:]:
            report(Path(folder))
    except UserError as mistake:
        sys.exit(f"error: {mistake}")
