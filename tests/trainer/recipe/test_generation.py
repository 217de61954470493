"""The section of generated images: what it takes, and what it refuses."""

import subprocess
import sys
from typing import get_args

import pytest
from pydantic import ValidationError

from trainer.recipe.generation import MEASURES, ROWS, Generation, Measure, Row


def test_defaults_measure_all_and_need_no_extractor():
    section = Generation()
    assert section.rows == list(get_args(Row)) == ROWS
    assert section.measures == list(get_args(Measure)) == MEASURES
    assert section.extractor is None
    assert section.keeps_features
    assert not Generation(measures=["frechet"]).keeps_features


@pytest.mark.parametrize(
    ("name", "becomes"),
    [
        ("efficientnet_lite0", "efficientnet_lite0"),
        ("efficientnet_lite2", "efficientnet_lite2"),
        ("nets/inception-2015-12-05.pt", "nets/inception-2015-12-05.pt"),
        ("~/net.pt", "HOME/net.pt"),
    ],
)
def test_extractors(name, becomes, monkeypatch):
    monkeypatch.setenv("HOME", "HOME")
    assert Generation(extractor=name).extractor == becomes


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            {"extractor": "inception"},
            "expected efficientnet_lite0, efficientnet_lite2, or the path of a Torch",
        ),
        ({"extractor": "net.pt", "sha256": "abc"}, "expected 64 hexadecimal digits"),
        ({"sha256": "0" * 64}, "is the digest of a TorchScript, and `extractor` names none"),
        ({"extractor": "efficientnet_lite0", "sha256": "0" * 64}, "`extractor` names none"),
        ({"samples": 1}, "greater than or equal to 2"),
        ({"rows": ["sample"]}, "Input should be 'test'"),
        ({"measures": []}, "at least 1 item"),
    ],
)
def test_what_is_refused(keys, line):
    with pytest.raises(ValidationError, match=line):
        Generation(**keys)


def test_a_digest_is_compared_in_small_letters():
    assert Generation(extractor="net.pt", sha256="AB" * 32).sha256 == "ab" * 32


def test_neither_torch_nor_numpy_is_imported():
    text = "import sys, trainer.recipe.generation; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", text], check=False).returncode == 0
