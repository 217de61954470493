"""The plan of a recipe on nodes with GPUs: what a rank computes, keeps, sends and reads, and how long."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from data_pipelines.common.errors import UserError
from trainer.distributed.engine_kind import EngineKind
from trainer.networks.batch_norm import GroupBatchNorm
from trainer.objectives.objective import Objective
from trainer.recipe.training_recipe import TrainingRecipe
from trainer.tasks.resources import Sizes
from trainer.training.data import DTYPES
from trainer.training.groups import blocks_span_ranks
from trainer.training.schedules import whole_batches

JOB = 48  # hours, as the scripts of slurm/ ask for
WORKSPACE = 0.15  # of a rank's memory, on top: what operations take while they run, and the allocator's gaps
RING = 2  # an all-reduce around a ring is a reduce-scatter and an all-gather
ENGINES = [engine for engine in EngineKind if engine is not EngineKind.SINGLE_PROCESS]


@dataclass(frozen=True)
class Cluster:
    """What a person asks a plan for, as words `nodes=4 gpus=8`.

    Attributes:
        nodes: machines.
        gpus: a machine, one rank each.
        speed: images/s of one GPU; 0: not known.
        network: GB/s that a GPU sends to other machines.
        card: GB of a GPU's memory; 0: not known.
    """

    nodes: int = 1
    gpus: int = 8
    speed: float = 0.0
    network: float = 12.5  # a link of 100 Gbit/s a GPU
    card: float = 0.0

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus


KEYS = {field.name: int if field.type is int else float for field in fields(Cluster)}


def taken(words: Sequence[str]) -> tuple[Cluster | None, list[str]]:
    """The cluster that some of the words describe, None where none does; and the other words.

    Raises:
        UserError: a value is no number, or none that makes sense.
    """
    values: dict[str, float] = {}
    rest: list[str] = []
    for word in words:
        name, _, value = word.partition("=")
        if name not in KEYS:
            rest.append(word)
            continue
        kind, least = KEYS[name], 1 if KEYS[name] is int else 0
        try:
            values[name] = kind(value)
        except ValueError:
            values[name] = -1
        if not least <= values[name] < 1e9 or (name == "network" and not values[name]):
            wanted = "a whole number from 1" if kind is int else "a number above 0"
            raise UserError(f"{word}: expected {wanted}; it is about the machines of the plan")
    return (Cluster(**values) if values else None), rest  # type: ignore[arg-type]


@dataclass(frozen=True)
class Traffic:
    """Bytes of an objective, whole, that ranks exchange in a step.

    Attributes:
        parameters: of all, the momentum encoder's among them.
        trained: of those that learn; their gradients are as large.
        statistics: of batch-norm, summed over ranks.
        contrast: of queries and keys, which every rank receives.
    """

    parameters: int
    trained: int
    statistics: int = 0
    contrast: int = 0

    def sent(self, engine: EngineKind, ranks: int, micro_batches: int) -> int:
        """Bytes that a rank sends in a step. Engines that cut weights gather them in every pass."""
        weights = {
            EngineKind.DDP: RING * self.trained,
            EngineKind.ZERO1: RING * self.trained,
            EngineKind.ZERO2: RING * self.trained,
        }.get(engine, self.trained + micro_batches * (self.parameters + self.trained))
        return (weights + RING * self.statistics + self.contrast) * (ranks - 1) // ranks


def traffic_of(recipe: TrainingRecipe, objective: Objective, sizes: Sizes, ranks: int) -> Traffic:
    """What so many ranks exchange; the objective may be on the device `meta`."""
    size = DTYPES[recipe.precision].itemsize
    features = sum(len(layer.weight) for layer in objective.modules() if isinstance(layer, GroupBatchNorm))
    contrast = 0
    if recipe.objective.momentum_queue:
        # Queries go to every rank; of each a mean of keys and three numbers come back.
        numbers = 2 * recipe.objective.key_width + 3
        # And shuffled keys, to the ranks of their images.
        keys = recipe.objective.key_width if blocks_span_ranks(recipe, ranks) else 0
        contrast = recipe.objective.directions * recipe.batch * (numbers + keys) * size
    return Traffic(sizes.parameters, sizes.gradients, 2 * features * size, contrast)


def kept(engine: EngineKind, sizes: Sizes, ranks: int) -> int:
    """Bytes of weights, gradients, moments and queue that a rank keeps; a gathered layer comes on top."""
    parameters, gradients, moments = sizes.parameters, sizes.gradients, sizes.moments
    if engine is not EngineKind.DDP:
        moments //= ranks
    if engine.stage >= 2 or engine is EngineKind.FSDP2:
        gradients //= ranks
    if engine.stage == 3 or engine is EngineKind.FSDP2:
        parameters //= ranks
    return parameters + gradients + moments + sizes.queue // ranks


def memory_of(engine: EngineKind, sizes: Sizes, activations: int, ranks: int) -> int:
    """Bytes of memory of a rank, with a margin for what operations take while they run."""
    return round((kept(engine, sizes, ranks) + activations) * (1 + WORKSPACE))


def lines(
    recipe: TrainingRecipe,
    cluster: Cluster,
    sizes: Sizes,
    traffic: Traffic,
    activations: int,
    stored: int | None,
    images: int | None,
) -> Iterator[str]:
    """The plan on a cluster over whose ranks the batch divides.

    Args:
        activations: bytes that a rank keeps between forward and backward pass.
        stored: bytes at rest of an epoch; None: not known, or nothing is read.
        images: of an epoch; None: not known.
    """
    ranks, unit = cluster.ranks, recipe.groups.indivisible_images
    share = recipe.batch // ranks
    yield (
        f"cluster    {counted(cluster.nodes, 'node')} with {counted(cluster.gpus, 'GPU')}: "
        f"{counted(ranks, 'rank')}, {share} images a rank and step = {share // unit} x {unit}"
        + f" in {recipe.accumulate} micro-batches"
        * (recipe.accumulate > 1)
    )
    yield f"           activations {gigabytes(activations)} a rank, between forward and backward pass"
    heading = "memory a rank" + f", of {cluster.card:g} GB" * bool(cluster.card)
    yield f"           {'':7} {heading:>24}  sent a step  at {cluster.network:g} GB/s"
    for engine in ENGINES:
        if engine.is_zero and recipe.optimizer.reads_layers:
            continue  # it cuts layers apart
        memory = memory_of(engine, sizes, activations, ranks)
        sent = traffic.sent(engine, ranks, recipe.accumulate)
        room = f"{gigabytes(memory)}" + " TOO MUCH" * (0 < 1e9 * cluster.card < memory)
        seconds = sent / 1e9 / cluster.network
        yield f"           {engine:7} {room:>24}  {sent / 1e6:>8,.0f} MB  {1e3 * seconds:>6,.1f} ms"
    yield f"           {WORKSPACE:.0%} of the memory are a margin for what operations take while they run"
    if cluster.speed:
        yield from duration(recipe, cluster, stored, images)


def duration(
    recipe: TrainingRecipe, cluster: Cluster, stored: int | None, images: int | None
) -> Iterator[str]:
    """How long it takes at a speed, and what that asks of the storage; without the exchange between ranks."""
    total, together = whole_batches(recipe.images, recipe.batch), cluster.speed * cluster.ranks
    hours = total / together / 3600
    jobs = math.ceil(hours / JOB)
    yield (
        f"time       {hours:,.1f} h at {together:,.0f} images/s, where the exchange hides behind computing: "
        f"{counted(jobs, 'job')} of {JOB} h; a step takes {1e3 * recipe.batch / together:,.0f} ms"
    )
    if stored is not None and images:
        read = cluster.speed * cluster.gpus * stored / images * (1 + blocks_span_ranks(recipe, cluster.ranks))
        yield f"           each node reads {read / 1e6:,.0f} MB/s"
    lost = recipe.save.every / together / 60
    yield (
        f"           a checkpoint every {lost:,.1f} minutes: so much is lost at most where a node dies, "
        "nothing at a stop that is announced"
    )


def gigabytes(size: float) -> str:
    """Bytes in words."""
    return f"{size / 1e9:,.2f} GB"


def counted(number: int, what: str) -> str:
    """A number of things in words."""
    return f"{number:,} {what}{'s' * (number != 1)}"
