"""Names of users' in pictures: any letters, lengths and numbers of classes, and no warning is given."""

import logging
import warnings

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from trainer.evaluation.figures import charts, images, text, tsne

ODD = [
    "$x^{",
    "_lead",
    "a\\b^c_d",
    "犬の写真",
    "كلب",
    "🐶 dog",
    "x" * 200,
    "",
    "new\nline",
    "\udcff",
    "$a$",
    "\x00",
]
CLASSES = {
    "odd": ODD,
    "long": [f"a very long class name of ImageNet, number {i}" for i in range(20)],
    "many": [f"n{i:08d}" for i in range(200)],
    "one": ["only"],
    "nameless": [""] * 3,
}


@pytest.fixture(autouse=True)
def no_warnings(caplog):
    """Neither a warning, nor a line in matplotlib's log, as for a font without a letter."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with caplog.at_level(logging.WARNING):
            yield
    assert not caplog.records


def drawn(path, mode: str = "L") -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert(mode)).astype(int)


def pictures(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).random((count, 8, 8, 3)))


@pytest.mark.parametrize("names", CLASSES)
def test_any_class_names_are_drawn(tmp_path, names):
    classes = CLASSES[names]
    rows = [np.arange(3) % len(classes) for _ in classes[:12]]
    path = tmp_path / "neighbours.png"
    images.neighbours(path, pictures(len(rows)), [pictures(3)] * len(rows), range(len(rows)), rows, classes)
    assert drawn(path).shape[1] < 1200
    points = np.random.default_rng(0).random((40, 2))
    cells = tsne.on_grid(points)
    labels = np.arange(40) % len(classes)
    tsne.draw(tmp_path / "tsne.png", points, labels, classes, cells, pictures(len(cells)))
    page = drawn(tmp_path / "tsne.png")
    assert (page[:12] == 255).all()  # nothing is cut off at an edge
    assert (page[-4:] == 255).all()
    assert (page[:, -6:] == 255).all()


def test_letters_without_a_font_are_escapes(monkeypatch):
    monkeypatch.setattr(text, "_others", list)
    text._family.cache_clear()
    assert [text.legible(name) for name in ODD[:6]] == [
        *("$x^{", "_lead", "a\\b^c_d", "\\u72ac\\u306e\\u5199\\u771f", "كلب", "\\U0001f436 dog")
    ]
    assert [text.legible(name) for name in ODD[7:]] == [
        *("(no name)", "new\\u000aline", "\\udcff", "$a$", "\\u0000")
    ]
    text._family.cache_clear()


def test_a_font_of_the_system_is_used_where_it_has_the_letters(monkeypatch, tmp_path):
    """STIX, which matplotlib brings and we leave aside, stands for a font of the system."""
    file = font_manager.findfont(font_manager.FontProperties(family="STIXGeneral"))
    own = text._letters(font_manager.findfont(font_manager.FontProperties(family=text.FAMILY)))
    letter = next(chr(point) for point in sorted(text._letters(file) - own) if chr(point).isalpha())
    monkeypatch.setattr(text, "_others", lambda: [("STIXGeneral", file)])
    text._family.cache_clear()
    assert text.legible(f"{letter}犬") == f"{letter}\\u72ac"
    families = [text.FAMILY, "STIXGeneral"]
    assert text.style(f"{letter} $") == {"parse_math": False, "family": families, "weight": "normal"}
    assert text.style("dog") == {"parse_math": False}
    images.neighbours(tmp_path / "n.png", pictures(1), [pictures(1)], [0], [[0]], [f"{letter} dog"])
    text._family.cache_clear()


def test_wide_letters_count_twice_where_a_name_is_cut():
    assert text.cut("犬の写真", 8) == "犬の写真"
    assert text.cut("犬の写真", 7) == "犬の写…"
    assert text.cut("a" * 300, 5) == "aaaa…"


def test_one_test_image_and_a_dead_encoder_are_drawn(tmp_path):
    images.neighbours(tmp_path / "n.png", pictures(1), [pictures(1)], [0], [[0]], ["犬" * 40])
    points = tsne.embed(np.ones((12, 4)), 0)
    assert np.isfinite(points).all()
    cells = tsne.on_grid(points)
    tsne.draw(tmp_path / "t.png", points, np.zeros(12, int), ["a"], cells, pictures(len(cells)))


def test_one_measurement_is_a_marker_that_can_be_seen(tmp_path):
    """Also of zero on an axis that is logarithmic else, and beside figures that are not finite."""
    charts.curves(tmp_path / "one.png", {"knn/y/online": ([128], [0.5])})
    blue = np.array([31, 119, 180])  # matplotlib's first colour
    assert (abs(drawn(tmp_path / "one.png", "RGB") - blue).sum(-1) < 30).sum() > 50
    charts.curves(tmp_path / "zero.png", {"sse": ([128], [0.0]), "loss": ([128], [1.0])})
    charts.curves(tmp_path / "nan.png", {"loss": ([1, 2], [float("nan"), float("inf")]), "sse": ([1], [2.0])})
