"""Text of users' in pictures: class names of any letters, for which a font of the system may have no glyph.

matplotlib would read `$` as mathematics, leave a label that begins with `_` out of a legend, and draw a box
with a warning for a letter that its font lacks.
"""

import unicodedata
from functools import cache
from typing import Any

from matplotlib import font_manager
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font

FAMILY = "DejaVu Sans"  # matplotlib's own
NAMELESS = "(no name)"


def legible(text: str) -> str:
    """A name as a picture shows it: letters without a font, and control characters, as escapes (\\u72ac)."""
    if text.isascii() and text.isprintable():
        return text or NAMELESS
    return "".join(letter if letter.isprintable() and _family(letter) else _escape(letter) for letter in text)


def style(text: str) -> dict[str, Any]:
    """What `matplotlib.text.Text` needs to draw a text as it stands: no mathematics, fonts of its letters."""
    families = dict.fromkeys([FAMILY, *(_family(letter) for letter in text if not letter.isascii())])
    if len(families) == 1:
        return {"parse_math": False}
    # The bold letters of a system's font may be fewer.
    return {"parse_math": False, "family": [name for name in families if name], "weight": "normal"}


def width(text: str) -> int:
    """The columns of a text, of which a Chinese or Japanese letter takes two."""
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)


def cut(text: str, columns: int) -> str:
    """What of a text fits into so many columns; names may be as long as files."""
    if width(text) <= columns:
        return text
    while text and width(text) > columns - 1:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _escape(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"


@cache
def _family(letter: str) -> str | None:
    """A family with a glyph for the letter: matplotlib's, else the first of the system's; None for none."""
    regular, bold = (
        _letters(font_manager.findfont(FontProperties(family=FAMILY, weight=weight)))
        for weight in ("normal", "bold")
    )
    if ord(letter) in regular & bold:
        return FAMILY
    return next((name for name, file in _others() if ord(letter) in _letters(file)), None)


@cache
def _others() -> list[tuple[str, str]]:
    """(family, file) of the system's upright fonts of normal weight, by name."""
    fonts = font_manager.fontManager.ttflist
    return sorted(
        (font.name, font.fname)
        for font in fonts
        if font.style == "normal" and font.weight in (400, "normal", "regular")
        # "Last Resort" has a box for every letter.
        if not font.name.startswith(("Last Resort", "DejaVu", "STIX", "cm"))
    )


@cache
def _letters(file: str) -> frozenset[int]:
    """The code points that a font has glyphs for; none where it cannot be read, or holds bitmaps alone."""
    try:
        font = FT2Font(file)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()
