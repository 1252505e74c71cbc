"""One style for all figures: colours, markers and line styles that are told apart in grey print and by colour-blind eyes.

Matplotlib is imported when a figure is drawn, and only as an object: no window, no global state.
"""

import hashlib
import io
import re
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from common.report.tables import csv_bytes
from common.store import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure
    from pandas import DataFrame

STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#d9d9d9", "grid.linewidth": 0.6, "legend.frameon": False,
    "figure.facecolor": "white", "figure.dpi": 100, "savefig.dpi": 200, "hatch.linewidth": 0.5, "errorbar.capsize": 2,
    "svg.hashsalt": "figures", "svg.fonttype": "path", "lines.linewidth": 1.2, "lines.markersize": 4,
}
# Okabe and Ito (2008), without yellow and black, then four of Paul Tol's: told apart with colour-blind eyes and in grey print.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#332288", "#999933", "#882255", "#888888")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
LINES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 3)))
HATCHES = ("", "////", "....", "xxxx")
WIDTH = 6.3  # inches: a text column of A4 with 2.5 cm margins


class Drawing(NamedTuple):
    """A figure with the numbers that it shows."""

    figure: "Figure"
    data: "DataFrame"


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib with `STYLE` on top of its defaults, whatever the user's own settings are."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def colours(methods: Iterable[str]) -> dict[str, str]:
    """A colour for each method: the one that its name hashes to, the same in every figure of every paper.

    Where two methods of one figure share it, the later in the alphabet takes the next free colour.
    """
    taken: dict[str, str] = {}
    for name in sorted(set(methods)):
        start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        choices = [PALETTE[(start + i) % len(PALETTE)] for i in range(len(PALETTE))]
        taken[name] = next((colour for colour in choices if colour not in taken.values()), choices[0])
    return taken


def canvas(height: float, footnote: str, width: float = WIDTH) -> tuple["Figure", "SubFigure"]:
    """A figure with small print along its lower edge, and the part above it, `height` inches high, to draw in."""
    from matplotlib.figure import Figure

    lines = textwrap.wrap(footnote, int(width * 21))  # letters of this size in a line
    strip = (8.5 * len(lines) + 4) / 72
    figure = Figure(figsize=(width, height + strip), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(height, strip))
    lower.text(0.01, 0.95, "\n".join(lines), ha="left", va="top", fontsize=6.5, color="#555555")
    return figure, upper


def legend_below(figure: "SubFigure", columns: int, **more: object) -> None:
    """One legend for all panels, below them: each label once, as it was first drawn."""
    handles: dict[str, object] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(columns, len(handles)), **more)


def _numbered(svg: bytes) -> bytes:
    """The ids of clip paths, which matplotlib hashes from numbers that differ in their last bits, by the order of their first
    appearance."""
    clips: dict[bytes, bytes] = {}
    return re.sub(rb"\bp[0-9a-f]{10}\b", lambda m: clips.setdefault(m[0], b"clip%d" % len(clips)), svg)


def _drawn(figure: "Figure") -> tuple[bytes, bytes]:
    """The figure as SVG and as PNG. What `savefig` does takes twice as long: it draws once more for each, to lay out anew."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    svg, png = io.BytesIO(), io.BytesIO()
    with style():
        figure.set_dpi(matplotlib.rcParams["savefig.dpi"])
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
        figure.set_layout_engine("none")  # places stay as they were found
        figure.set_dpi(matplotlib.rcParams["savefig.dpi"])  # an SVG has 72
        FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    return svg.getvalue(), png.getvalue()


def save(figure: "Figure", data: "DataFrame", folder: Path, name: str) -> list[Path]:
    """Write <name>.svg, .png and .csv: the same bytes for the same figure, without dates."""
    svg, png = _drawn(figure)
    contents = {f"{name}.svg": _numbered(svg), f"{name}.png": png, f"{name}.csv": csv_bytes(data)}
    for file, content in contents.items():
        write_atomically(folder / file, content)
    return [folder / file for file in contents]
