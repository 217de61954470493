"""TorchScripts as extractors: which are run, what they are called, and how they are called."""

import shutil

import pytest
import torch

from data_pipelines.common.errors import UserError
from tests.helpers.tiny_dataset import pictures
from tests.helpers.tiny_extractors import CPU, torchscript
from trainer.evaluation import torchscript as module
from trainer.evaluation.torchscript import TorchScript, build_extractor


def images(n: int = 7) -> torch.Tensor:
    return torch.from_numpy(pictures(n, 8, 8)).permute(0, 3, 1, 2)


def refused(*arguments) -> str:
    with pytest.raises(UserError) as caught:
        build_extractor(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_features_are_those_of_the_network_on_uint8_images(tmp_path):
    path, network, digest = torchscript(tmp_path)
    extractor = build_extractor(str(path), digest, 112, CPU)
    rows = extractor(images())
    with torch.no_grad():
        assert torch.equal(rows, network(images(), return_features=True))
    assert rows.dtype == torch.float32
    assert (extractor.name, extractor.identity) == ("net", digest)
    assert extractor.figure("frechet") == "frechet_net"


def test_a_program_is_run_only_where_its_digest_is_known(tmp_path):
    path, _, digest = torchscript(tmp_path)
    assert f"add evaluate.sha256={digest}" in refused(str(path), None, 112, CPU)
    line = refused(str(path), "0" * 64, 112, CPU)
    assert f"expected the sha256 {'0' * 64}, and the file has {digest}" in line
    assert build_extractor(str(path), digest.upper(), 112, CPU).identity == digest
    named = tmp_path / f"net-{digest[:8]}.pt"
    shutil.copy(path, named)
    assert build_extractor(str(named), None, 112, CPU).figure("kid") == f"kid_net-{digest[:8]}"
    other = tmp_path / "net-0123abcd.pt"
    shutil.copy(path, other)
    assert "expected the sha256 0123abcd" in refused(str(other), digest, 112, CPU)  # also where it is given


def test_inception_is_known_by_its_digest_and_no_other_file_is_called_so(tmp_path, monkeypatch):
    path, _, digest = torchscript(tmp_path, "inception-2015-12-05")
    assert "nothing says that it is the one" in refused(str(path), None, 112, CPU)
    assert build_extractor(str(path), digest, 112, CPU).figure("frechet") == "frechet_inception-2015-12-05"
    for name in ("inception", "efficientnet_lite0"):
        taken = tmp_path / f"{name}.pt"
        shutil.copy(path, taken)
        assert build_extractor(str(taken), digest, 112, CPU).name == f"{name}-{digest[:8]}"
    monkeypatch.setattr(module, "INCEPTIONS", (*module.INCEPTIONS, digest))
    extractor = build_extractor(str(path), None, 112, CPU)
    figures = [extractor.figure(measure) for measure in ("frechet", "kid", "recall")]
    assert figures == ["fid", "kid_inception", "recall_inception"]


def test_an_inception_whose_digest_stands_in_its_name(tmp_path, monkeypatch):
    path, _, digest = torchscript(tmp_path)
    named = tmp_path / f"weights-inception-2015-12-05-{digest[:8]}.pt"
    shutil.copy(path, named)
    assert not TorchScript(named, None, CPU).is_inception
    monkeypatch.setattr(module, "INCEPTIONS", (digest[:8],))
    assert TorchScript(named, None, CPU).is_inception
    with named.open("ab") as file:
        file.write(b"damage")
    assert f"expected the sha256 {digest[:8]}" in refused(str(named), None, 112, CPU)


def test_files_that_are_missing_or_no_torchscript(tmp_path):
    assert "cannot be read (No such file or directory)" in refused(str(tmp_path / "no.pt"), None, 112, CPU)
    weights = tmp_path / "weights.pt"
    torch.save({"w": torch.zeros(3)}, weights)
    digest = module.checked_digest(weights, None, "")
    assert refused(str(weights), digest, 112, CPU) == (
        f"{weights}: is no TorchScript; give a file of torch.jit.save"
    )


def test_a_module_that_cannot_be_called_so_or_returns_no_features(tmp_path):
    class Other(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().mean((2, 3))

    class Maps(torch.nn.Module):
        def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            return images.float()

    class Nan(torch.nn.Module):
        def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            return images.float().mean((2, 3)) * float("nan")

    for network, expected in (
        (Other(), "cannot be called with uint8 images [7, 3, 8, 8] and return_features=True"),
        (Maps(), "expected features [7, d], and it returns [7, 3, 8, 8]"),
        (Nan(), "a feature is not a number"),
    ):
        path = tmp_path / "module.pt"
        torch.jit.script(network).save(path)
        extractor = TorchScript(path, module.checked_digest(path, None, ""), CPU)
        with pytest.raises(UserError) as caught:
            extractor(images())
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
