"""Coverage by room, after `coverage run -m pytest`: python -m tests.helpers.coverage_table"""

from collections import Counter
from pathlib import Path

from coverage import Coverage

from tests.helpers import ROOT


def room(path: Path) -> str:
    """trainer/engines of trainer/engines/zero.py; data_pipelines of a file right under the package."""
    return "/".join(path.relative_to(ROOT).parent.parts[:2])


def main() -> None:
    """Combines what all processes have measured, and prints a line a room."""
    measured = Coverage()
    measured.combine()
    measured.save()
    statements, missed = Counter[str](), Counter[str]()
    for package in ("trainer", "data_pipelines"):
        for path in sorted((ROOT / package).rglob("*.py")):
            _, lines, _, missing, _ = measured.analysis2(str(path))
            for name in (room(path), "all"):
                statements[name] += len(lines)
                missed[name] += len(missing)
    print(f"{'room':<24} {'statements':>10} {'missed':>7} {'covered':>8}")
    for name in sorted(statements, key=lambda name: (name == "all", name)):
        share = 1 - missed[name] / max(1, statements[name])
        print(f"{name:<24} {statements[name]:>10,} {missed[name]:>7,} {share:>8.1%}")


if __name__ == "__main__":
    main()
