"""Every probe on every feature, as jobs that are divided among the ranks and the cores of each."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean, pstdev

import torch
from torch import Tensor

from trainer.distributed import collectives
from trainer.evaluation import heads, probes
from trainer.evaluation.context import EvaluationContext, Evaluator
from trainer.evaluation.failures import reason
from trainer.evaluation.features import Examples
from trainer.evaluation.knn import knn_accuracy
from trainer.evaluation.requirements import few_shot_name
from trainer.recipe.evaluation import Evaluate, LinearProbe

Outcome = dict[str, float | str]  # figures by name; instead of one that cannot be measured, why
L_BFGS_COST = 3  # a pass that is bound by memory, as against the same products done in large matrices
PASSES = {"linear": 60, "svm": 600}  # about how many a fit by L-BFGS takes, in coordinates that suit it
NOT_SHARES = ("converged", "iterations", "objective", "l2")  # last parts of names that are no accuracy


class Probes(Evaluator):
    """Accuracies of probes on each feature, and of nearest neighbours on y, on all labelled images."""

    name = "probe"

    def wanted(self, context: EvaluationContext) -> bool:
        return context.supervised

    def run(self, context: EvaluationContext) -> dict[str, float]:
        classes, options, seed = len(context.classes), context.options, context.recipe.seed
        train, test = context.examples()
        assert train is not None  # on every rank, since there are labels
        assert test is not None
        figures, failures = measure_probes(train, test, classes, options, seed, context.device)
        for why in dict.fromkeys(failures.values()):
            context.fail([name for name, of_name in failures.items() if of_name == why], why)
        shares = {name: value for name, value in figures.items() if not name.endswith(NOT_SHARES)}
        context.say(
            f"  {context.subject}: " + "  ".join(f"{name} {value:.1%}" for name, value in shares.items())
        )
        for name in unconverged(figures):
            context.say(
                f"  {context.subject}: warning: {name} stopped before its minimum; "
                "more `iterations` may reach it"
            )
        return figures


def unconverged(figures: dict[str, float]) -> list[str]:
    """The names of the probes in `figures` that ended before they had converged."""
    return [
        name.removesuffix("/converged")
        for name, value in figures.items()
        if name.endswith("/converged") and not value
    ]


@dataclass(frozen=True)
class Job:
    """Work that one rank does alone: `run` returns figures by name, in about `cost` operations.

    Attributes:
        figures: their names.
        parts: jobs of some of these figures each, for the case that the whole fails.
    """

    name: str
    cost: float
    run: Callable[[], Outcome]
    figures: tuple[str, ...] = ()
    parts: "tuple[Job, ...]" = ()


def outcome(job: Job) -> Outcome:
    """The figures of a job by name; instead of one that cannot be measured, why."""
    try:
        return job.run()
    except Exception as error:
        if not job.parts:
            return dict.fromkeys(job.figures, reason(error))
    return {name: value for part in job.parts for name, value in outcome(part).items()}


def measure_probes(
    train: Examples, test: Examples, classes: int, options: Evaluate, seed: int, device: torch.device
) -> tuple[dict[str, float], dict[str, str]]:
    """All accuracies that `options` asks for, in [0, 1], and why others are missing; collective.

    One rank does a job from start to end, on `options.threads` threads, from caches that all ranks read. The
    figures are therefore the same bits on any number of ranks and cores, and both are the same on every rank.
    """
    work = jobs(train, test, classes, options, seed, device)
    jobs_of_rank = assign_jobs(work, collectives.world_size())[collectives.rank()]
    tried = [replace(job, run=partial(outcome, job)) for job in jobs_of_rank]
    parts = collectives.run_on_all(lambda: run_all(tried, options.threads, device))
    outcomes = {name: values for part in parts for name, values in part.items()}
    values = {name: value for job in work for name, value in outcomes[job.name].items()}
    failures = {name: why for name, why in values.items() if isinstance(why, str)}
    return {name: value for name, value in values.items() if not isinstance(value, str)}, failures


def assign_jobs(work: list[Job], ranks: int) -> list[list[Job]]:
    """The jobs of each rank: the most costly first, each to the rank that has least to do."""
    assigned: list[list[Job]] = [[] for _ in range(ranks)]
    for job in sorted(work, key=lambda job: -job.cost):
        min(assigned, key=lambda jobs_of_rank: sum(other.cost for other in jobs_of_rank)).append(job)
    return assigned


def run_all(work: list[Job], threads: int, device: torch.device) -> dict[str, Outcome]:
    """Runs jobs in their order, as many at a time as this process has cores for; on a GPU one by one.

    Returns the figures of each job by its name. After an interrupt or an error it does not wait for the rest.
    """
    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(1 if device.type == "cuda" else max(1, cores // threads))
    torch.set_num_threads(threads)  # threads that begin now inherit it
    try:
        return dict(zip([job.name for job in work], pool.map(lambda job: job.run(), work), strict=True))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(cores)


def jobs(
    train: Examples, test: Examples, classes: int, options: Evaluate, seed: int, device: torch.device
) -> list[Job]:
    """The work: for each feature fits by L-BFGS and a pass for all heads; few-shot probe and kNN for y."""
    svm = options.svm if options.svm and options.svm.by_sgd else None
    wanted = {"linear_sgd": options.linear_sgd, "mlp": options.mlp, "svm": svm}
    wanted = {name: head for name, head in wanted.items() if head}
    work = []
    for name in train.features:
        work += _jobs_of(name, _Data(train, test, name, classes, device), options, wanted, seed)
    return work


@dataclass(frozen=True)
class _Data:
    """One feature of both splits, as the arguments of the probes."""

    train: Examples
    test: Examples
    name: str
    classes: int
    device: torch.device

    @property
    def width(self) -> int:
        return self.train.features[self.name].shape[1]

    def __call__(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """On the GPU, if there is one with room for it; else as it is mapped."""
        train_x, train_y = self.train.features[self.name], self.train.labels
        test_x, test_y = self.test.features[self.name], self.test.labels
        if self.device.type == "cuda":
            size = sum(tensor.nbytes for tensor in (train_x, train_y, test_x, test_y))
            if 2 * size < torch.cuda.mem_get_info(self.device)[0]:
                train_x, train_y = train_x.to(self.device), train_y.to(self.device)
                test_x, test_y = test_x.to(self.device), test_y.to(self.device)
        return train_x, train_y, test_x, test_y, self.classes


def _jobs_of(name: str, data: _Data, options: Evaluate, wanted: dict, seed: int) -> list[Job]:
    if name == "head":  # gone with the run: a kNN alone, as published
        return [_knn_job(name, data, options)]
    images, test_images, work = len(data.train.labels), len(data.test.labels), []
    cost_of_pass = 4 * images * data.width * data.classes * L_BFGS_COST
    if probe := options.linear:

        def linear() -> Outcome:
            return linear_figures(f"probe/linear/{name}", data(), probe, seed)

        fits = 1 if isinstance(probe.l2, float) else 1 + len(probe.candidates)
        cost = fits * min(probe.iterations, PASSES["linear"]) * cost_of_pass
        work.append(Job(f"linear/{name}", cost, linear, (f"probe/linear/{name}",)))
    if (machines := options.svm) and not machines.by_sgd:

        def svm() -> Outcome:
            accuracy, fit = probes.svm_probe(*data(), machines)
            return _named(f"probe/svm/{name}", accuracy, {"std": 0.0} | fit.ending())

        work.append(Job(f"svm/{name}", PASSES["svm"] * cost_of_pass, svm, (f"probe/svm/{name}",)))
    if wanted:
        products = sum(head.products(data.classes) * head.epochs for head in wanted.values())
        cost = 4 * images * data.width * products
        together = _heads_job(name, data, wanted, cost, seed)
        alone = [_heads_job(name, data, {head: wanted[head]}, cost, seed) for head in wanted]
        work.append(replace(together, parts=tuple(alone) if len(alone) > 1 else ()))
    if name != "y":
        return work
    if options.few_shot:
        few, linear_options = options.few_shot, options.linear or LinearProbe()

        def few_shot() -> Outcome:
            accuracy, fits = probes.few_shot_probe(*data(), linear_options, few, seed)
            converged = float(all(fit.converged for fit in fits))
            return _named(few_shot_name(few), accuracy, {"converged": converged})

        cost = 2 * test_images * data.width * data.classes * few.draws
        work.append(Job("few_shot/y", cost, few_shot, (few_shot_name(few),)))
    return [*work, _knn_job(name, data, options)]


def linear_figures(
    figure: str, data: tuple[Tensor, Tensor, Tensor, Tensor, int], options: LinearProbe, seed: int
) -> Outcome:
    """The accuracy of `probes.linear_probe` by the name of its figure, and how the fit ended."""
    accuracy, fit = probes.linear_probe(*data, options, seed)
    chosen = {} if isinstance(options.l2, float) else {"l2": fit.l2}
    return _named(figure, accuracy, fit.ending() | chosen)


def _knn_job(name: str, data: _Data, options: Evaluate) -> Job:
    cost = 2 * len(data.train.labels) * len(data.test.labels) * data.width
    figure = f"knn/{name}"
    return Job(figure, cost, lambda: {figure: knn_accuracy(*data()[:4], options.knn)}, (figure,))


def _named(name: str, accuracy: float, parts: dict[str, float]) -> Outcome:
    return {name: accuracy, **{f"{name}/{part}": value for part, value in parts.items()}}


def _heads_job(name: str, data: _Data, wanted: dict, cost: float, seed: int) -> Job:
    figures = tuple(f"probe/{head}/{name}" for head in wanted)
    return Job(f"heads/{name}", cost, lambda: _head_figures(name, data, wanted, seed), figures)


def _head_figures(name: str, data: _Data, wanted: dict, seed: int) -> Outcome:
    figures: Outcome = {}
    for head, accuracies in heads.head_probes(*data(), wanted, seed).items():
        figures[f"probe/{head}/{name}"] = mean(accuracies)
        if head == "svm":
            figures[f"probe/svm/{name}/std"] = pstdev(accuracies)
    return figures
