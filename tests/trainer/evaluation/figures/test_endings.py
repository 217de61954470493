"""Which fits of a results.json stopped early, and of which it is not known."""

from trainer.evaluation.figures.charts import table
from trainer.evaluation.figures.endings import endings


def test_fits_that_ended_well_need_no_line():
    assert endings({}) == ""
    assert endings({"knn/y": 0.5, "probe/mlp/y": 0.5, "probe/linear_sgd/y": 0.5}) == ""
    whole = {"probe/linear/y": 0.5, "probe/linear/y/converged": 1.0, "probe/linear/y/iterations": 40.0}
    assert endings(whole | {"probe/linear/y/l2": 1e-4, "probe/linear/y/objective": 0.7}) == ""


def test_old_results_are_unknown_and_short_fits_are_named():
    results = {
        "control/pixels/few_shot/5/linear": 0.4,
        "control/pixels/few_shot/5/linear/converged": 1.0,
        "control/pixels/probe/linear": 0.4,
        "control/pixels/probe/linear/converged": 0.0,
        "control/untrained/probe/svm/y": 0.4,
        "control/untrained/probe/svm/y/std": 0.01,
        "probe/linear/y": 0.5,
    }
    short, unknown = endings(results).splitlines()
    assert short.startswith("stopped before the minimum: control/pixels/probe/linear;")
    assert unknown.endswith(": control/untrained/probe/svm/y, probe/linear/y")


def test_how_a_fit_ended_is_no_row_of_the_table():
    results = {
        "probe/linear/y": 0.5,
        "probe/linear/y/converged": 1.0,
        "control/pixels/probe/linear": 0.25,
        "control/pixels/probe/linear/converged": 1.0,
        "control/pixels/probe/linear/iterations": 40.0,
        "control/pixels/probe/linear/objective": 0.7,
        "control/pixels/few_shot/5/linear/converged": 1.0,
    }
    assert table(results).splitlines() == ["accuracy, %  encoder  pixels", "linear, y       50.0    25.0"]
