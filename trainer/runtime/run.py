"""A run as the outside sees it: folder, journal, MLflow, checkpoints, progress, requests to stop."""

import sys
import time
from pathlib import Path

import torch

from data_pipelines.errors import UserError
from trainer.recipe_loading import Loaded, differences
from trainer.runtime import checkpoint, collectives, state
from trainer.runtime.journal import Journal
from trainer.runtime.launch import Place
from trainer.runtime.progress import Progress
from trainer.runtime.run_folder import RunFolder
from trainer.runtime.signals import StopVote
from trainer.runtime.tracking import Follower, uri_for


class Run:
    """What rank 0 keeps of a run; on other ranks the same calls do nothing but what all ranks must do.

    Args:
        loaded: the recipe.
        place: this process.
        data: fingerprint of the data set.
        world: what world.json says.

    Raises:
        UserError: the folder cannot be written, is in use, or belongs to a run of another recipe or data set.
    """

    def __init__(self, loaded: Loaded, place: Place, data: str, world: dict):
        self.loaded, self.place, self.data = loaded, place, data
        self.folder = RunFolder.of(loaded)
        self.journal = self.follower = None
        self.found = collectives.on_first(lambda: self._claim(world))
        self.attempt = collectives.share(f"{time.time_ns():x}")  # names this start's saves
        self.images = self.found.images if self.found else 0
        self.saved = self.images if self.found else None
        self.progress = Progress(self.images, loaded.recipe.images, shown=place.main)
        self.vote = StopVote()

    def _claim(self, world: dict) -> checkpoint.Found | None:
        """Makes the folder this run's, when nothing speaks against it; the checkpoint to go on from."""
        self.folder.check(self.loaded)
        self.journal = Journal(self.folder.journal)  # and with it the lock on the run
        checkpoint.clean(self.folder.checkpoints)
        found = self._newest()
        self.folder.claim(self.loaded, world)
        return found

    def _newest(self) -> checkpoint.Found | None:
        """The checkpoint to go on from, if it is of this recipe and these images."""
        found = checkpoint.newest(self.folder.checkpoints, self.warn)
        if found is None:
            return None
        changed = differences(found.manifest["fingerprint"], self.loaded.fingerprint())
        if found.manifest["data"] != self.data:
            changed.append(f"the data set in {self.loaded.recipe.data.root} is not the one it was trained on")
        if changed:
            raise UserError(
                f"{found.path} is of another recipe ({'; '.join(changed[:5])}); start another with run=NAME"
            )
        return found

    def begin(self, facts: dict[str, object]) -> None:
        """Journals what is known before the first step and starts to follow it into MLflow."""
        if not self.journal:
            return
        for key, value in self.loaded.fingerprint().items():
            self.journal.write("parameter", key, value, 0)
        for key, value in facts.items():
            self.journal.write("tag", key, value, 0)
        if self.found:
            self.journal.write("resumed", "resumed", self.images, self.images)
            self.progress.say(f"resumed at {self.images:,} images from {self.found.path}")
        tracking = self.loaded.recipe.tracking
        uri = uri_for(tracking.uri, Path(self.loaded.recipe.outputs))
        if uri:
            name = self.folder.path.name
            self.follower = Follower(
                self.folder.path, uri, tracking.experiment, name, report=self.progress.say
            )

    def load(self) -> dict[str, torch.Tensor] | None:
        """The state to go on from, on the CPU, of shards this rank's rows; None for a new run."""
        return state.load(self.found) if self.found else None

    def metrics(self, values: dict[str, float], images: int) -> None:
        if self.journal:
            self.journal.metrics(values, images)

    def artifact(self, path: Path, images: int) -> None:
        """A file of the run's folder that MLflow shall have."""
        if self.journal:
            name = str(path.relative_to(self.folder.path))
            self.journal.write("artifact", name, name, images)

    def warn(self, line: str) -> None:
        """A warning, on screen and (rank 0) in the journal."""
        where = f"rank {self.place.rank}: " if self.place.world > 1 else ""
        print(f"warning: {where}{line}", file=sys.stderr, flush=True)
        if self.journal:
            self.journal.write("warning", "warning", line, getattr(self, "images", 0))

    def save(self, held: dict[str, state.Held], images: int) -> None:
        """Writes a checkpoint, unless that of these images is there already. Every rank calls it.

        Raises:
            UserError: it cannot be written.
        """
        if self.saved == images:
            return
        if self.journal:
            self.journal.sync()  # what a checkpoint lets a resumed run skip must be on the disk before it
        manifest = {"fingerprint": self.loaded.fingerprint(), "data": self.data}
        checkpoint.write(
            checkpoint.snapshot(held, self.place.rank, self.place.world),
            self.folder.checkpoints,
            images,
            manifest,
            self.attempt,
            self.loaded.recipe.save.keep,
        )
        collectives.barrier()
        self.saved = self.images = images

    def last_checkpoint(self) -> str:
        """For messages."""
        if self.saved is None:
            return "none was saved yet"
        return f"the newest is {self.folder.checkpoints / f'images-{self.saved:012d}'}"

    def end(self, status: str) -> None:
        """Journals how it ended (FINISHED, KILLED or FAILED) and delivers what MLflow does not have yet."""
        self.progress.close()
        self.vote.close()
        if self.journal:
            self.journal.write("end", "end", status, self.images)
            if self.follower:
                self.follower.close()
            self.journal.close()
