"""Every task's recipe, and which of them train."""

from typing import Annotated, TypeAlias

from pydantic import Field

from trainer.recipe.diffusion import Diffuse, MeasureRun, SampleRun
from trainer.recipe.schema import EvaluateRun, Pretrain

TASKS = (Pretrain, EvaluateRun, Diffuse, SampleRun, MeasureRun)
AnyTask: TypeAlias = Pretrain | EvaluateRun | Diffuse | SampleRun | MeasureRun
AnyTraining: TypeAlias = Pretrain | Diffuse
Recipe = Annotated[AnyTask, Field(discriminator="task")]
