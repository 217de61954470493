"""Pages of reconstructions and interpolations, read back pixel by pixel, and the table."""

import numpy as np
import pytest

from tests.helpers.pages import place, read
from trainer.evaluation.figures.reconstructions import interpolations, reconstructions, table


def solid(number, size=32):
    """An image of one colour, another for each number, floats in [0, 1]."""
    return np.full((size, size, 3), (200 / 255, number / 255, (250 - number) / 255), dtype=np.float32)


def corners(page, images):
    """(top, left) of each image on a page."""
    return [place(page, (image[0, 0] * 255).round().astype(np.uint8))[:2] for image in images]


@pytest.mark.parametrize(("codecs", "across"), [(1, 4), (2, 3)])
def test_reconstructions_stand_beside_their_image_with_their_error(tmp_path, codecs, across):
    originals = [solid(i) for i in range(9)]
    made = {f"codec {c}": ([solid(50 * (c + 1) + i) for i in range(9)], [1.5] * 9) for c in range(codecs)}
    reconstructions(tmp_path / "r.png", originals, made)
    page = read(tmp_path / "r.png")
    places = corners(page, originals)
    assert places == sorted(places)
    assert len({top for top, _ in places}) == -(-9 // across)
    for number, (images, _) in enumerate(made.values()):
        for (top, left), (other_top, other_left) in zip(places, corners(page, images), strict=True):
            assert other_top == top
            assert other_left == left + (number + 1) * (96 + 6)
            below = page[top + 98 : top + 112, other_left : other_left + 96]
            assert (below < 100).any()  # the error
            assert (page[top + 98 : top + 112, left : left + 96] == 255).all()  # an original has none


def test_interpolations_run_from_image_0_to_image_1(tmp_path):
    zero, one = [solid(0), solid(1)], [solid(2), solid(3)]
    names = ("all of z", "y only", "w only")
    between = {
        name: [[solid(10 + 50 * line + 20 * pair + t) for t in range(5)] for pair in range(2)]
        for line, name in enumerate(names)
    }
    interpolations(tmp_path / "i.png", zero, one, between)
    page = read(tmp_path / "i.png")
    for pair in range(2):
        (middle, first), (same, last) = corners(page, [zero[pair], one[pair]])
        lines = [corners(page, between[name][pair]) for name in names]
        assert middle == same == lines[1][0][0]
        for line in lines:
            assert len({top for top, _ in line}) == 1
            lefts = [first, *(left for _, left in line), last]
            assert lefts == sorted(lefts)
        assert [line[0][1] for line in lines] == [lines[0][0][1]] * 3
        assert lines[0][0][0] < lines[1][0][0] < lines[2][0][0]


def test_the_table_has_a_line_for_each_figure():
    results = {"knn/y": 0.5, "reconstruction/sse": 2.4123, "reconstruction/mse": 2.4123 / 3072}
    results |= {"reconstruction/psnr": 31.05, "reconstruction/log_q": 6543.2}
    results |= {"reconstruction/bits_per_dimension": 4.926, "reconstruction/swap_ratio": 0.0123}
    alone = table(results).splitlines()
    assert [line.split()[-1] for line in alone] == [
        *("autoencoder", "2.412", "7.85e-04", "31.05", "6,543", "4.93", "0.012")
    ]
    control = {f"control/linear_codec/reconstruction/{key}": 0.5 for key in ("sse", "mse", "psnr")}
    both = table(results | control).splitlines()
    assert [line.split()[-1] for line in both[1:]] == ["0.500", "5.00e-01", "0.50", "-", "-", "-"]
    assert len({len(line) for line in both}) == 1
    more = results | control | {"reconstruction/ssim": 0.91234, "reconstruction/latent_size": 1280.0}
    lines = table(more | {"control/linear_codec/reconstruction/ssim": 0.5}).splitlines()
    assert [line.split()[-2:] for line in lines if line.startswith(("SSIM", "D, "))] == [
        ["0.9123", "0.5000"],
        ["1,280", "-"],
    ]
    assert table({"knn/y": 0.5}) == ""
