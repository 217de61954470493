"""The figures of a finished DIM run on CIFAR-10, the paper's beside them: run_figures.py RUN_FOLDER"""

import json
import statistics
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from trainer.tracking.journal import read

# Hjelm et al., arXiv 1808.06670, CIFAR-10, DIM(L) with JSD, MLP of 200 units: 1,000 epochs
PAPER = {"conv": 73.25, "fc": 73.62, "y": 66.96}


def main(folder: Path) -> None:
    metrics: dict[str, list[float]] = {}
    images = 0
    for record, _ in read(folder / "journal.jsonl"):
        if record["kind"] == "metric":
            metrics.setdefault(record["name"], []).append(record["value"])
            images = max(images, record["images"])
    world = json.loads((folder / "world.json").read_text())
    results = json.loads((folder / "results.json").read_text())
    print(f"{world['device']}, {world['processes']} process(es), torch {world['torch']}, {images:,} images\n")
    print("| figure | here | paper, 1,000 epochs |\n|---|---:|---:|")
    print(f"| images/s, median | {statistics.median(metrics['images_per_second']):,.0f} | |")
    print(f"| data wait, median | {statistics.median(metrics['data_wait']):.1%} | |")
    for feature, paper in PAPER.items():
        print(f"| MLP-200 on {feature}, % | {100 * results[f'probe/mlp/{feature}']:.2f} | {paper} |")
    print(f"| kNN on y, % | {100 * results['knn/y']:.2f} | |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
