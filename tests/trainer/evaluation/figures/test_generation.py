"""The table of generated images on the screen, exactly."""

from trainer.evaluation.figures.generation import table

RESULTS = {
    "generation/samples/frechet_net": 745.25,
    "generation/samples/kid_net": 0.0123,
    "generation/samples/images": 5000,
    "generation/test/frechet_net": 129.0,
    "generation/test/kid_net": -0.0001,
    "generation/test/images": 5000,
    "generation/blur_4/frechet_net": 1851.0,
    "generation/blur_4/images": 5000,
    "generation/samples/fid": 3.2,
    "generation/samples/precision_inception": 0.5,
    "generation/inversion/sse": 1.25,
    "generation/inversion/psnr": 31.5,
    "probe/linear/y": 0.5,
}
TABLE = """\
generation, inception  fid  precision  images
samples                3.2        0.5   5,000

generation, net  frechet      kid  images
test                 129  -0.0001   5,000
samples            745.2   0.0123   5,000
blur_4             1,851        -   5,000

generation  psnr   sse
inversion   31.5  1.25"""


def test_a_table_an_extractor_and_one_without():
    assert table(RESULTS) == TABLE
    assert table(dict(reversed(RESULTS.items()))) == TABLE


def test_no_images_no_table():
    assert table({"probe/linear/y": 0.5, "generation/test/images": 10}) == ""
