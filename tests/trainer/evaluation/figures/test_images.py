"""Pages of images, read back pixel by pixel."""

import numpy as np
import pytest
import torch

from tests.helpers.pages import place, read, rgb
from trainer.evaluation.figures.images import OTHER, QUERY, SAME, UNKNOWN, neighbours, views


def solid(number, size, layout="HWC"):
    """An image of one colour, another for each number."""
    image = np.full((size, size, 3), (200, 30 + 3 * number, 7 * number), dtype=np.uint8)
    return image if layout == "HWC" else image.transpose(2, 0, 1) / 255


@pytest.mark.parametrize(("size", "side"), [(8, 96), (32, 96), (64, 128), (200, 128)])
@pytest.mark.parametrize("layout", ["HWC", "CHW"])
def test_neighbours_stand_in_their_rows_in_frames_of_their_class(tmp_path, size, side, layout):
    labels, others = [0, 2], [[0, 1, 0], [1, 2, 2]]
    queries = [solid(i, size, layout) for i in range(2)]
    near = [[solid(2 + 3 * i + j, size, layout) for j in range(3)] for i in range(2)]
    neighbours(tmp_path / "n.png", queries, near, labels, others, ["cat", "dog", "ship"])
    page = read(tmp_path / "n.png")

    boxes = []
    for row in range(2):
        tiles = [(row, QUERY)] + [
            (2 + 3 * row + j, SAME if others[row][j] == labels[row] else OTHER) for j in range(3)
        ]
        for number, frame in tiles:
            top, left, bottom, right = place(page, solid(number, 1)[0, 0])
            assert (bottom - top, right - left) == (side, side)
            edges = page[top - 2, left], page[bottom + 1, left], page[top, left - 2], page[top, right + 1]
            assert {tuple(edge.tolist()) for edge in edges} == {rgb(frame)}
            assert (page[top - 6, left] == 255).all()
            boxes.append((top, left))
    tops, lefts = zip(*boxes, strict=True)
    assert len(set(tops[:4])) == len(set(tops[4:])) == 1
    assert tops[0] < tops[4]
    assert lefts[:4] == lefts[4:] == tuple(sorted(lefts[:4]))


def test_small_images_are_enlarged_crisply(tmp_path):
    image = np.zeros((8, 8), dtype=np.float32)
    image[::2, ::2] = image[1::2, 1::2] = 0.5  # a chess board of grey levels
    views(tmp_path / "v.png", [[image]], ["plain"])
    page = read(tmp_path / "v.png")
    top, left, bottom, right = place(page, (0, 0, 0))
    tile = page[top:bottom, left:right]
    assert tile.shape == (96, 96, 3)
    expected = np.kron((image * 255).round(), np.ones((12, 12))).astype(np.uint8)
    assert (tile == expected[..., None]).all()


def test_views_of_an_image_stand_side_by_side(tmp_path):
    first, second = [solid(i, 32) for i in range(9)], [solid(20 + i, 32) for i in range(9)]
    views(tmp_path / "v.png", [torch.from_numpy(np.stack(first)), second], ["original", "view 1"])
    page = read(tmp_path / "v.png")
    for i in range(9):
        a, b = (place(page, view[i][0, 0]) for view in (first, second))
        assert a[0] == b[0]
        assert 0 < b[1] - a[3] < 20
    corners = [place(page, image[0, 0])[:2] for image in first]
    assert corners == sorted(corners)
    assert len({top for top, _ in corners}) == 3  # 4, 4 and 1 images in a line


@pytest.mark.parametrize(
    "image", [np.full((8, 8, 3), -0.5), np.full((8, 8), np.nan), np.full((8, 8), 16.0), np.zeros((8, 8, 4))]
)
def test_what_is_no_picture_is_refused(tmp_path, image):
    with pytest.raises(ValueError, match="image must"):
        views(tmp_path / "v.png", [[image]], ["plain"])
    assert not (tmp_path / "v.png").exists()


def test_neighbours_without_labels_have_no_colour(tmp_path):
    images = [solid(i, 32) for i in range(4)]
    page = {}
    for name, labels, others, classes in (
        ("none", [-1], [[-1, -1, -1]], ()),
        ("some", [0], [[0, -1, 1]], ("cat", "dog")),
    ):
        neighbours(tmp_path / f"{name}.png", images[:1], [images[1:]], labels, others, classes)
        page[name] = read(tmp_path / f"{name}.png")
    for colour in (SAME, OTHER):
        assert not (page["none"] == rgb(colour)).all(axis=-1).any()
    for number, frame in enumerate((QUERY, SAME, UNKNOWN, OTHER)):
        top, left, *_ = place(page["some"], images[number][0, 0])
        assert tuple(page["some"][top, left - 2]) == rgb(frame)


def test_a_long_name_stays_within_its_tile(tmp_path):
    images = [solid(i, 32) for i in range(3)]
    long = "Cardigan Welsh corgi, $a very$ long name of ImageNet"
    neighbours(tmp_path / "n.png", images[:1], [images[1:]], [0], [[0, 0]], [long])
    page = read(tmp_path / "n.png")
    bottom, right = place(page, images[1][0, 0])[2:]
    left = place(page, images[2][0, 0])[1]
    assert (page[bottom + 5 :, right + 5 : left - 5] == 255).all()
