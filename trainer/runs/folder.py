"""A run's folder: its files, and whether a recipe may continue the run."""

import json
import platform
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from data_pipelines.common.errors import UserError
from data_pipelines.common.files import replace_text
from data_pipelines.common.paths import refused_paths
from trainer.recipe import loading
from trainer.recipe.fingerprint import differences, remedy

LEFT_OUT = "left_out"  # the entry of results.json that is no figure


class RunFolder:
    """outputs/<run>/: recipe.yaml world.json journal.jsonl results.json checkpoints/ figures/ export/.

    A file says how the run ended, since launchers lose exit codes: `done` once everything is finished,
    `stopped` when it was requested to stop and has saved, `failed` when a mistake or an error ended it. The
    first line is the number of images seen, the second of `stopped` and `failed` the reason. The file `stop`,
    made by anybody, requests a run to save and stop.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.journal = path / "journal.jsonl"
        self.stop = path / "stop"
        self.encoder = path / "export" / "encoder.safetensors"

    @classmethod
    def of(cls, loaded: loading.ResolvedRecipe) -> "RunFolder":
        """The folder that a recipe writes to: outputs/<run>, by default the recipe's name; or `from`."""
        return cls(loaded.recipe.folder(loaded.name))

    def take_over(self, loaded: loading.ResolvedRecipe, world: dict) -> None:
        """Makes the folder that of this recipe, after all checks at the start. Rank 0."""
        for status in ("stopped", "failed", "done", "stop"):
            (self.path / status).unlink(missing_ok=True)
        replace_text(self.path / "recipe.yaml", loaded.text())
        replace_text(self.path / "world.json", json.dumps(world | {"host": platform.node()}, indent=1) + "\n")

    def is_begun(self) -> bool:
        """Whether a run has ever started here."""
        paths = (self.path / "recipe.yaml", self.journal, self.checkpoints)
        return any(path.exists() for path in paths)

    def withdraw(self) -> None:
        """Removes what a start has written that could not train, and the folder where nothing else is in it.

        On rank 0, of a folder that had not begun.
        """
        for name in ("recipe.yaml", "world.json", "journal.jsonl", "failed"):
            (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()

    def check(self, loaded: loading.ResolvedRecipe) -> None:
        """Compares a recipe with that of the run in this folder, if there is one, and reads its results.

        Raises:
            UserError: naming the keys that differ, or what would end the run only when it has trained: a
                file in a folder's place, or damaged results, to which it adds.
        """
        for folder in (self.checkpoints, self.path / "figures", self.encoder.parent):
            if folder.exists() and not folder.is_dir():
                raise UserError(f"{folder}: a file where the run has a folder; move it away")
        self.results()
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
        """Writes the file `done`, `stopped` or `failed`, and removes the file `stop`."""
        replace_text(self.path / name, f"{images}\n{why}\n" if why else f"{images}\n")
        self.stop.unlink(missing_ok=True)

    def write_status_once(self, name: str, images: int, why: str) -> None:
        """Writes `stopped` or `failed`, if it does not exist yet. Any rank, before it ends alone."""
        with suppress(OSError), open(self.path / name, "x") as file:
            file.write(f"{images}\n{why}\n")

    def is_done(self, images: int) -> bool:
        """Whether a run of `images` images is finished here; a longer one continues it.

        Raises:
            UserError: the file that says so is damaged.
        """
        path = self.path / "done"
        if (content := _content(path)) is None:
            return False
        try:
            return int(content.split()[0]) >= images
        except (ValueError, IndexError):
            raise UserError(
                f"{path}: damaged, expected the number of images seen; remove it, and the same command "
                "goes on from the newest checkpoint"
            ) from None

    def results(self) -> dict[str, float]:
        """The figures of results.json, by name; empty where there is no such file.

        Raises:
            UserError: the file is damaged.
        """
        return self._results()[0]

    def left_out(self) -> dict[str, str]:
        """Why a figure, or all whose names begin so, is missing in results.json, by that name.

        Raises:
            UserError: the file is damaged.
        """
        return self._results()[1]

    def merge_results(
        self,
        results: dict[str, float],
        left_out: dict[str, str] | None = None,
        outdated: Collection[str] = (),
    ) -> None:
        """Adds figures to results.json, and why others are missing; new values replace old ones.

        A reason goes with the figure that was missing, or with the first of those whose names begin so. The
        figures of the names `outdated` go where they have no new value.
        """
        figures, reasons = self._results()
        figures = {name: value for name, value in figures.items() if name not in outdated}
        measured = {beginning for name in results for beginning in _beginnings(name)}
        reasons = {
            name: why
            for name, why in reasons.items()
            if name not in measured and not name.startswith("figures/")  # pictures are drawn anew
        } | (left_out or {})
        merged: dict = dict(sorted((figures | results).items()))
        if reasons:
            merged[LEFT_OUT] = dict(sorted(reasons.items()))
        self.path.mkdir(parents=True, exist_ok=True)
        replace_text(self.path / "results.json", json.dumps(merged, indent=1) + "\n")

    def _results(self) -> tuple[dict[str, float], dict[str, str]]:
        """The figures of results.json, and why others are missing."""
        path = self.path / "results.json"
        if (content := _content(path)) is None:
            return {}, {}
        try:
            figures = json.loads(content)
            reasons = figures.pop(LEFT_OUT, {})
            whole = all(isinstance(value, int | float) for value in figures.values())
            whole &= all(isinstance(why, str) for why in reasons.values())
        except (ValueError, RecursionError, AttributeError, TypeError):
            whole = False
        if not whole:
            raise UserError(
                f"{path}: damaged, expected figures by name; remove it, and measure again with "
                f"recipe=evaluate from={self.path}"
            )
        return figures, reasons


def _beginnings(name: str) -> list[str]:
    """probe/linear/y -> probe, probe/linear, probe/linear/y"""
    parts = name.split("/")
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _content(path: Path) -> bytes | None:
    """The bytes of a small file of the run; None where there is none. Raises UserError for a folder there."""
    with refused_paths():
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
