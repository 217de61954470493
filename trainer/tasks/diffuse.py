"""Training of a denoiser, of a run's latents or of images: what this task does in its own way."""

from trainer.distributed.launch import DistributedContext
from trainer.objectives.objective import Objective
from trainer.recipe.diffusion import Diffuse
from trainer.recipe.loading import ResolvedRecipe
from trainer.tasks.training_run import run_training
from trainer.training.data import TrainingData
from trainer.training.trainer import Trainer

DiffusionTrainer = Trainer[Diffuse, TrainingData, Objective]
SHOWN = 64  # samples on a page


def run(loaded: ResolvedRecipe[Diffuse], context: DistributedContext) -> int:
    """Trains a denoiser and draws with it; the process's exit status (1: stopped on request)."""
    return run_training(Diffusing(loaded, context))
