"""All probes of a recipe: which figures come of them, and who computes them."""

import threading
from dataclasses import replace
from statistics import mean, pstdev

import pytest
import torch

from trainer.evaluation import probes
from trainer.evaluation.features import Examples
from trainer.evaluation.heads import head_probes
from trainer.evaluation.suite import Job, assign_jobs, jobs, measure_probes, run_all, unconverged
from trainer.recipe.evaluation import Evaluate, FewShot, LinearProbe, MlpProbe, SgdProbe, SvmProbe

CPU = torch.device("cpu")
SVM = SvmProbe(iterations=None, epochs=3, runs=3, lr=0.5)
EVERYTHING = Evaluate(
    linear=LinearProbe(iterations=5),
    linear_sgd=SgdProbe(epochs=10),
    mlp=MlpProbe(epochs=10),
    svm=SVM,
    few_shot=FewShot(draws=1),
)


@pytest.fixture
def sets(pixels):
    train_x, train_y, test_x, test_y, _ = pixels
    return (
        Examples({"pooled": train_x, "y": train_x[:, ::2]}, train_y, None),
        Examples({"pooled": test_x, "y": test_x[:, ::2]}, test_y, None),
    )


def test_every_probe_of_every_feature(sets, pixels):
    figures, failures = measure_probes(*sets, 10, EVERYTHING, 0, CPU)
    assert not failures
    each = ["linear/{}", "linear_sgd/{}", "mlp/{}", "svm/{}", "svm/{}/std"]
    each[1:1] = [f"linear/{{}}/{part}" for part in ("converged", "iterations", "objective")]
    expected = [f"probe/{key}".format(name) for name in ("pooled", "y") for key in each]
    assert list(figures) == [*expected, "few_shot/5/linear/y", "few_shot/5/linear/y/converged", "knn/y"]
    assert figures["probe/linear/y/converged"] == 0  # after 5 iterations
    assert figures["probe/linear/y/iterations"] == 5
    assert unconverged(figures)[:2] == ["probe/linear/pooled", "probe/linear/y"]
    runs = head_probes(*pixels, {"svm": SVM}, 0)["svm"]
    assert figures["probe/svm/pooled"] == pytest.approx(mean(runs), abs=0.01)
    assert 0 < figures["probe/svm/pooled/std"] < 0.1
    assert figures["probe/svm/pooled/std"] == pytest.approx(pstdev(runs), abs=0.01)
    assert all(
        value > 0.4 for name, value in figures.items() if not name.endswith(("std", "converged", "objective"))
    )


def test_svms_at_their_minimum_have_no_spread_and_a_chosen_weight_is_reported(sets):
    options = Evaluate(mlp=None, few_shot=None, svm=SvmProbe(l2=1.0), linear=LinearProbe(l2=[0.1, 1.0]))
    figures, _ = measure_probes(*sets, 10, options, 0, CPU)
    assert figures["probe/svm/y/std"] == 0
    assert figures["probe/svm/y/converged"] == 1
    assert figures["probe/svm/y"] > 0.8
    assert figures["probe/linear/y/l2"] in (0.1, 1.0)
    assert not unconverged(figures)


def test_a_projection_head_has_a_knn_and_no_probe(sets):
    train, test = (replace(part, features=part.features | {"head": part.features["y"]}) for part in sets)
    figures, _ = measure_probes(train, test, 10, EVERYTHING, 0, CPU)
    assert {name for name in figures if "head" in name} == {"knn/head"}
    assert figures["knn/head"] == figures["knn/y"]


def test_what_is_null_is_left_out(sets):
    options = Evaluate(linear=None, mlp=None, few_shot=None)
    assert list(measure_probes(*sets, 10, options, 0, CPU)[0]) == ["knn/y"]
    options = Evaluate(linear=None, mlp=None)
    assert list(measure_probes(*sets, 10, options, 0, CPU)[0]) == [
        *("few_shot/5/linear/y", "few_shot/5/linear/y/converged", "knn/y"),
    ]


def test_a_probe_that_fails_costs_its_own_figures(sets):
    """A mistake is told in its words; one of several heads of a pass does not cost the others."""
    wanted = Evaluate(
        linear=None,
        linear_sgd=SgdProbe(epochs=1),
        mlp=MlpProbe(epochs=2, lr=1e30),
        svm=SvmProbe(epochs=1, runs=2),
        few_shot=FewShot(shots=1000),
    )
    figures, failures = measure_probes(*sets, 10, wanted, 0, CPU)
    assert failures.keys() == {"probe/mlp/pooled", "probe/mlp/y", "few_shot/1000/linear/y"}
    assert failures["probe/mlp/y"] == "evaluate.mlp.lr=1e+30: the probe diverged; lower it"
    assert "evaluate.few_shot.shots=1000" in failures["few_shot/1000/linear/y"]
    alone, _ = measure_probes(*sets, 10, wanted.model_copy(update={"mlp": None, "few_shot": None}), 0, CPU)
    assert figures == pytest.approx(alone)
    assert {"probe/linear_sgd/y", "probe/svm/pooled", "probe/svm/y/std", "knn/y"} <= figures.keys()


def test_an_unexpected_error_of_a_probe_is_one_line(sets, monkeypatch):
    def broken(*_):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(probes, "linear_probe", broken)
    options = Evaluate(mlp=None, few_shot=None)
    figures, failures = measure_probes(*sets, 10, options, 0, CPU)
    assert list(figures) == ["knn/y"]
    assert failures.keys() == {"probe/linear/pooled", "probe/linear/y"}
    (line,) = set(failures.values())
    assert line.startswith("RuntimeError: first line (test_suite.py:")


def test_jobs_are_assigned_so_that_all_ranks_end_together():
    work = [Job(name, cost, dict) for name, cost in (("a", 1), ("b", 5), ("c", 3), ("d", 2))]
    assigned = [[job.name for job in part] for part in assign_jobs(work, 2)]
    assert assigned == [["b", "a"], ["c", "d"]]
    assert [len(part) for part in assign_jobs(work, 6)] == [1, 1, 1, 1, 0, 0]


def test_the_dear_jobs_are_known_to_be_dear(sets):
    cost = {job.name: job.cost for job in jobs(*sets, 10, EVERYTHING, 0, CPU)}
    assert cost["heads/pooled"] == 2 * cost["heads/y"]
    assert cost["heads/pooled"] == 4 * 1437 * 64 * ((10 + 200) * 10 + 3 * 10 * 3)


def test_jobs_share_the_cores_and_leave_the_threads_as_they_were():
    """Two jobs that wait for each other can only end if they run at the same time."""
    meeting, threads = threading.Barrier(2, timeout=60), torch.get_num_threads()

    def meet():
        meeting.wait()
        return {"threads": torch.get_num_threads()}

    torch.set_num_threads(2)
    try:
        figures = run_all([Job("a", 2, meet), Job("b", 1, meet)], threads=1, device=CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert figures == {"a": {"threads": 1}, "b": {"threads": 1}}
