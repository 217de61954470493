"""Controls that the report makes of the runs: the concatenation's sums, codecs, Gaussians, inner features."""

import pytest

from tests.helpers.run_folders import SPEED, WORDS, write_diffusion, write_run
from trainer.report.report import make_report
from trainer.report.tables import Figure

ENCODER = {"model/encoder.a": [100]}
CODEC = {"model/encoder.a": [40, 5], "model/decoder.b": [30]}
HYBRID = {"model/contrast.encoder.a": [250], "model/decoder.b": [30]}
MOCO = "y of MoCo-v2 (resnet18)"


def run_table(folder):
    (table,) = [table for table in make_report([folder]).tables if table.title == "Runs"]
    return table


def controls(folder):
    return {row.label: row.cells for row in run_table(folder).rows if row.origin == "control"}


def notes(folder):
    return [note for note in run_table(folder).notes if " against concatenation " in note]


@pytest.fixture
def outputs(tmp_path):
    """Two seeds of MoCo with |y| = 128, two of an autoencoder with |y| = |w| = 768."""
    for seed, y, sse in ((0, 0.50, 2.4), (1, 0.54, 2.6)):
        moco = {"probe/linear/y": y, "knn/y": 0.4}
        write_run(tmp_path / f"moco{seed}", [*WORDS["moco"], f"seed={seed}"], moco, 6_400, ENCODER)
        codec = {"reconstruction/sse": sse, "reconstruction/psnr": 31.0, "probe/linear/y": 0.3}
        write_run(tmp_path / f"ae{seed}", [*WORDS["autoencoder"], f"seed={seed}"], codec, 12_800, CODEC)
    return tmp_path


def test_the_concatenation_adds_sizes_and_costs(outputs):
    ((label, cells),) = controls(outputs).items()
    assert label == f"control: concatenation A: {MOCO} beside the latent of autoencoder (nvae pooled)"
    assert cells["linear y, %"] == Figure(52.0, pytest.approx(2.0), 2)
    assert cells["kNN y, %"] == Figure(40.0, 0.0, 2)
    assert cells["error an image"] == Figure(2.5, pytest.approx(0.1), 2)
    assert cells["PSNR, dB"] == Figure(31.0, 0.0, 2)
    assert cells["D = |y| + |w|"] == Figure(128 + 2 * 768)
    assert cells["encoder, parameters"] == Figure(100 + 200)
    assert cells["decoder, parameters"].mean == 30
    assert cells["images seen"] == Figure(6_400 + 12_800)
    assert cells["hours"].mean == pytest.approx(1.5 * (6_400 + 12_800) / SPEED / 3600)
    assert (cells["device"], cells["seeds"]) == ("cpu", "0, 1 + 0, 1")
    assert not cells.get("linear w, %")


def test_what_is_not_known_of_one_is_not_known_of_both(outputs):
    for run in outputs.iterdir():
        if run.name.startswith("ae"):
            (run / "journal.jsonl").write_text("")
            (run / "world.json").write_text('{"device": "NVIDIA H200", "processes": 1}')
    (cells,) = controls(outputs).values()
    assert cells["hours"] is None
    assert cells["device"] is None
    assert cells["images seen"] == Figure(6_400 + 12_800)


def test_a_note_says_what_the_hybrid_beats(outputs):
    figures = {"probe/linear/y": 0.51, "reconstruction/sse": 3.0}
    write_run(outputs / "hybrid", WORDS["hybrid"], figures, 12_800, HYBRID)
    (note,) = notes(outputs)
    assert note == (
        "hybrid, MoCo-v2, ω 0.1 (nvae pooled) against concatenation A: better in D = |y| + |w| "
        "(1,536 < 1,664), parameters (280 < 330), images seen (12,800 < 19,200), hours (0.0267 < 0.0400); "
        "not in linear y, % (51.0 < 52.0), error an image (3.00 > 2.50)"
    )


def test_a_hybrid_that_is_better_in_quality_alone(outputs):
    figures = {"probe/linear/y": 0.60, "reconstruction/sse": 2.0}
    words = [*WORDS["hybrid"], "encoder.latent=8"]
    tensors = {"model/contrast.encoder.a": [900], "model/decoder.b": [30]}
    write_run(outputs / "hybrid", words, figures, 19_200, tensors)
    (note,) = notes(outputs)
    better, worse = note.split("; not in ")
    assert better.endswith("better in linear y, % (60.0 > 52.0), error an image (2.00 < 2.50)")
    assert "D = |y| + |w| (2,048 > 1,664)" in worse
    assert "images seen (19,200 = 19,200)" in worse


def test_a_difference_within_the_spreads_says_so(outputs):
    for seed, y in ((0, 0.51), (1, 0.55)):
        figures = {"probe/linear/y": y, "reconstruction/sse": 9.0 + seed}
        write_run(outputs / f"hybrid{seed}", [*WORDS["hybrid"], f"seed={seed}"], figures, 12_800)
    (note,) = notes(outputs)
    assert "linear y, % (53.0 > 52.0, within the spreads)" in note
    assert "error an image (9.50 > 2.50)" in note


def test_hours_on_other_devices_are_not_compared(outputs):
    figures = {"probe/linear/y": 0.51, "reconstruction/sse": 3.0}
    write_run(outputs / "hybrid", WORDS["hybrid"], figures, 12_800, device="NVIDIA H200")
    (note,) = notes(outputs)
    assert "hours" not in note


def test_only_runs_on_the_same_data_are_concatenated(tmp_path):
    write_run(tmp_path / "moco", ["recipe=quickstart"], {"probe/linear/y": 0.5})
    write_run(tmp_path / "ae", WORDS["autoencoder"], {"reconstruction/sse": 2.0})
    labels = [row.label for table in make_report([tmp_path]).tables for row in table.rows]
    assert not [label for label in labels if "concatenation" in label]


def test_the_most_accurate_pairs_have_rows_and_the_others_a_note(outputs):
    for number in range(5):
        words = [*WORDS["moco"], f"objective.temperature=0.{number + 3}"]
        write_run(outputs / f"more{number}", words, {"probe/linear/y": 0.6 + number / 100})
    pairs = [label for label in controls(outputs) if "concatenation" in label]
    assert [label.partition("temperature=")[2][:3] for label in pairs] == ["0.7", "0.6", "0.5", "0.4"]
    assert "2 further concatenations, of lower accuracy, are left out" in run_table(outputs).notes


def test_the_linear_codec_is_a_row_by_the_size_of_the_latent(tmp_path):
    def codec(sse):
        prefix = "control/linear_codec/reconstruction"
        return {"knn/y": 0.4, f"{prefix}/sse": sse, f"{prefix}/psnr": 42.0}

    for seed, sse in ((0, 0.16), (1, 0.18)):  # both kinds of run have it, of each seed the same
        write_run(tmp_path / f"hybrid{seed}", [*WORDS["hybrid"], f"seed={seed}"], codec(sse))
        write_run(tmp_path / f"ae{seed}", [*WORDS["autoencoder"], f"seed={seed}"], codec(sse))
    write_run(tmp_path / "larger", [*WORDS["hybrid"], "encoder.latent=8"], codec(0.01))
    rows = [row for row in run_table(tmp_path).rows if row.label == "control: linear codec"]
    by_size = {row.cells["D = |y| + |w|"].mean: row.cells["error an image"] for row in rows}
    assert by_size[1536] == Figure(pytest.approx(0.17), pytest.approx(0.01), 2)
    assert by_size[2048] == Figure(0.01)


def test_the_untrained_network_is_a_row_of_each_encoder(tmp_path):
    figures = {"knn/y": 0.4, "control/untrained/knn/y": 0.3, "control/untrained/probe/linear/y": 0.35}
    write_run(tmp_path / "hybrid", WORDS["hybrid"], figures)
    write_run(tmp_path / "ae", WORDS["autoencoder"], figures)
    write_run(tmp_path / "moco", WORDS["moco"], figures | {"control/untrained/knn/y": 0.2})
    accuracies = {label: cells["kNN y, %"] for label, cells in controls(tmp_path).items()}
    assert accuracies == {
        "control: untrained network (nvae pooled)": Figure(30.0),
        "control: untrained network (resnet18)": Figure(20.0),
    }


def test_gaussians_and_inner_features_of_diffusion_runs(tmp_path):
    source = write_run(tmp_path / "hybrid", WORDS["hybrid"], {"knn/y": 0.5})
    distances = {
        "generation/samples/frechet_efficientnet_lite0": 745.0,
        "generation/gaussian_full/frechet_efficientnet_lite0": 1416.0,
        "generation/gaussian_channel/frechet_efficientnet_lite0": 1876.0,
    }
    write_diffusion(tmp_path / "flow", source, distances, process="flow")
    pixels = {"probe/linear/denoiser_features": 0.904, "generation/inversion/sse": 2.5}
    pixels |= {"probe/linear/inverted_noise": 0.25, "generation/inversion/steps": 50.0}
    write_diffusion(tmp_path / "pixels", None, pixels)
    latents = "diffusion on latents, flow (eps), of hybrid, MoCo-v2, ω 0.1 (nvae pooled)"
    rows = controls(tmp_path)
    distance = "Fréchet: efficientnet_lite0"
    assert rows[f"control: Gaussian fitted to z, full covariance; {latents}"][distance] == Figure(1416.0)
    assert rows[f"control: Gaussian fitted to z, each channel alone; {latents}"][distance] == Figure(1876.0)
    features = rows["control: the denoiser's own features, diffusion on pixels, ddim (eps)"]
    assert features["linear y, %"] == Figure(pytest.approx(90.4))
    ours = {row.label: row.cells for row in run_table(tmp_path).rows if row.origin == "ours"}
    assert ours["diffusion on pixels, ddim (eps)"]["error an image"] == Figure(2.5)
    assert not ours["diffusion on pixels, ddim (eps)"]["linear y, %"]
    assert ours["diffusion on pixels, ddim (eps)"]["linear z, %"] == Figure(25.0)
    (table,) = [t for t in make_report([tmp_path]).tables if t.title.startswith("As Table 1")]
    (accuracy,) = [row.cells["accuracy, %"] for row in table.rows if row.label.startswith("diffusion on p")]
    assert accuracy == Figure(25.0)
    assert ours["diffusion on pixels, ddim (eps)"]["D = |y| + |w|"] == Figure(3 * 32 * 32)
