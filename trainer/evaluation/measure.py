"""Final evaluation of a frozen encoder: evaluators, batch-norm re-estimated on request, and controls."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from data_pipelines.common.errors import SharedError
from trainer.distributed import collectives
from trainer.evaluation.context import EvaluationContext, run_evaluators
from trainer.evaluation.feature_map import FeatureMap
from trainer.evaluation.neighbours import Neighbours
from trainer.evaluation.reconstruction import Reconstruction
from trainer.evaluation.requirements import PROBES, requirements
from trainer.evaluation.suite import Probes
from trainer.networks.batch_norm import GroupBatchNorm, recalibrate
from trainer.objectives.objective import EncoderObjective
from trainer.recipe.schema import Pretrain

FINAL = (Probes(), Neighbours(), FeatureMap(), Reconstruction())
CONTROLS = (Probes(),)  # evaluators of the untrained network and of raw pixels
PIXEL_FIGURES = "control/pixels"  # what their names begin with
PIXELS = 3 * 64 * 64  # numbers of an image: ImageNet's at 224 px would be 771 GB of features


@dataclass(frozen=True)
class Measured:
    """What an evaluation leaves.

    Attributes:
        figures: as results.json holds them, accuracies in [0, 1].
        left_out: why a figure, or all whose names begin so, is missing, by that name.
        failed: whether some of these are missing because of an error, not for what the data lacks.
    """

    figures: dict[str, float]
    left_out: dict[str, str]
    failed: bool


def measure(context: EvaluationContext) -> Measured:
    """All figures that `context.options` asks for; collective, equal on every rank.

    Of data without labels these are the figures and pictures that need none. What the data cannot give and
    what fails is left out, and costs no other figure.

    Raises:
        SharedError: nothing at all could be measured.
    """
    recipe, options, objective, dataset = context.recipe, context.options, context.objective, context.dataset
    needs = collectives.run_on_main(lambda: requirements(recipe, options, dataset))
    results: dict[str, float] = {}
    context.options = options = needs.options
    objective.eval()
    with context.surviving("probe"):  # without the batch-norm that was asked for, figures would be others
        if options.recalibrate and context.supervised:
            results |= _recalibrated(context)
        with context.encoding("encoder", objective.features) as encoder:  # one cache at a time on the disk
            results |= run_evaluators(FINAL, encoder)
    if options.controls and context.supervised:
        for prefix, control in CONTROLLED.items():
            if prefix not in needs.left_out:
                with context.surviving(prefix):
                    results |= control(context, prefix)
    failures = {
        _without_y(name) if name.startswith(PIXEL_FIGURES) else name: why
        for name, why in context.failures.why.items()
    }
    if failures and not results:
        raise SharedError(f"nothing could be measured: {next(iter(failures.values()))}")
    return Measured(results, needs.left_out | failures, bool(failures))


def _recalibrated(context: EvaluationContext) -> dict[str, float]:
    """Re-estimates the batch-norm of the objective; the kNN accuracy on y before that."""
    objective = context.objective
    only_knn = context.options.model_copy(update=dict.fromkeys(PROBES))
    with context.encoding(
        "encoder",
        lambda view: {"y": objective.features(view)["y"]},
        options=only_knn,
        say=lambda line: None,
        prefix="not_recalibrated/",
    ) as before:
        figures = run_evaluators(CONTROLS, before)
    re_estimate(objective, context.batch_norm_images())
    line = "; before, kNN on y was {:.1%}".format(*figures.values()) if figures else ""
    context.say(f"batch-norm re-estimated{line}")
    return {f"not_recalibrated/{name}": value for name, value in figures.items()}


def _untrained(context: EvaluationContext, prefix: str) -> dict[str, float]:
    """The figures of the network as it was before training."""
    return _of_untrained(context, prefix, _untrained_objective(context))


def _untrained_recalibrated(context: EvaluationContext, prefix: str) -> dict[str, float]:
    """The same after its batch-norm was re-estimated, where it has some."""
    untrained = _untrained_objective(context)
    if not any(isinstance(layer, GroupBatchNorm) for layer in untrained.encoder.modules()):
        return {}
    re_estimate(untrained, context.batch_norm_images())
    return _of_untrained(context, prefix, untrained)


def _untrained_objective(context: EvaluationContext) -> EncoderObjective:
    assert context.untrained is not None  # where controls are wanted
    return context.untrained().to(context.device).eval()


def _of_untrained(context: EvaluationContext, prefix: str, untrained: EncoderObjective) -> dict[str, float]:
    subject = prefix.removeprefix("control/").replace("_", ", ")
    with context.encoding(subject, untrained.features, prefix=f"{prefix}/") as control:
        figures = run_evaluators(CONTROLS, control)
    return {f"{prefix}/{key}": value for key, value in figures.items()}


def _pixels(context: EvaluationContext, prefix: str) -> dict[str, float]:
    """The figures of raw pixels, where an image has few enough."""
    if not compared_pixels(context.recipe):
        numbers = 3 * context.recipe.data.size**2
        context.say(f"  raw pixels: left out, {numbers:,} numbers an image are too many to probe")
        return {}
    with context.encoding("raw pixels", lambda view: {"y": view.flatten(1)}, prefix=f"{prefix}/") as control:
        figures = run_evaluators(CONTROLS, control)
    return {f"{prefix}/{_without_y(key)}": value for key, value in figures.items()}


CONTROLLED: dict[str, Callable[[EvaluationContext, str], dict[str, float]]] = {  # by the names of its figures
    "control/untrained": _untrained,
    "control/untrained_recalibrated": _untrained_recalibrated,
    PIXEL_FIGURES: _pixels,
}


def compared_pixels(recipe: Pretrain) -> int:
    """How many numbers of an image are probed as a control; of a large image none are."""
    numbers = 3 * recipe.data.size**2
    return numbers if numbers <= PIXELS else 0


def _without_y(key: str) -> str:
    """Raw pixels are one feature: probe/svm/y/std -> probe/svm/std."""
    return "/".join(part for part in key.split("/") if part != "y")


def re_estimate(objective: EncoderObjective, images: Iterable[Tensor]) -> None:
    """Re-estimates batch-norm of all that is evaluated: the encoder, and the decoder where there is one."""
    codec = objective.codec
    if codec is None:
        recalibrate(objective.encoder, images)
        return
    networks = nn.ModuleList([codec.encoder, codec.decoder])
    recalibrate(networks, images, lambda batch: codec.decode(*codec.encode(batch)))
