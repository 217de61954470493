"""Rows of the benchmarks on a GPU: a file of JSON lines that grows, the arithmetic of a row, the tables."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
KERNELS = {"kernel", "gpu_memcpy", "gpu_memset"}  # categories of a profiler's trace that run on a GPU
OPERATIONS = {"cpu_op"}  # those of a CPU, operations within operations too
WANTED = {"moco_cifar10": 35_000, "hybrid_cifar10": 4_000, "dim_local": 80_000, "moco_imagenet": 2_400}


class Rows:
    """The rows of one machine and one choice of sizes, in a file that may hold others'.

    Args:
        path: of the file; a last line that was cut short is left out.
        setting: what a row's figures depend on beside its task: device, sizes, torch, commit.
    """

    def __init__(self, path: Path, setting: Row):
        self.path, self.setting = path, setting
        self.rows: dict[str, Row] = {}
        for row in read(path):
            if row["setting"] == setting:
                self.rows[row["task"]] = row

    def finished(self, task: str) -> bool:
        """Whether a row is there that was neither cut off nor failed."""
        return task in self.rows and "failed" not in self.rows[task]

    def add(self, task: str, figures: Row) -> None:
        """Writes a row at once, to the disk."""
        self.rows[task] = {"task": task, "setting": self.setting} | figures
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cut = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("\n" * cut + json.dumps(self.rows[task]) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read(path: Path) -> list[Row]:
    """The whole lines of a file; none where there is no file."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:  # a call was cut off while it wrote
            continue
    return [row for row in rows if isinstance(row, dict) and {"task", "setting"} <= row.keys()]


# ---- the arithmetic --------------------------------------------------------------------------------


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals (start, end): of kernels on several streams, the busy time."""
    total, reached = 0.0, -float("inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def of_trace(trace: Row, categories: set[str]) -> tuple[int, float]:
    """Launches in a profiler's trace, and the seconds in which at least one of them ran.

    Args:
        trace: in Chrome's format, as `torch.profiler` writes it: microseconds.
        categories: of the events that count, `KERNELS` or `OPERATIONS`.
    """
    events = [event for event in trace["traceEvents"] if event.get("cat") in categories]
    busy = covered((float(event["ts"]), float(event["ts"]) + float(event["dur"])) for event in events)
    return len(events), busy / 1e6


def speed(batch: int, steps: float, flop: float, peak: float | None) -> Row:
    """Images a second, floating-point operations a second, and their share of the card's measured rate.

    Args:
        steps: a second.
        flop: of a step.
        peak: the measured rate of a large bf16 product, operations a second; None: not measured.
    """
    rate = flop * steps
    return {"model": batch * steps, "tflops": rate / 1e12, "share": None if peak is None else rate / peak}


def idle(busy: float, steps: int, step_seconds: float) -> float:
    """The share of an undisturbed step in which nothing runs: `busy` seconds were traced in `steps` steps."""
    return max(0.0, 1 - busy / steps / step_seconds)


# ---- the tables ------------------------------------------------------------------------------------

SPEEDS = (  # column, the row's key, its format
    ("images/s end to end", "end_to_end", "{:,.0f}"),
    ("wanted", "wanted", "{:,.0f}"),
    ("model alone", "model", "{:,.0f}"),
    ("data wait", "wait", "{:.1%}"),
    ("launches a step", "launches", "{:,.0f}"),
    ("idle", "idle", "{:.1%}"),
    ("peak, GB", "peak_gb", "{:.2f}"),
    ("TFLOP/s", "tflops", "{:,.3g}"),
    ("of the card's bf16", "share", "{:.1%}"),
)


def table(rows: Sequence[Row]) -> str:
    """Markdown of all rows: the checks, the card, the recipes; what was cut or failed last."""
    lines = []
    checks = [row for row in rows if "passed" in row]
    if checks:
        lines += ["| check | | result |", "|---|---|---|"]
        lines += [
            f"| {r['task']} | {'passed' if r['passed'] else '**FAILED**'} | {r['said']} |" for r in checks
        ]
    for row in rows:
        if "bf16_rate" in row:
            lines += [
                "",
                f"bf16, {row['side']:,} x {row['side']:,}: {row['bf16_rate'] / 1e12:,.2f} TFLOP/s",
            ]
    speeds = [row for row in rows if "model" in row]
    if speeds:
        lines += ["", "| recipe | step | px | batch | precision | " + " | ".join(s[0] for s in SPEEDS) + " |"]
        lines += ["|---|---|---:|---:|---|" + "---:|" * len(SPEEDS)]
        lines += [speed_line(row) for row in speeds]
    lines += [f"\n{row['task']}: not measured, {row['failed']}" for row in rows if "failed" in row]
    return "\n".join(lines).strip()


def speed_line(row: Row) -> str:
    """A row of the table of speeds; what was not measured has no number."""
    row = row | {"wanted": WANTED.get(row["recipe"]) if "end_to_end" in row else None}
    cells = [row["recipe"], row["step"], row["px"], row["batch"], row["precision"]]
    cells += ["" if row.get(key) is None else form.format(row[key]) for _, key, form in SPEEDS]
    return "| " + " | ".join(map(str, cells)) + " |"
