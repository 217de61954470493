"""Draws the README's picture of the flow, from data to MLflow, for light and for dark pages.

python benchmarks/flow_picture.py          writes benchmarks/flow-light.svg and benchmarks/flow-dark.svg
"""

from dataclasses import dataclass
from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
WIDTH, HEIGHT = 960, 322
TITLE = "Data become views; an objective trains an encoder; checkpoint, journal and encoder remain."

COLOURS = {  # GitHub's text, line and background tones, so that the picture sits in the page
    "light": {"text": "#1f2328", "soft": "#59636e", "line": "#818b98", "box": "#f6f8fa", "accent": "#0969da"},
    "dark": {"text": "#f0f6fc", "soft": "#9198a1", "line": "#656c76", "box": "#151b23", "accent": "#4493f8"},
}


@dataclass(frozen=True)
class Box:
    """A rectangle with a title and lines of text, in pixels of the picture."""

    x: int
    y: int
    width: int
    height: int
    title: str
    lines: tuple[str, ...]

    def draw(self) -> str:
        left, top = self.x + 14, self.y + 25
        lines = "".join(
            f'<text class="soft" x="{left}" y="{top + 21 + 18 * row}">{escape(line)}</text>'
            for row, line in enumerate(self.lines)
        )
        frame = f'<rect x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="8"/>'
        return f'{frame}<text class="title" x="{left}" y="{top}">{escape(self.title)}</text>{lines}'


DATA = Box(
    8,
    84,
    176,
    136,
    "Data",
    ("folders of images, tars,", "CIFAR, STL-10, https", "→ WebDataset shards,", "read at random offsets"),
)
VIEWS = Box(
    228,
    84,
    176,
    136,
    "Views",
    ("DALI: crop, colour,", "blur, flip; the order and", "draws are functions of", "seed and images seen"),
)
OBJECTIVE = Box(
    448,
    84,
    196,
    136,
    "Objective",
    ("Deep InfoMax, MoCo-v2,", "SimCLR, hybrid; encoder", "→ y, local map, w", "statistics over groups"),
)
CHECKPOINT = Box(
    720, 12, 232, 80, "Checkpoint", ("by parameter name: any ranks,", "any engine continue from it")
)
JOURNAL = Box(
    720, 112, 232, 80, "Journal → MLflow", ("every figure is on disk first;", "MLflow may be away for hours")
)
ENCODER = Box(
    720, 212, 232, 98, "Encoder", ("encoder.safetensors, probes,", "kNN, controls, pictures,", "results.json")
)
BOXES = (DATA, VIEWS, OBJECTIVE, CHECKPOINT, JOURNAL, ENCODER)


def arrow(*points: tuple[int, int], style: str = "") -> str:
    """A line through the points, with a head at the last one."""
    path = " L".join(f"{x} {y}" for x, y in points)
    return f'<path class="arrow {style}" d="M{path}" marker-end="url(#head{"-accent" if style else ""})"/>'


def arrows() -> str:
    """From box to box; in the accent colour, the way back by which a run continues."""
    middle, fork = DATA.y + DATA.height // 2, 682
    return "".join(
        (
            arrow((DATA.x + DATA.width, middle), (VIEWS.x - 3, middle)),
            arrow((VIEWS.x + VIEWS.width, middle), (OBJECTIVE.x - 3, middle)),
            arrow((OBJECTIVE.x + OBJECTIVE.width, middle), (JOURNAL.x - 3, middle)),
            arrow((fork, middle), (fork, 52), (CHECKPOINT.x - 3, 52)),
            arrow((fork, middle), (fork, 261), (ENCODER.x - 3, 261)),
            arrow((CHECKPOINT.x, 32), (316, 32), (316, VIEWS.y - 19), style="back"),
        )
    )


def ranks() -> str:
    """The frame around what every rank does."""
    x, y, right = VIEWS.x - 14, VIEWS.y - 16, OBJECTIVE.x + OBJECTIVE.width + 14
    bottom = VIEWS.y + VIEWS.height + 48
    return (
        f'<rect class="frame" x="{x}" y="{y}" width="{right - x}" height="{bottom - y}" rx="12"/>'
        f'<text class="soft" x="{x + 14}" y="{bottom - 28}">1 to N ranks: accelerate launch or sbatch,</text>'
        f'<text class="soft" x="{x + 14}" y="{bottom - 11}">DDP, ZeRO-1/2/3 or FSDP2; the same result</text>'
    )


def style(colours: dict[str, str]) -> str:
    return (
        "text{font-family:-apple-system,'Segoe UI','Noto Sans',Helvetica,Arial,sans-serif}"
        f".title{{font-size:16px;font-weight:600;fill:{colours['text']}}}"
        f".soft{{font-size:13px;fill:{colours['soft']}}}"
        f".back-word{{font-size:13px;fill:{colours['accent']}}}"
        f"rect{{fill:{colours['box']};stroke:{colours['line']}}}"
        f".frame{{fill:none;stroke:{colours['line']};stroke-dasharray:5 5}}"
        f".arrow{{fill:none;stroke:{colours['line']};stroke-width:1.5}}"
        f".back{{stroke:{colours['accent']}}}"
    )


def head(name: str, colour: str) -> str:
    """The head of an arrow."""
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        f'orient="auto"><path d="M0 0L8 4L0 8Z" fill="{colour}"/></marker>'
    )


def picture(theme: str) -> str:
    """The picture as SVG, of the theme `light` or `dark`."""
    colours = COLOURS[theme]
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" role="img">',
            f"<title>{TITLE}</title>",
            f"<style>{style(colours)}</style>",
            f"<defs>{head('head', colours['line'])}{head('head-accent', colours['accent'])}</defs>",
            ranks(),
            *(box.draw() for box in BOXES),
            arrows(),
            '<text class="back-word" x="330" y="26">the same command continues, mid-epoch, to the bit</text>',
            "</svg>\n",
        )
    )


def main() -> None:
    for theme in COLOURS:
        path = FOLDER / f"flow-{theme}.svg"
        path.write_text(picture(theme), encoding="utf-8")
        print(path.relative_to(FOLDER.parent))


if __name__ == "__main__":
    main()
