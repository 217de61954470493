"""The README's picture of the flow is what its script draws, and its text stays inside its boxes."""

import importlib.util
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("flow_picture", ROOT / "benchmarks" / "flow_picture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_files_are_what_the_script_draws(script, theme):
    drawn = script.picture(theme)
    ElementTree.fromstring(drawn)
    assert (ROOT / "benchmarks" / f"flow-{theme}.svg").read_text(encoding="utf-8") == drawn
    assert f"benchmarks/flow-{theme}.svg" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_each_line_ends_inside_its_box(script):
    font = FontProperties(family="DejaVu Sans")  # wider than what browsers take on the usual systems
    for box in script.BOXES:
        assert box.x + box.width <= script.WIDTH
        assert box.y + 46 + 18 * (len(box.lines) - 1) < box.y + box.height
        for line in box.lines:
            width = TextPath((0, 0), line, size=13, prop=font).get_extents().width
            assert box.x + 14 + width < box.x + box.width, line
