"""The contract of evaluators: one class a file, run by a loop, on what the context lets them read."""

import importlib
import inspect
import pkgutil

import numpy as np
import pytest
import torch

from data_pipelines.common.errors import SharedError, UserError
from data_pipelines.common.retry import Interrupted
from data_pipelines.reader import Reader
from trainer import evaluation
from trainer.distributed import collectives
from trainer.evaluation import features, health, measure, online, pictures, readers, suite
from trainer.evaluation.context import EvaluationContext, Evaluator, run_evaluators
from trainer.evaluation.features import Examples


class FeatureNorm(Evaluator):
    """The mean length of y on a sample of test images."""

    def wanted(self, context: EvaluationContext) -> bool:
        return "y" in context.objective.encoder.widths

    def run(self, context: EvaluationContext) -> dict[str, float]:
        rows = context.sampled(context.test)
        return {"norm/y": rows[0]["y"].norm(dim=1).mean().item()} if rows else {}


class Unwanted(FeatureNorm):
    def wanted(self, context: EvaluationContext) -> bool:
        return False


@pytest.fixture
def context(train, tmp_path):
    """Of an untrained quickstart; its `encoded` counts the images that went through the encoder."""
    trainer = train("quickstart", "evaluate.online_images=50", "evaluate.batch=20", "data.threads=1")
    objective = trainer.unsharded().eval()
    with EvaluationContext(
        recipe=trainer.recipe,
        options=trainer.recipe.evaluate,
        objective=objective,
        dataset=trainer.data.dataset,
        distributed=trainer.context,
        images=trainer.data.options,
        folder=tmp_path,
    ) as context:
        context.encoded = 0

        def encode(images):
            context.encoded += len(images)
            return objective.features(images)

        context.encode = encode
        yield context


def test_the_loop_runs_the_evaluators_that_are_wanted(context):
    figures = run_evaluators((Unwanted(), FeatureNorm()), context)
    views = torch.cat(
        list(features.Sample(context.test, context.sampled_ids(context.test), context.images, 20).views())
    )
    with torch.no_grad():
        expected = context.objective.features(views)["y"].norm(dim=1).mean().item()
    assert list(figures) == ["norm/y"]
    assert figures["norm/y"] == pytest.approx(expected, rel=1e-5)


class Broken(FeatureNorm):
    name = "broken"

    def run(self, context: EvaluationContext) -> dict[str, float]:
        raise context.error


def test_an_evaluator_that_fails_costs_no_other(context):
    lines = []
    context.say, context.prefix = lines.append, "control/untrained/"
    for context.error in (UserError("no room; make some"), ZeroDivisionError("a\nb")):
        assert list(run_evaluators((Broken(), FeatureNorm()), context)) == ["norm/y"]
    why = context.failures.why["control/untrained/broken"]
    assert why.startswith("ZeroDivisionError: a (test_context.py:")
    assert lines == [
        f"warning: control/untrained/broken: left out, {why}" for why in ("no room; make some", why)
    ]


def test_a_stop_and_what_training_must_know_is_raised(context):
    for context.error, fatal in ((Interrupted("stop"), ()), (UserError("diverged"), (UserError,))):
        with pytest.raises(type(context.error)):
            run_evaluators((Broken(),), context, fatal)
    assert context.failures.why == {}


def test_an_error_that_the_other_ranks_know_of_is_no_reason_to_end(context, monkeypatch):
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    context.error = SharedError("rank 1: no room")
    assert run_evaluators((Broken(),), context) == {}
    assert context.failures.why == {"broken": "rank 1: no room"}
    context.error = RuntimeError("of one rank: the other may wait for it in a collective call")
    with pytest.raises(RuntimeError):
        run_evaluators((Broken(),), context)


def test_features_that_cannot_be_cached_are_encoded_once(context, monkeypatch):
    def full(*_):
        raise UserError("no room")

    monkeypatch.setattr(features, "write_features", full)
    for _ in range(2):
        with pytest.raises(UserError, match="no room"):
            context.examples()
        monkeypatch.setattr(features, "write_features", lambda *_: pytest.fail("encoded again"))


# ---- the final evaluation ----------------------------------------------------------------------------

CHEAP = {"linear": None, "mlp": None, "few_shot": None}  # kNN alone


@pytest.fixture
def few(monkeypatch):
    """A hundred images of each split are labelled."""
    monkeypatch.setattr(readers, "labelled_ids", lambda reader: np.arange(100))


@pytest.mark.usefixtures("few")
def test_the_encoder_keeps_its_figures_where_controls_fail(context, monkeypatch):
    context.options = context.options.model_copy(update=CHEAP)
    monkeypatch.setattr(measure, "_untrained_objective", lambda context: 1 / 0)
    measured = measure.measure(context)
    assert measured.figures.keys() == {"knn/y", "control/pixels/knn"}
    assert measured.left_out.keys() == {"control/untrained", "control/untrained_recalibrated"}
    assert measured.failed


@pytest.mark.usefixtures("few")
def test_names_of_pixels_that_fail_are_those_of_results(context, monkeypatch):
    context.options = context.options.model_copy(update=CHEAP)
    context.untrained = lambda: context.objective
    real = suite.knn_accuracy
    monkeypatch.setattr(
        suite, "knn_accuracy", lambda x, *more: 1 / 0 if x.shape[1] == 3072 else real(x, *more)
    )
    measured = measure.measure(context)
    assert {"knn/y", "control/untrained/knn/y"} <= measured.figures.keys()
    assert measured.left_out.keys() == {"control/pixels/knn"}


@pytest.mark.usefixtures("few")
def test_an_encoder_whose_batch_norm_cannot_be_re_estimated_is_not_measured(context, monkeypatch):
    context.options = context.options.model_copy(update=CHEAP | {"recalibrate": True})
    monkeypatch.setattr(measure, "re_estimate", lambda *_: 1 / 0)
    monkeypatch.setattr(measure, "_untrained_objective", lambda context: context.objective.eval())
    measured = measure.measure(context)
    assert measured.figures.keys() == {"control/untrained/knn/y", "control/pixels/knn"}
    assert measured.left_out.keys() == {"probe", "control/untrained_recalibrated"}


def test_an_evaluation_without_any_figure_is_an_error(context, monkeypatch):
    def full(*_):
        raise UserError("no room")

    context.options = context.options.model_copy(update=CHEAP | {"controls": False})
    monkeypatch.setattr(features, "write_features", full)
    with pytest.raises(SharedError, match="nothing could be measured: no room"):
        measure.measure(context)


def test_training_goes_on_where_an_online_measurement_fails(context, monkeypatch):
    monkeypatch.setattr(health, "effective_rank", lambda y: 1 / 0)
    figures = online.evaluate_online(context)
    assert "knn/y/online" in figures
    assert list(context.failures.why) == ["health"]
    assert context.objective.training


def test_an_evaluator_defines_run():
    class Incomplete(Evaluator):
        pass

    with pytest.raises(TypeError, match=r"abstract method .?run"):
        Incomplete()


def test_each_file_holds_one_evaluator_and_a_loop_runs_it():
    by_file = {}
    for module in pkgutil.iter_modules(evaluation.__path__, f"{evaluation.__name__}."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(kind, Evaluator) and kind is not Evaluator and kind.__module__ == module.name:
                by_file.setdefault(module.name.rpartition(".")[2], []).append(kind)
    known = {"feature_map", "health", "information", "knn", "neighbours", "reconstruction", "suite"}
    assert known <= by_file.keys()
    assert all(len(kinds) == 1 for kinds in by_file.values()), by_file
    listed = [type(evaluator) for evaluator in (*measure.FINAL, *online.ONLINE)]
    assert sorted(listed, key=str) == sorted((kind for kinds in by_file.values() for kind in kinds), key=str)
    assert all("run" in vars(kind) for kind in listed)


def test_the_encoder_runs_once_a_split(context):
    mirrored, _ = context.sampled(context.test, mirrored=True)
    assert context.encoded == 2 * 50
    plain, labels = context.sampled(context.test)
    assert context.encoded == 2 * 50
    assert plain["y"] is mirrored["y"]
    assert not torch.equal(mirrored["y"], mirrored["mirrored"])
    assert labels.shape == (50,)

    context.encoded = 0
    reference, test = context.examples()
    assert context.encoded == len(reference.ids) + len(test.ids)
    assert context.examples()[0] is reference
    assert list(reference.features) == list(context.objective.encoder.widths)


def test_a_control_has_features_of_its_encoding_and_shares_the_readers(context):
    with context.encoding("raw pixels", lambda view: {"y": view.flatten(1)}) as control:
        reference, _ = control.examples()
        assert isinstance(reference, Examples)
        assert reference.features["y"].shape[1] == 3 * context.recipe.data.size**2
        assert (context.folder / features.FOLDER).is_dir()
        assert control.test is context.test
    assert not (context.folder / features.FOLDER).exists()
    assert (control.subject, context.subject) == ("raw pixels", "encoder")
    assert len(context.pictures(context.test, np.arange(2))) == 2  # the readers are open still


def test_each_split_is_opened_once_and_closed_with_the_context(context, monkeypatch):
    opened, closed = [], []
    real = Reader.close
    monkeypatch.setattr(Reader, "close", lambda reader: (closed.append(reader.split), real(reader)))
    for _ in range(2):
        opened += [context.train, context.labelled, context.test, context.reference]
    assert len({id(reader) for reader in opened}) == 2  # data.labelled is the training split
    context.__exit__(None, None, None)
    assert sorted(closed) == ["test", "train"]


def test_batch_norm_images_come_in_whole_groups(context):
    assert [len(views) for views in context.batch_norm_images()] == [50]  # fewer than a group of 64
    context.options = context.options.model_copy(update={"online_images": 200})
    assert [len(views) for views in context.batch_norm_images()] == [64, 64, 64]


def test_a_picture_that_fails_costs_a_line(context, capsys):
    with context.drawing("one.png") as path:
        raise ValueError("no ink")
    assert path == context.folder / "figures" / "one.png"
    assert capsys.readouterr().err == f"warning: {path} was not drawn: ValueError: no ink\n"


def test_pictures_are_the_images_before_normalisation(context):
    (image,) = pictures.pictures(context.test, np.arange(1), context.recipe.data, size=16)
    assert image.shape == (16, 16, 3)
    assert image.min() >= 0
    assert image.max() <= 1
