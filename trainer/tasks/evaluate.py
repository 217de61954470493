"""Evaluation of a frozen encoder: probes, nearest neighbours, controls, on cached features."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from data_pipelines.dataset import Dataset, load_dataset
from data_pipelines.draws import permutation
from data_pipelines.errors import UserError
from data_pipelines.loader import Images, Loader, in_order
from data_pipelines.plan import Plan
from data_pipelines.reader import Reader
from trainer import assembly, recipe_loading
from trainer.evaluation import probes
from trainer.evaluation.knn import knn_accuracy
from trainer.networks.batch_norm import recalibrate
from trainer.recipe import EvaluateRun, Pretrain
from trainer.recipe_evaluation import Evaluate
from trainer.runtime import checkpoint, collectives
from trainer.runtime.journal import Journal
from trainer.runtime.launch import Place
from trainer.runtime.run_folder import RunFolder
from trainer.runtime.tracking import Follower, uri_for
from trainer.tasks import report
from trainer.training import Training

Features = dict[str, Tensor]


def run(loaded: recipe_loading.Loaded, place: Place) -> int:
    """Evaluates the newest checkpoint of the run in `from`; figures go to its results.json and to MLflow."""
    options = loaded.recipe
    folder = RunFolder.of(loaded)
    if not (folder.path / "recipe.yaml").exists():
        raise UserError(f"from={options.from_}: no run there (recipe.yaml is missing); give a run's folder")
    recipe = recipe_loading.load_saved(folder.path / "recipe.yaml").recipe
    found = collectives.on_first(lambda: checkpoint.newest(folder.checkpoints, print))
    if found is None:
        raise UserError(f"from={options.from_}: the run has no checkpoint yet")
    objective = assembly.build_objective(recipe)
    state = checkpoint.load(found)
    objective.load_state_dict(
        {k.removeprefix("model/"): v for k, v in state.items() if k.startswith("model/")}
    )
    dataset = load_dataset(recipe.data.root, recipe.data.source)
    say = print if place.main else lambda line: None
    say(f"evaluating {found.path}")
    journal = Journal(folder.journal) if place.main else None  # refused while the run is being trained
    results = measure(objective.to(place.device), recipe, options.evaluate, dataset, place, folder, say)
    if place.main:
        folder.merge_results(results)
        deliver(folder, journal, results, found.images, options)
        print(report.summary(folder, recipe))
    return 0


def deliver(folder: RunFolder, journal: Journal, results: dict, images: int, options: EvaluateRun) -> None:
    """Figures into the run's own journal, and through it into its MLflow run."""
    journal.metrics({f"results/{name}": value for name, value in results.items()}, images)
    uri = uri_for(options.tracking.uri, folder.path.parent)
    follower = uri and Follower(folder.path, uri, options.tracking.experiment, folder.path.name, report=print)
    if follower:
        follower.close()
    journal.close()


# ---- features ------------------------------------------------------------------------------------


def image_options(recipe: Pretrain, place: Place) -> Images:
    data = recipe.data
    return Images(data.size, data.normalize, data.threads, place.device, assembly.DTYPES[recipe.precision])


@torch.no_grad()
def features_of(
    encode: Callable[[Tensor], Features],
    reader: Reader,
    ids: np.ndarray,
    images: Images,
    batch: int,
    place: Place,
) -> tuple[Features, Tensor]:
    """Features and labels of the samples `ids`, float32 on the CPU of rank 0 (empty elsewhere).

    Every rank encodes a contiguous slice of them.
    """
    mine = np.array_split(ids, place.world)[place.rank]
    count = len(mine)  # where there are fewer images than ranks, a rank without one still tells the widths
    parts: list[Features] = []
    labels = []
    for view, label in in_order(reader, images, mine if count else ids[:1], batch):
        parts.append({name: value.float().cpu() for name, value in encode(view).items()})
        labels.append(label)
    features = {name: torch.cat([part[name] for part in parts])[:count] for name in parts[0]}
    gathered = {name: collectives.gather_rows(rows) for name, rows in features.items()}
    return gathered, collectives.gather_rows(torch.cat(labels)[:count])


def subset(reader: Reader, count: int, seed: int) -> np.ndarray:
    """A fixed random choice of samples of a split, in the order of their ids."""
    return np.sort(permutation(reader.images, seed, "subset")[:count])


# ---- during pretraining --------------------------------------------------------------------------


def online(training: Training) -> dict[str, float]:
    """Cheap measurements of the encoder as it stands; it is put back into training mode."""
    recipe, place, objective = training.recipe, training.place, training.objective
    options = recipe.evaluate
    objective.eval()
    test = Reader(training.reader.dataset, recipe.data.test)
    sets = []
    for reader in (training.reader, test):
        ids = subset(reader, options.online_images, recipe.seed)
        encode = lambda view: {"y": objective.features(view)["y"]}  # noqa: E731
        sets.append(features_of(encode, reader, ids, training.image_options, options.batch, place))
    figures = held_out(training, test) if place.main else {}
    objective.train()
    test.close()
    if place.main:
        (train, train_labels), (tested, test_labels) = sets
        classes = len(training.reader.dataset.classes)
        figures["knn/y/online"] = knn_accuracy(
            train["y"], train_labels, tested["y"], test_labels, classes, options.knn
        )
    return figures


@torch.no_grad()
def held_out(training: Training, test: Reader) -> dict[str, float]:
    """The information estimates on test images, nats; none where the split is smaller than the groups.

    Computed by one rank, a few groups at a time, on images that do not depend on the ranks.
    """
    recipe, unit = training.recipe, assembly.group_unit(training.recipe)
    images = min(test.images, recipe.evaluate.online_images) // unit * unit
    loader = Loader(
        test,
        Plan(recipe.seed, test.shards, recipe.data.window),
        training.image_options,
        recipe.data.views,
        batch=unit,
        start=0,
        stop=images,
    )
    sums: dict[str, list[Tensor]] = {}
    for part in loader:
        for name, value in training.objective(part).items():
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
    place: Place,
    folder: RunFolder,
    say: Callable[[str], None],
) -> dict[str, float]:
    """All that `options` asks for, accuracies in [0, 1]; on rank 0 (the others help and wait)."""
    readers = Reader(dataset, recipe.data.train), Reader(dataset, recipe.data.test)
    images = image_options(recipe, place)
    classes = len(dataset.classes)

    def both(encode) -> tuple[tuple[Features, Tensor], ...]:
        return tuple(
            features_of(encode, reader, np.arange(reader.images), images, options.batch, place)
            for reader in readers
        )

    def clean():
        group = recipe.groups.norm
        ids = subset(readers[0], options.online_images, recipe.seed)
        return (
            view for view, _ in in_order(readers[0], images, ids, max(group, options.batch // group * group))
        )

    results = {}
    objective.eval()
    if options.recalibrate:
        before = both(objective.features)
        recalibrate(objective.encoder, clean())
        if place.main:
            results["not_recalibrated/knn/y"] = knn(before, "y", classes, options)
            say(f"batch-norm re-estimated; before, kNN on y was {results['not_recalibrated/knn/y']:.1%}")
        del before
    trained = both(objective.features)
    if place.main:
        results |= probe_all(trained, classes, options, recipe.seed, say, "encoder")
        report.draw_neighbours(folder.path / "figures" / "neighbours.png", trained, readers, recipe, dataset)
    del trained
    if options.controls:
        untrained = assembly.build_objective(recipe).to(place.device).eval()
        for name in ("untrained", "untrained_recalibrated"):
            if name == "untrained_recalibrated":
                recalibrate(untrained.encoder, clean())
            found = both(untrained.features)
            if place.main:
                control = probe_all(found, classes, options, recipe.seed, say, name.replace("_", ", "))
                results |= {f"control/{name}/{key}": value for key, value in control.items()}
            del found
        found = both(lambda view: {"y": view.flatten(1)})
        if place.main:
            control = probe_all(found, classes, options, recipe.seed, say, "raw pixels")
            results |= {f"control/pixels/{key.removesuffix('/y')}": value for key, value in control.items()}
    for reader in readers:
        reader.close()
    collectives.barrier()
    return results


def knn(sets, feature: str, classes: int, options: Evaluate) -> float:
    (train, train_labels), (test, test_labels) = sets
    return knn_accuracy(train[feature], train_labels, test[feature], test_labels, classes, options.knn)


def probe_all(
    sets, classes: int, options: Evaluate, seed: int, say: Callable[[str], None], whose: str
) -> dict[str, float]:
    """Every probe on every feature."""
    (train, train_labels), (test, test_labels) = sets
    results = {}
    for name in train:
        data = train[name], train_labels, test[name], test_labels, classes
        if options.linear:
            results[f"probe/linear/{name}"] = probes.linear_probe(*data, options.linear)
        if options.mlp:
            results[f"probe/mlp/{name}"] = probes.mlp_probe(*data, options.mlp, seed)
        if options.few_shot and name == "y":
            results[f"few_shot/{options.few_shot.shots}/linear/y"] = probes.few_shot_probe(
                *data, options.linear or Evaluate().linear, options.few_shot, seed
            )
        if name == "y":
            results["knn/y"] = knn(sets, "y", classes, options)
    say(f"  {whose}: " + "  ".join(f"{name} {value:.1%}" for name, value in results.items()))
    return results
