"""Evaluation during pretraining: cheap measurements of the encoder as it stands."""

from data_pipelines.common.errors import UserError
from trainer.evaluation.context import EvaluationContext, run_evaluators
from trainer.evaluation.health import Health
from trainer.evaluation.information import Information
from trainer.evaluation.knn import Knn

ONLINE = (Information(), Health(), Knn())


def evaluate_online(context: EvaluationContext) -> dict[str, float]:
    """The figures of the evaluators of `ONLINE`, on rank 0; collective. Ends in training mode.

    A measurement that fails is a line for `context.say`: training goes on.

    Raises:
        Interrupted: the run was asked to stop while a shard cannot be read.
        UserError: the encoder diverged, or data stays away.
    """
    context.objective.eval()
    figures = run_evaluators(ONLINE, context, fatal=(UserError,))
    context.objective.train()
    return figures
