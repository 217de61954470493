"""The line of a run on the screen."""

import pytest

from trainer.runs.progress import Progress


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"loss": 2.0, "denoising": 0.51, "denoising/zero": 2.0}, "loss 2.0000  denoising 0.510/2.00"),
        (
            {
                "loss": 2.0,
                "denoising/y": 0.4,
                "denoising/y/zero": 1.0,
                "denoising/w": 0.25,
                "denoising/w/zero": 1.0,
            },
            "loss 2.0000  denoising/y 0.400/1.00  denoising/w 0.250/1.00",
        ),
        ({"loss": -1.0, "sse": 3.0}, "loss -1.0000  sse 3.00"),
    ],
)
def test_the_denoising_error_stands_beside_that_of_answering_0(capsys, values, line):
    Progress(0, 1000, shown=True).status(1000, values)
    assert capsys.readouterr().out.strip() == f"1,000 of 1,000 images (100%)  {line}"
