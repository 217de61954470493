"""A run as the outside sees it: folder, journal, MLflow, checkpoints, progress, requests to stop."""

import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

from data_pipelines.common.errors import UserError
from trainer.checkpoints import state
from trainer.checkpoints.background import BackgroundWriter
from trainer.checkpoints.load import Checkpoint, kept, newest
from trainer.checkpoints.retention import clean
from trainer.checkpoints.save import snapshot, write
from trainer.distributed import collectives
from trainer.distributed.launch import DistributedContext
from trainer.distributed.signals import StopRequest
from trainer.recipe.fingerprint import differences, remedy
from trainer.recipe.loading import ResolvedRecipe
from trainer.runs.folder import RunFolder
from trainer.runs.progress import Progress
from trainer.tracking.address import uri_for
from trainer.tracking.follower import Follower
from trainer.tracking.journal import Journal

WRITTEN = 900.0  # seconds for a rank's part of a checkpoint, where others wait for it
ABANDONED = 20.0  # seconds for a checkpoint of several ranks that is being written when training has failed
DYING = 20.0  # seconds for a process that was told to stop, and saves, to leave the folder to the next


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

    def __init__(self, loaded: ResolvedRecipe, context: DistributedContext, data: str, world: dict):
        self.loaded, self.context, self.data = loaded, context, data
        self.folder = RunFolder.of(loaded)
        self.journal = self.follower = None
        self.found = collectives.run_on_main(lambda: self._take_over(world))
        self.attempt = collectives.broadcast_object(f"{time.time_ns():x}")  # names this start's saves
        self.images = self.found.images if self.found else 0
        self.saved = self.images if self.found else None
        self.progress = Progress(self.images, loaded.recipe.images, shown=context.is_main)
        self.vote = StopRequest(self.folder.stop if context.is_main else None)
        limit = WRITTEN if context.world_size > 1 else None
        self.saving = BackgroundWriter(lambda: self.vote.ask("a checkpoint cannot be written"), limit)

    def _take_over(self, world: dict) -> Checkpoint | None:
        """Makes the folder this run's, when nothing speaks against it; the checkpoint to go on from."""
        self.folder.check(self.loaded)
        self.journal = Journal(self.folder.journal, DYING)  # and with it the lock on the run
        clean(self.folder.checkpoints)
        found = self._newest()
        self.folder.take_over(self.loaded, world)
        return found

    def _newest(self) -> Checkpoint | None:
        """The checkpoint to go on from, if it is of this recipe and these images."""
        found = newest(self.folder.checkpoints, self.warn)
        if found is None:
            if kept(self.folder.checkpoints):
                raise UserError(
                    f"none of the checkpoints in {self.folder.checkpoints} can be used (see the warnings); "
                    "look at the disk and try again, or remove that folder and journal.jsonl to start anew"
                )
            return None
        before, now = found.manifest["fingerprint"], self.loaded.fingerprint()
        changed, way_out = differences(before, now), remedy(before, now)
        if found.manifest["data"] != self.data:
            changed.append(f"the data set in {self.loaded.recipe.data.root} is not the one it was trained on")
            way_out = "start another with run=NAME"  # no override leads back
        if changed:
            raise UserError(f"{found.path} is of another recipe ({'; '.join(changed[:5])}); {way_out}")
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
        where = f"rank {self.context.rank}: " if self.context.world_size > 1 else ""
        print(f"warning: {where}{line}", file=sys.stderr, flush=True)
        if self.journal:
            self.journal.write("warning", "warning", line, getattr(self, "images", 0))

    def fail(self, why: str) -> None:
        """Leaves the file that says what ended the run."""
        with suppress(UserError, OSError):  # a full disk may be what is told
            ended = (self.folder.path / name for name in ("failed", "stopped"))  # by another rank, before
            if not any(path.exists() for path in ended):
                leave = self.folder.write_status if self.context.is_main else self.folder.write_status_once
                leave("failed", self.images, why.partition("\n")[0])

    def on_hang(self, who: str) -> None:
        """The last words of a process that the watchdog ends."""
        self.fail(who)
        if self.journal:
            print(f"{self.last_checkpoint()}; the same command continues it", file=sys.stderr, flush=True)
            self.journal.write("end", "end", "FAILED", self.images)

    def save(self, held: dict[str, state.StateValue], images: int) -> None:
        """Begins to write a checkpoint, unless that of these images is there already. Every rank calls it.

        The state is copied before this returns; the files are written beside the next steps, and waited for
        by the next save or by `drain`.

        Raises:
            UserError: the one before could not be written.
        """
        self.drain()
        if self.saved == images:
            return
        if self.journal:
            self.journal.sync()  # what a checkpoint lets a resumed run skip must be on the disk before it
        meaning = {"fingerprint": self.loaded.fingerprint(), "data": self.data}
        manifest = meaning | {"engine": self.context.engine}
        copy = snapshot(held, self.context.rank, self.context.world_size)
        folder, attempt, rule = self.folder.checkpoints, self.attempt, self.loaded.recipe.save
        self.saving.start(
            lambda: write(copy, folder, images, manifest, attempt, rule.keep, keep_every=rule.keep_every)
        )
        self.images = images

    def drain(self) -> None:
        """Waits until the checkpoint that is being written is there. Every rank calls it.

        Raises:
            UserError: on every rank, where one could not write.
        """
        if self.saving.in_progress:
            try:
                collectives.run_on_all(self.saving.wait)
            except UserError:
                if self.context.is_main:  # a rank may have begun its part after another had removed the rest
                    with suppress(UserError):
                        clean(self.folder.checkpoints)
                raise
            self.saved = self.images

    def last_checkpoint(self) -> str:
        """For messages."""
        images = kept(self.folder.checkpoints)
        if not images:
            return "no checkpoint was saved yet"
        return f"the newest checkpoint is {self.folder.checkpoints / f'images-{images[-1]:012d}'}"

    def end(self, status: str) -> None:
        """Journals how it ended (FINISHED, KILLED or FAILED) and delivers what MLflow does not have yet."""
        self.vote.ignore()
        self.saving.abandon(self.progress.say, None if self.context.world_size == 1 else ABANDONED)
        self.progress.close()
        if self.journal:
            try:
                self.journal.write("end", "end", status, self.images)
            except UserError:
                if status != "FAILED":  # else what failed is told, and may be this
                    raise
            if self.follower:  # a launcher kills what is left 30 s after a rank has failed
                self.follower.close(10.0 if status == "FAILED" else 30.0)
            self.journal.close()
            self.journal = None  # what fails after the end is told on screen alone
