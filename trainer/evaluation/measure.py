"""Final evaluation of a frozen encoder: evaluators, batch-norm re-estimated on request, and controls."""

from collections.abc import Iterable

from torch import Tensor, nn

from trainer.evaluation.context import EvaluationContext, run_evaluators
from trainer.evaluation.feature_map import FeatureMap
from trainer.evaluation.neighbours import Neighbours
from trainer.evaluation.reconstruction import Reconstruction
from trainer.evaluation.suite import Probes
from trainer.networks.batch_norm import GroupBatchNorm, recalibrate
from trainer.objectives.objective import Objective
from trainer.recipe.schema import Pretrain

FINAL = (Probes(), Neighbours(), FeatureMap(), Reconstruction())
CONTROLS = (Probes(),)  # evaluators of the untrained network and of raw pixels
PROBES = ("linear", "linear_sgd", "mlp", "svm", "few_shot")  # keys of `evaluate`; null: not measured
PIXELS = 3 * 64 * 64  # numbers of an image: ImageNet's at 224 px would be 771 GB of features


def measure(context: EvaluationContext) -> dict[str, float]:
    """All figures that `context.options` asks for, accuracies in [0, 1]; collective, equal on every rank.

    Of data without classes these are the figures and pictures that need no label.

    Raises:
        SharedError: an evaluator or the disk does not allow it.
    """
    options, objective = context.options, context.objective
    results: dict[str, float] = {}
    objective.eval()
    if options.recalibrate and context.classes:
        results |= _recalibrated(context)
    with context.encoding("encoder", objective.features) as encoder:  # one cache at a time lies on the disk
        results |= run_evaluators(FINAL, encoder)
    if options.controls and context.classes:
        results |= _untrained(context) | _pixels(context)
    return results


def _recalibrated(context: EvaluationContext) -> dict[str, float]:
    """Re-estimates the batch-norm of the objective; the kNN accuracy on y before that."""
    objective = context.objective
    only_knn = context.options.model_copy(update=dict.fromkeys(PROBES))
    with context.encoding(
        "encoder", lambda view: {"y": objective.features(view)["y"]}, options=only_knn, say=lambda line: None
    ) as before:
        figures = run_evaluators(CONTROLS, before)
    re_estimate(objective, context.batch_norm_images())
    context.say(f"batch-norm re-estimated; before, kNN on y was {figures['knn/y']:.1%}")
    return {f"not_recalibrated/{name}": value for name, value in figures.items()}


def _untrained(context: EvaluationContext) -> dict[str, float]:
    """The figures of the network as it was before training; with batch-norm, also after re-estimating it."""
    assert context.untrained is not None  # where controls are wanted
    untrained = context.untrained().to(context.device).eval()
    results: dict[str, float] = {}
    normed = any(isinstance(layer, GroupBatchNorm) for layer in untrained.encoder.modules())
    for name in ("untrained", "untrained_recalibrated")[: 1 + normed]:
        if name == "untrained_recalibrated":
            re_estimate(untrained, context.batch_norm_images())
        with context.encoding(name.replace("_", ", "), untrained.features) as control:
            figures = run_evaluators(CONTROLS, control)
        results |= {f"control/{name}/{key}": value for key, value in figures.items()}
    return results


def _pixels(context: EvaluationContext) -> dict[str, float]:
    """The figures of raw pixels, where an image has few enough."""
    if not compared_pixels(context.recipe):
        numbers = 3 * context.recipe.data.size**2
        context.say(f"  raw pixels: left out, {numbers:,} numbers an image are too many to probe")
        return {}
    with context.encoding("raw pixels", lambda view: {"y": view.flatten(1)}) as control:
        figures = run_evaluators(CONTROLS, control)
    return {f"control/pixels/{_without_y(key)}": value for key, value in figures.items()}


def compared_pixels(recipe: Pretrain) -> int:
    """How many numbers of an image are probed as a control; of a large image none are."""
    numbers = 3 * recipe.data.size**2
    return numbers if numbers <= PIXELS else 0


def _without_y(key: str) -> str:
    """Raw pixels are one feature: probe/svm/y/std -> probe/svm/std."""
    return "/".join(part for part in key.split("/") if part != "y")


def re_estimate(objective: Objective, images: Iterable[Tensor]) -> None:
    """Re-estimates batch-norm of all that is evaluated: the encoder, and the decoder where there is one."""
    codec = objective.codec
    if codec is None:
        recalibrate(objective.encoder, images)
        return
    networks = nn.ModuleList([codec.encoder, codec.decoder])
    recalibrate(networks, images, lambda batch: codec.decode(*codec.encode(batch)))
