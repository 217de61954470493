"""The files that belong to the repository."""

import re
import subprocess
from pathlib import Path

from tests.helpers import ROOT


def kept_files() -> list[Path]:
    """What git keeps or would keep; without git, everything that no dot-folder holds."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or "trainer/main.py" not in listed.stdout:
        names = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*")]
        skipped = r"(^|/)(\.(?!ci/|github/)[^/]*|__pycache__|.*\.egg-info)/|^(outputs|data|build)/"
        names = [name for name in names if not re.search(skipped, name)]
    else:
        names = listed.stdout.split("\0")
    return sorted(ROOT / name for name in names if name and (ROOT / name).is_file())
