"""A run's folder: what is in it, and whether a recipe may go on with it."""

import json
import platform
from contextlib import suppress
from pathlib import Path

from data_pipelines.common.errors import UserError
from data_pipelines.common.files import replace_text
from trainer.recipe import loading
from trainer.recipe.fingerprint import differences, remedy


class RunFolder:
    """outputs/<run>/: recipe.yaml world.json journal.jsonl results.json checkpoints/ figures/ export/.

    How the run ended is told by a file, since launchers lose exit codes: `done` once everything is
    finished, `stopped` when it was told to stop and saved, `failed` when a mistake or an error ended it.
    Each holds the images seen, `stopped` and `failed` in a second line why. The file `stop`, made by
    anybody, asks a run to save and stop.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.journal = path / "journal.jsonl"
        self.stop = path / "stop"
        self.encoder = path / "export" / "encoder.safetensors"

    @classmethod
    def of(cls, loaded: loading.ResolvedRecipe) -> "RunFolder":
        """The folder a recipe writes to: outputs/<run>, the recipe's name by default; or `from`."""
        if loaded.recipe.task == "evaluate":
            return cls(Path(loaded.recipe.from_))
        return cls(Path(loaded.recipe.outputs) / (loaded.recipe.run or loaded.name))

    def take_over(self, loaded: loading.ResolvedRecipe, world: dict) -> None:
        """Rank 0, at start, when nothing speaks against it: from now on the folder is of this recipe."""
        for ended in ("stopped", "failed", "done", "stop"):
            (self.path / ended).unlink(missing_ok=True)
        replace_text(self.path / "recipe.yaml", loaded.text())
        replace_text(self.path / "world.json", json.dumps(world | {"host": platform.node()}, indent=1) + "\n")

    def check(self, loaded: loading.ResolvedRecipe) -> None:
        """Refuses a recipe whose meaning is not that of the run in this folder, if there is one.

        Raises:
            UserError: naming the keys that differ.
        """
        if not (self.path / "recipe.yaml").exists():
            return
        before, now = loading.load_saved(self.path / "recipe.yaml").fingerprint(), loaded.fingerprint()
        changed = differences(before, now)
        if changed:
            raise UserError(
                f"{self.path} is a run of another recipe ({'; '.join(changed[:5])}"
                f"{f' and {len(changed) - 5} more' if len(changed) > 5 else ''}); "
                f"{remedy(before, now)}"
            )

    def write_status(self, name: str, images: int, why: str = "") -> None:
        """Leaves the file `done`, `stopped` or `failed`; a stop file is obeyed with that."""
        replace_text(self.path / name, f"{images}\n{why}\n" if why else f"{images}\n")
        self.stop.unlink(missing_ok=True)

    def write_status_once(self, name: str, images: int, why: str) -> None:
        """Any rank, before it leaves the others: `stopped` or `failed`, if it is not there yet."""
        with suppress(OSError), open(self.path / name, "x") as file:
            file.write(f"{images}\n{why}\n")

    def is_done(self, images: int) -> bool:
        """Whether a run of so many images is finished here; a longer one goes on from it."""
        path = self.path / "done"
        return path.exists() and int(path.read_text().split()[0]) >= images

    def results(self) -> dict[str, float]:
        """The figures of results.json; empty where there are none yet."""
        path = self.path / "results.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def merge_results(self, results: dict[str, float]) -> None:
        """Adds figures to results.json; what is measured anew replaces what was there."""
        merged = dict(sorted((self.results() | results).items()))
        replace_text(self.path / "results.json", json.dumps(merged, indent=1) + "\n")
