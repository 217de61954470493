"""What the test of diffusion runs on each of several ranks: the jobs of worker.py, of denoisers."""

import sys
from pathlib import Path
from types import SimpleNamespace

from tests.ranks.worker import Job, assert_engine, load, main, mean_loss
from trainer.checkpoints.format import folder_name
from trainer.distributed import launch
from trainer.recipe import loading
from trainer.tasks.diffuse import Diffusing
from trainer.training.trainer import Trainer


class DiffusionJob(Job):
    """A job of a denoiser, built by the task itself."""

    def __init__(self, job: dict, context: launch.DistributedContext, folder: Path):
        self.job, self.context, self.folder = job, context, folder
        self.loaded = loading.load(job["recipe"])
        self.recipe = self.loaded.recipe

    def trainer(self, saved=None, step: int = 0) -> Trainer:
        """What a run without folder, journal and signals trains, continued from `saved`."""
        run = SimpleNamespace(
            checkpoint=saved,
            images=step * self.recipe.batch,
            load=lambda: saved,
            warn=print,
            stop_request=SimpleNamespace(received=None),
            progress=SimpleNamespace(say=print),
        )
        task = Diffusing(self.loaded, self.context)
        task.open()
        trainer = task.build(run)
        assert_engine(trainer)
        return trainer

    def go_on(self) -> dict:
        """From the checkpoint of the job `from`, or from the start, to `steps`, where the state is saved.

        A checkpoint for other jobs is saved behind step `keep`.
        """
        source, step = self.job.get("from"), self.job.get("at", 0)
        saved = load(self.folder / source / folder_name(step * self.recipe.batch)) if source else None
        trainer, losses = self.trainer(saved, step), []
        while trainer.images < self.job["steps"] * self.recipe.batch:
            losses.append(mean_loss(trainer.step()))
            if trainer.images == self.job.get("keep", 0) * self.recipe.batch:
                self._save(trainer, self.job["keep"], self.job["name"])
        assert trainer.all_finite()
        self._save(trainer, self.job["steps"], f"{self.job['name']} on {self.context.world_size}")
        trainer.close()
        return {"losses": losses}


if __name__ == "__main__":
    main(Path(sys.argv[1]), DiffusionJob)
