"""A run as seen from outside: folder, journal, MLflow, checkpoints, progress, requests to stop."""

import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

from data_pipelines.common.errors import UserError
from trainer.checkpoints import state
from trainer.checkpoints.background import BackgroundWriter
from trainer.checkpoints.format import folder_name
from trainer.checkpoints.load import Checkpoint, kept, newest
from trainer.checkpoints.retention import clean
from trainer.checkpoints.save import PinnedMemory, snapshot, write
from trainer.distributed import collectives
from trainer.distributed.launch import DistributedContext
from trainer.distributed.signals import StopRequest
from trainer.recipe.fingerprint import differences, remedy
from trainer.recipe.loading import ResolvedRecipe
from trainer.recipe.recipes import AnyTraining
from trainer.runs.folder import RunFolder
from trainer.runs.progress import Progress
from trainer.tracking.address import uri_for
from trainer.tracking.follower import Follower
from trainer.tracking.journal import Journal

PART_TIMEOUT = 900.0  # seconds for a rank's part of a checkpoint, while others wait for it
ABANDON_AFTER = 20.0  # seconds for a checkpoint of several ranks in progress when training has failed
DYING_WRITER = 20.0  # seconds for an earlier process of this run that is stopping to release the folder


class Run:
    """The run that this process trains: rank 0 writes all of it; other ranks take part where all must.

    Args:
        loaded: the recipe.
        context: this process.
        data: fingerprint of the data set.
        world: the contents of world.json.

    Attributes:
        checkpoint: where the run goes on from; None for a new run.
        images: images seen so far.
        saved: images of the newest checkpoint that is complete; None where there is none.
        new: whether the folder was nobody's before; of rank 0.

    Raises:
        UserError: the folder cannot be written, is in use, or belongs to a run of another recipe or data set.
    """

    def __init__(
        self, loaded: ResolvedRecipe[AnyTraining], context: DistributedContext, data: str, world: dict
    ):
        self.loaded, self.context, self.data = loaded, context, data
        self.folder = RunFolder.of(loaded)
        self.journal: Journal | None = None
        self.follower: Follower | None = None
        self.new = False
        self._last_save = 0  # images of the checkpoint that was begun last
        self._memory = PinnedMemory()
        self.checkpoint = collectives.run_on_main(lambda: self._take_over(world))
        self.attempt = collectives.broadcast_object(f"{time.time_ns():x}")  # names this start's saves
        self.images = self._last_save = self.checkpoint.images if self.checkpoint else 0
        self.saved = self.images if self.checkpoint else None
        self.progress = Progress(self.images, loaded.recipe.images, shown=context.is_main)
        self.stop_request = StopRequest(self.folder.stop if context.is_main else None)
        self.writer = BackgroundWriter(
            lambda: self.stop_request.request("a checkpoint cannot be written"),
            limit=PART_TIMEOUT if context.world_size > 1 else None,
        )

    def _take_over(self, world: dict) -> Checkpoint | None:
        """Locks the folder and makes it this run's, after all checks; the checkpoint to go on from."""
        self.folder.check(self.loaded)
        self.new = not self.folder.is_begun()
        self.journal = Journal(self.folder.journal, DYING_WRITER)  # holds the lock on the run
        clean(self.folder.checkpoints)
        checkpoint = self._newest()
        self.folder.take_over(self.loaded, world)
        return checkpoint

    def _newest(self) -> Checkpoint | None:
        """The checkpoint to go on from, if it is of this recipe and these images."""
        checkpoint = newest(self.folder.checkpoints, self.warn)
        if checkpoint is None:
            if kept(self.folder.checkpoints):
                raise UserError(
                    f"none of the checkpoints in {self.folder.checkpoints} can be used (see the warnings); "
                    "look at the disk and try again, or remove that folder and journal.jsonl to start anew"
                )
            return None
        before, now = checkpoint.manifest["fingerprint"], self.loaded.fingerprint()
        changed, way_out = differences(before, now), remedy(before, now)
        if checkpoint.manifest["data"] != self.data:
            why, help = self.loaded.recipe.other_samples
            changed.append(why)
            way_out = f"{help}start another with run=NAME"  # no override leads back
        if changed:
            raise UserError(f"{checkpoint.path} is of another recipe ({'; '.join(changed[:5])}); {way_out}")
        return checkpoint

    def begin(self, tags: dict[str, object]) -> None:
        """Writes parameters and tags to the journal, and starts its delivery to MLflow."""
        if not self.journal:
            return
        for key, value in self.loaded.fingerprint().items():
            self.journal.write("parameter", key, value, 0)
        for key, value in tags.items():
            self.journal.write("tag", key, value, 0)
        if self.checkpoint:
            self.journal.write("resumed", "resumed", self.images, self.images)
            self.progress.say(f"resumed at {self.images:,} images from {self.checkpoint.path}")
        tracking = self.loaded.recipe.tracking
        uri = uri_for(tracking.uri, Path(self.loaded.recipe.outputs))
        if uri:
            name = self.folder.path.name
            self.follower = Follower(
                self.folder.path, uri, tracking.experiment, name, report=self.progress.say
            )

    def load(self) -> dict[str, torch.Tensor] | None:
        """The state to go on from, on the CPU, of shards this rank's rows; None for a new run."""
        return state.load(self.checkpoint) if self.checkpoint else None

    def step(self, images: int) -> None:
        """An optimizer step has ended; `images` seen so far. Every rank calls it."""
        self.images = images
        self.progress.step(images)

    def metrics(self, values: dict[str, float], images: int) -> None:
        """Figures after so many images, for the journal."""
        if self.journal:
            self.journal.metrics(values, images)

    def artifact(self, path: Path, images: int) -> None:
        """A file of the run's folder that is to be delivered to MLflow."""
        if self.journal:
            name = str(path.relative_to(self.folder.path))
            self.journal.write("artifact", name, name, images)

    def warn(self, line: str) -> None:
        """A warning, on screen and (rank 0) in the journal, there at the images of the last save.

        Loaders warn ahead of the steps, by a lead that is another at each start.
        """
        where = f"rank {self.context.rank}: " if self.context.world_size > 1 else ""
        print(f"warning: {where}{line}", file=sys.stderr, flush=True)
        if self.journal:
            self.journal.write("warning", "warning", line, self._last_save)

    def fail(self, why: str) -> None:
        """Writes the file `failed`, with the images seen and the reason, unless a rank has written one."""
        with suppress(UserError, OSError):  # the reason may be a full disk
            written = (self.folder.path / name for name in ("failed", "stopped"))
            if not any(path.exists() for path in written):
                report = self.folder.write_status if self.context.is_main else self.folder.write_status_once
                report("failed", self.images, why.partition("\n")[0])

    def withdraw(self) -> None:
        """Removes a new folder, which a mended recipe needs, after a mistake before training and `end`."""
        if self.new:
            self.folder.withdraw()

    def on_hang(self, line: str) -> None:
        """Records why the watchdog ends this process."""
        self.fail(line)
        if self.journal:
            print(f"{self.last_checkpoint()}; the same command continues it", file=sys.stderr, flush=True)
            self.journal.write("end", "end", "FAILED", self.images)

    def save(self, values: dict[str, state.StateValue], images: int) -> None:
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
            self.journal.sync()  # a run resumed from this checkpoint does not write these lines again
        manifest = {
            "fingerprint": self.loaded.fingerprint(),
            "data": self.data,
            "engine": self.context.engine,
        }
        copy = snapshot(values, self.context.rank, self.context.world_size, self._memory)
        folder, attempt, rule = self.folder.checkpoints, self.attempt, self.loaded.recipe.save
        self.writer.start(
            lambda: write(copy, folder, images, manifest, attempt, rule.keep, keep_every=rule.keep_every)
        )
        self._last_save = images

    def drain(self) -> None:
        """Waits until the checkpoint in progress is complete. Every rank calls it.

        Raises:
            UserError: on every rank, where one could not write.
        """
        if self.writer.in_progress:
            try:
                collectives.run_on_all(self.writer.wait)
            except UserError:
                if self.context.is_main:  # a rank may have begun its part after another had removed the rest
                    with suppress(UserError):
                        clean(self.folder.checkpoints)
                raise
            self.saved = self._last_save

    def last_checkpoint(self) -> str:
        """Where the newest checkpoint is, as part of a message."""
        images = kept(self.folder.checkpoints)
        if not images:
            return "no checkpoint was saved yet"
        return f"the newest checkpoint is {self.folder.checkpoints / folder_name(images[-1])}"

    def end(self, status: str) -> None:
        """Writes the status (FINISHED, KILLED or FAILED) to the journal and delivers the rest to MLflow."""
        self.stop_request.ignore()
        self.writer.abandon(self.progress.say, None if self.context.world_size == 1 else ABANDON_AFTER)
        self.progress.close()
        if self.journal:
            try:
                self.journal.write("end", "end", status, self.images)
            except UserError:
                if status != "FAILED":  # else an error was reported already, and may be this one
                    raise
            if self.follower:  # a launcher kills the other ranks 30 s after one has failed
                self.follower.close(10.0 if status == "FAILED" else 30.0)
            self.journal.close()
            self.journal = None  # errors after the end are printed only
