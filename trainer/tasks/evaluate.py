"""Evaluation of a frozen encoder: probes, nearest neighbours, controls, on cached features."""

import shutil
import signal
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from data_pipelines.common.errors import UserError
from data_pipelines.dali import ImageViews, in_order
from data_pipelines.dataset import Dataset
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.image_options import ImageOptions
from data_pipelines.loader import Loader
from data_pipelines.plan import BatchShare, Plan
from data_pipelines.reader import Reader
from trainer.checkpoints import load as load_module
from trainer.checkpoints.format import Damaged, folder_name, verify
from trainer.checkpoints.load import Checkpoint, load, newest
from trainer.distributed import collectives, launch
from trainer.distributed.launch import DistributedContext
from trainer.engines.precision import forward_precision
from trainer.evaluation import reconstruction
from trainer.evaluation.features import (
    Encode,
    Examples,
    cached,
    gathered,
    labelled_ids,
    subset,
)
from trainer.evaluation.health import health
from trainer.evaluation.knn import knn_accuracy
from trainer.evaluation.suite import measure_probes
from trainer.networks.batch_norm import GroupBatchNorm, recalibrate
from trainer.recipe import loading
from trainer.recipe.evaluation import Evaluate
from trainer.recipe.schema import EvaluateRun, Pretrain, Tracking
from trainer.recipe.yaml12 import DEFAULT
from trainer.runs.folder import RunFolder
from trainer.tasks import report
from trainer.tasks.preflight import check_labels, compared_pixels, labelled_split
from trainer.tracking.address import uri_for
from trainer.tracking.follower import Follower
from trainer.tracking.journal import Journal
from trainer.training.build import DTYPES, build_objective
from trainer.training.groups import heldout_batch
from trainer.training.trainer import Trainer


def run(loaded: loading.ResolvedRecipe, context: DistributedContext) -> int:
    """Evaluates a checkpoint of the run in `from`, the newest or that of `images`.

    Figures of the newest go to the run's results.json, those of an earlier one to a folder of their own in
    evaluations/. To the journal and to MLflow go those that were not measured at these images before.
    Told to stop by SIGTERM, it removes its cache of features and ends the process, with status 143.
    """
    options, folder, journals = loaded.recipe, RunFolder.of(loaded), []

    def stop(*_) -> None:  # raises nothing: in a finalizer of DALI's an exception would be lost
        if context.is_main:
            shutil.rmtree(to.path / "features", ignore_errors=True)  # as `measure` calls its cache
        launch.leave(128 + signal.SIGTERM)

    def opened() -> tuple[Pretrain, Checkpoint, Dataset, RunFolder]:
        if not (folder.path / "recipe.yaml").exists():
            raise UserError(
                f"from={options.from_}: no run there (recipe.yaml is missing); give a run's folder"
            )
        recipe = loading.load_saved(folder.path / "recipe.yaml").recipe
        journals.append(Journal(folder.journal))  # refused while the run is trained and checkpoints go
        found = choose(folder, options)
        dataset = load_dataset(recipe.data.root, recipe.data.source, recipe.data.access(loaded.commands))
        check_labels(recipe, options.evaluate, dataset, "so this run cannot be evaluated")
        earlier = folder.path / "evaluations" / found.path.name
        return recipe, found, dataset, folder if is_newest(folder, found) else RunFolder(earlier)

    before = signal.getsignal(signal.SIGTERM)
    try:
        recipe, found, dataset, to = collectives.run_on_main(opened)
        objective = build_objective(recipe)
        names = [name for name in found.manifest["tensors"] if name.startswith("model/")]
        weights = load(found, names)
        objective.load_state_dict({name.removeprefix("model/"): rows for name, rows in weights.items()})
        say = print if context.is_main else lambda line: None
        say(f"evaluating {found.path}")
        signal.signal(signal.SIGTERM, stop)
        results = measure(objective.to(context.device), recipe, options.evaluate, dataset, context, to, say)
        if context.is_main:
            to.merge_results(results)
            report.draw_accuracies(to)
            deliver(folder, journals[0], results, found.images, tracked(loaded, recipe))
            print(report.summary(to, recipe))
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
        for journal in journals:
            journal.close()


def choose(folder: RunFolder, options: EvaluateRun) -> Checkpoint:
    """The run's newest checkpoint, or that of `images`. Raises UserError for none, or a damaged one."""
    if options.images is None:
        if found := newest(folder.checkpoints, print):
            return found
        raise UserError(f"from={options.from_}: the run has no checkpoint yet")
    path = folder.checkpoints / folder_name(options.images)
    if not path.is_dir():
        kept = ", ".join(str(images) for images in load_module.kept(folder.checkpoints)) or "none"
        raise UserError(f"images={options.images}: the run has no such checkpoint; it keeps {kept}")
    try:
        return Checkpoint(path, options.images, verify(path))
    except Damaged as why:
        raise UserError(f"images={options.images}: checkpoint {path} is damaged ({why})") from None


def is_newest(folder: RunFolder, found: Checkpoint) -> bool:
    return found.images == load_module.kept(folder.checkpoints)[-1]


def tracked(loaded: loading.ResolvedRecipe, recipe: Pretrain) -> Tracking:
    """Where the run is tracked: as it said itself, but for what this evaluation was given."""
    given = [key for key in Tracking.model_fields if loaded.origin[f"tracking.{key}"] != DEFAULT]
    return recipe.tracking.model_copy(update={key: getattr(loaded.recipe.tracking, key) for key in given})


def deliver(folder: RunFolder, journal: Journal, results: dict, images: int, tracking: Tracking) -> None:
    """Figures into the run's own journal and its MLflow run; of each, the first at these images stays."""
    figures = {f"results/{name}": value for name, value in results.items()}
    if changed := journal.differing(figures, images):
        print(
            f"{len(changed)} of {len(figures)} figures were measured at {images:,} images before, with other "
            "values: results.json has the new ones, the journal and MLflow keep the first"
        )
    journal.metrics(figures, images)
    if uri := uri_for(tracking.uri, folder.path.parent):
        Follower(folder.path, uri, tracking.experiment, folder.path.name, report=print).close()


def image_options(recipe: Pretrain, context: DistributedContext) -> ImageOptions:
    data = recipe.data
    return ImageOptions(data.size, data.normalize, data.threads, context.device, DTYPES[recipe.precision])


# ---- during pretraining --------------------------------------------------------------------------


def online(trainer: Trainer) -> dict[str, float]:
    """Cheap measurements of the encoder as it stands; it is put back into training mode.

    The kNN is left out where there are no labels; the health of y needs none.
    """
    recipe, context, objective = trainer.recipe, trainer.context, trainer.unsharded()
    dataset, options = trainer.reader.dataset, recipe.evaluate
    stopping = trainer.reader.stopping
    readers = [Reader(dataset, split, stopping) for split in (labelled_split(recipe), recipe.data.test)]

    def rows(reader: Reader, mirror: bool) -> tuple[dict[str, Tensor], Tensor] | None:
        def encode(view: Tensor) -> dict[str, Tensor]:
            y = {"y": objective.features(view)["y"]}
            return y | {"mirrored": objective.features(view.flip(-1))["y"]} if mirror else y

        ids = subset(reader, options.online_images, recipe.seed)
        return gathered(encode, reader, ids, trainer.image_options, options.batch)

    objective.eval()
    figures = held_out(trainer, objective, readers[1]) if context.is_main else {}
    unseen = rows(readers[1], mirror=True)
    if context.is_main:
        figures |= health(unseen[0]["y"], unseen[0]["mirrored"])
    if dataset.classes:
        seen = rows(readers[0], mirror=False)
        if context.is_main:
            data = [part for x, labels in (seen, unseen) for part in labelled_rows(x["y"], labels)]
            if all(map(len, data)):
                figures["knn/y/online"] = knn_accuracy(*data, len(dataset.classes), options.knn)
    objective.train()
    for reader in readers:
        reader.close()
    return figures


def labelled_rows(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Those rows [n, d] and labels [n] that have a label."""
    return rows[labels >= 0], labels[labels >= 0]


@torch.no_grad()
def held_out(trainer: Trainer, objective: nn.Module, test: Reader) -> dict[str, float]:
    """The information estimates on test images, nats; none where the split is smaller than the groups.

    Computed by one rank, a few groups at a time, on images that do not depend on the ranks.
    """
    recipe, unit = trainer.recipe, heldout_batch(trainer.recipe)
    images = min(test.images, recipe.evaluate.online_images) // unit * unit
    views, share = recipe.data.views, BatchShare(unit)
    maker = ImageViews(
        test, trainer.image_options, views, share.sources(len(views)), recipe.seed, share.micro_batch
    )
    plan = Plan(recipe.seed, test.shards, recipe.data.window)
    loader = Loader(maker, plan, share, start=0, stop=images)
    sums: dict[str, list[Tensor]] = {}
    for part in loader:
        with forward_precision(recipe.precision, trainer.context.device):
            values = objective(part)
        for name, value in values.items():
            if name.startswith("mi/") and isinstance(value, Tensor):
                sums.setdefault(name, []).append(value.double())
    loader.close()
    return {f"{name}/held_out": torch.stack(values).mean().item() for name, values in sums.items()}


# ---- at the end ----------------------------------------------------------------------------------


def measure(
    objective: nn.Module,
    recipe: Pretrain,
    options: Evaluate,
    dataset: Dataset,
    context: DistributedContext,
    folder: RunFolder,
    say: Callable[[str], None],
) -> dict[str, float]:
    """All that `options` asks for, accuracies in [0, 1]; collective, equal on every rank.

    Features are cached in `folder`, a set at a time. Raises SharedError where a probe or the disk refuses.
    """
    train = Reader(dataset, recipe.data.train)
    readers = Reader(dataset, labelled_split(recipe)), Reader(dataset, recipe.data.test)
    splits = [(reader, labelled_ids(reader)) for reader in readers]
    images, classes = image_options(recipe, context), len(dataset.classes)
    results = {}

    def both(encode: Encode):
        return cached(folder.path / "features", encode, splits, images, options.batch)

    def probed(sets: list[Examples], whose: str) -> dict[str, float]:
        found = measure_probes(*sets, classes, options, recipe.seed, context.device)
        say(f"  {whose}: " + "  ".join(f"{name} {value:.1%}" for name, value in found.items()))
        return found

    def clean():
        """Training images in whole groups, where there are so many, for batch-norm."""
        group = recipe.groups.norm
        ids = subset(train, options.online_images, recipe.seed)
        ids = ids[: len(ids) // group * group or len(ids)]
        return (view for view, _ in in_order(train, images, ids, max(group, options.batch // group * group)))

    objective.eval()
    if options.recalibrate:
        with both(lambda view: {"y": objective.features(view)["y"]}) as sets:
            before = Evaluate(linear=None, mlp=None, few_shot=None, knn=options.knn, threads=options.threads)
            found = measure_probes(*sets, classes, before, recipe.seed, context.device)
        results |= {f"not_recalibrated/{name}": value for name, value in found.items()}
        re_estimate(objective, clean())
        say(f"batch-norm re-estimated; before, kNN on y was {found['knn/y']:.1%}")
    with both(objective.features) as sets:
        results |= probed(sets, "encoder")
        if context.is_main:
            report.draw_test_images(folder, sets, readers, recipe, dataset)
    codec = getattr(objective, "codec", None)
    if codec is not None:
        found, linear = reconstruction.measure(codec, train, readers[1], images, options, recipe.seed, say)
        results |= found
        if context.is_main:
            report.draw_reconstructions(folder, codec, linear, readers[1], images, recipe.seed)
    if options.controls:
        untrained = build_objective(recipe).to(context.device).eval()
        normed = any(isinstance(layer, GroupBatchNorm) for layer in untrained.encoder.modules())
        for name in ("untrained", "untrained_recalibrated")[: 1 + normed]:
            if name == "untrained_recalibrated":
                re_estimate(untrained, clean())
            with both(untrained.features) as sets:
                control = probed(sets, name.replace("_", ", "))
            results |= {f"control/{name}/{key}": value for key, value in control.items()}
        if compared_pixels(recipe):
            with both(lambda view: {"y": view.flatten(1)}) as sets:
                control = probed(sets, "raw pixels")
            results |= {f"control/pixels/{_without_y(key)}": value for key, value in control.items()}
        else:
            say(f"  raw pixels: left out, {3 * recipe.data.size**2:,} numbers an image are too many to probe")
    for reader in (train, *readers):
        reader.close()
    return results


def re_estimate(objective: nn.Module, images: Iterable[Tensor]) -> None:
    """Batch-norm of all that evaluation looks at: the encoder, and the decoder where there is one."""
    if codec := getattr(objective, "codec", None):
        networks = nn.ModuleList([codec.encoder, codec.decoder])
        recalibrate(networks, images, lambda batch: codec.decode(*codec.encode(batch)))
    else:
        recalibrate(objective.encoder, images)


def _without_y(key: str) -> str:
    """Raw pixels are one feature: probe/svm/y/std -> probe/svm/std."""
    return "/".join(part for part in key.split("/") if part != "y")
