"""What a denoiser of pixels knows of a class: a linear probe of its inner activations (arXiv 2303.09769).

An image gets noise, and the averaged network denoises it once. The features are the activations behind one
block, averaged over places. Block and noise are chosen on training images alone: fits to nine tenths of a
sample of them are judged on the last tenth. Then the probe of every encoder learns from all training images,
and is tested on the test images.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from data_pipelines.common.errors import UserError
from data_pipelines.common.suggest import closest, did_you_mean
from data_pipelines.draws import permutation
from data_pipelines.reader import Reader
from trainer.distributed import collectives
from trainer.evaluation import probes
from trainer.evaluation.features import labelled_ids
from trainer.evaluation.figures import grids
from trainer.evaluation.pictures import drawing
from trainer.evaluation.pixel_diffusion import LABEL, PixelDiffusion, chosen
from trainer.evaluation.softmax import fit_softmax
from trainer.evaluation.suite import Job, Outcome, run_all
from trainer.generation.processes import Process
from trainer.networks.unet import UNet
from trainer.recipe.pixel_evaluation import DenoiserFeatures

NAME = "denoiser_features"
TIMES = 1000  # steps of the grid that the time of a share of noise is looked up in
L2 = 1e-3  # of the fits that the choice is made by


@dataclass(frozen=True)
class Choice:
    """What the grid of blocks and shares of noise has shown.

    Attributes:
        layers: names of blocks.
        noise: shares of noise.
        accuracies: on the images that judge, in [0, 1], [layers][noise].
        judges: how many these are.
    """

    layers: list[str]
    noise: list[float]
    accuracies: list[list[float]]
    judges: int

    @property
    def best(self) -> tuple[int, int]:
        """The places in `layers` and `noise` of the greatest accuracy; the first of equals."""
        places = [(i, j) for i in range(len(self.layers)) for j in range(len(self.noise))]
        return max(places, key=lambda place: self.accuracies[place[0]][place[1]])


@torch.no_grad()
def measure(context: PixelDiffusion, options: DenoiserFeatures) -> dict[str, float]:
    """The accuracy `probe/linear/denoiser_features`, and what was chosen; collective, equal on every rank.

    `denoiser_features/block` is the chosen block, counted from 0 at the input, `denoiser_features/noise` the
    share of noise, and `denoiser_features/chosen_by` the accuracy that it was chosen by. Both splits have
    labelled images (`context.supervised`).

    Raises:
        SharedError: on every rank, where `options.layers` names a block that the network has not, or a number
            is not finite.
    """
    network = context.objective.eval().average
    assert isinstance(network, UNet)  # of images
    layers = collectives.run_on_main(lambda: checked_layers(options, network))
    choice = _choose(context, options, layers)
    i, j = choice.best
    layer, noise = choice.layers[i], choice.noise[j]
    splits = []
    for reader in (context.train, context.test):
        compute = partial(_features, context, reader, [layer], noise)
        features = context.on_main(reader, labelled_ids(reader), compute)
        splits.append(features)
    figures = collectives.run_on_main(
        lambda: context.probe(NAME, *((split[layer], split[LABEL]) for split in splits))
    )
    accuracy, judged = figures[f"probe/linear/{NAME}"], choice.accuracies[i][j]
    context.say(
        f"  denoiser features: behind {layer} at noise {noise:g} (of {len(layers)} blocks x "
        f"{len(choice.noise)}, best on {choice.judges:,} training images: {judged:.1%})  "
        f"linear {accuracy:.1%}"
    )
    if collectives.rank() == 0:
        with drawing(context.folder, f"{NAME}.png") as path:
            grids.accuracy_grid(path, choice.layers, choice.noise, choice.accuracies, choice.best)
    places = list(network.places())
    return figures | {
        f"{NAME}/block": float(places.index(layer)),
        f"{NAME}/noise": noise,
        f"{NAME}/chosen_by": judged,
    }


def checked_layers(options: DenoiserFeatures, network: UNet) -> list[str]:
    """The blocks to choose from, in the network's order.

    Raises:
        UserError: the network has no such block.
    """
    places = list(network.places())
    for name in options.layers or []:
        if name not in places:
            raise UserError(
                f"{NAME}.layers: the U-Net has no block {name!r}, but {', '.join(places)}"
                f"{did_you_mean(closest(name, places))}"
            )
    return [name for name in places if options.layers is None or name in options.layers]


def _choose(context: PixelDiffusion, options: DenoiserFeatures, layers: list[str]) -> Choice:
    """Fits every block and share of noise; collective."""
    ids = chosen(labelled_ids(context.train), options.images, context.seed, NAME)
    judges = np.zeros(len(ids), bool)
    judges[permutation(len(ids), context.seed, f"{NAME}, judges")[: max(1, len(ids) // 10)]] = True
    columns = []
    for noise in options.noise:
        compute = partial(_features, context, context.train, layers, noise)
        features = context.on_main(context.train, ids, compute)
        judged = partial(_judged, context, features, torch.from_numpy(judges), options.iterations)
        columns.append(collectives.run_on_main(judged))
    accuracies = [[column[layer] for column in columns] for layer in layers]
    return Choice(layers, options.noise, accuracies, int(judges.sum()))


def _judged(
    context: PixelDiffusion, features: dict[str, Tensor], judges: Tensor, iterations: int
) -> dict[str, float]:
    """The accuracy on the images that judge, bool [n], of a fit to the others, by block.

    Args:
        features: [n, d] by block, and the labels [n].

    Raises:
        UserError: no image is left to fit or to judge, or a number is not finite.
    """
    labels = features[LABEL]
    judging, fitted = ((rows & (labels >= 0)) for rows in (judges, ~judges))
    if not (judging.any() and fitted.any()):
        raise UserError(f"{NAME}: the block is chosen on training images with a label, and there are too few")
    blocks = {name: feature for name, feature in features.items() if name != LABEL}
    if not all(feature.isfinite().all() for feature in blocks.values()):
        raise UserError(f"{NAME}: an activation is not a number: the denoiser diverged; lower optimizer.lr")

    def accuracy(feature: Tensor) -> Outcome:
        (x, y), (judging_x, judging_y) = (
            (feature[rows].to(context.device), labels[rows].to(context.device)) for rows in (fitted, judging)
        )
        fit = fit_softmax(x, y, context.classes, probes.statistics(x), L2, iterations)
        return {NAME: probes.accuracy(fit, judging_x, judging_y)}

    work = [Job(name, 0, partial(accuracy, feature)) for name, feature in blocks.items()]
    outcomes = run_all(work, context.threads, context.device)
    return {name: float(outcome[NAME]) for name, outcome in outcomes.items()}


# ---- features --------------------------------------------------------------------------------------


def _features(
    context: PixelDiffusion, reader: Reader, layers: list[str], share: float, views: Tensor, ids: np.ndarray
) -> dict[str, Tensor]:
    """Activations behind blocks, averaged over places, of images with so much noise: float32 [n, C]."""
    process, network = context.objective.process, context.objective.average
    assert isinstance(network, UNet)
    x = context.objective.scaling(views)
    t = time_of(process, share).to(context.device).expand(len(x))
    noisy = process.noisy(x, context.noise(reader, ids, NAME, x[0]), t)
    return network.inner(process.scaled(noisy, t), process.embedded(t), layers, pooled)


def pooled(activations: Tensor) -> Tensor:
    """The mean over places of a map [n, C, H, W], float32 [n, C]."""
    return activations.float().mean((2, 3))


def time_of(process: Process, share: float) -> Tensor:
    """The time whose noise has a share nearest to this one: noise over noise plus signal."""
    grid = process.grid(TIMES)
    signal, noise = process.levels(grid)
    return grid[(noise / (noise + signal) - share).abs().argmin()]
