"""Drawings that need no record: curves of equations, and the training images per class of some columns."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from common.errors import UserError
from common.report.style import LINES, MARKERS, PALETTE, WIDTH, Drawing, canvas, legend_below, style
from common.report.text import plain
from common.spec import Column

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACROSS = 3  # panels side by side
LETTERS = 80  # of a label in the figure's width
KINDS = {"lt": "long-tailed", "step": "step"}


class Panel(NamedTuple):
    """One pair of axes. lines: (label, x values, y values) each."""

    title: str
    xlabel: str
    ylabel: str
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]]


def curves(title: str, panels: Sequence[Panel], log: bool = False, source: str = "From the equations; no training.",
           across: int = ACROSS) -> Drawing:
    """Lines in one or more panels; a label looks alike in all of them and stands in one legend. log: of the y axes; across:
    panels side by side."""
    from pandas import DataFrame

    labels = list(dict.fromkeys(label for panel in panels for label, _, _ in panel.lines))
    looks = {label: {"color": PALETTE[i % len(PALETTE)], "linestyle": LINES[i % len(LINES)], "marker": MARKERS[i % len(MARKERS)]}
             for i, label in enumerate(labels)}
    across = min(len(panels), across)
    down = -(-len(panels) // across)
    with style():
        figure, upper = canvas(2.4 * down + 0.7, plain(source), WIDTH if across > 1 else 0.7 * WIDTH)
        axes = list(upper.subplots(down, across, squeeze=False).flat)
        for i, (at, panel) in enumerate(zip(axes, panels, strict=False)):
            _draw_lines(at, panel, looks)
            at.set_xlabel(textwrap.fill(plain(panel.xlabel), LETTERS // across))
            if i % across == 0 or panel.ylabel != panels[i - 1].ylabel:
                at.set_ylabel(textwrap.fill(plain(panel.ylabel), LETTERS // 3))
            at.set(yscale="log" if log else "linear")
        for spare in axes[len(panels):]:
            spare.set_axis_off()
        upper.suptitle(plain(title), fontsize=9)
        legend_below(upper, 3, handlelength=3.5)
    points = [{"panel": p.title, "line": label, "x": x, "y": y} for p in panels for label, xs, ys in p.lines
              for x, y in zip(xs, ys, strict=True)]
    return Drawing(figure, DataFrame(points, columns=["panel", "line", "x", "y"]))


def _draw_lines(at: "Axes", panel: Panel, looks: dict[str, dict]) -> None:
    for i, (label, x, y) in enumerate(panel.lines):
        every = (i / len(panel.lines) * 0.12, 0.12)  # a few markers on a dense line, not all on one spot
        at.plot(list(x), list(y), label=plain(label), markevery=every if len(x) > 12 else None, **looks[label])
    at.set_title(plain(panel.title), loc="left")
    at.grid(True, axis="both")


def class_counts_figure(columns: Sequence[Column]) -> Drawing:
    """Training images per class, one panel a dataset, on a logarithmic axis: counted by the rule that selects the images."""
    by_dataset: dict[str, list] = {}
    for column in columns:
        counts = training_counts(column)
        label = "as listed" if column.counts else "all images" if column.imbalance == "none" else (
            f"{KINDS[column.imbalance]}, ratio {column.ratio}")
        by_dataset.setdefault(column.dataset, []).append((label, list(range(len(counts))), counts))
    panels = [Panel(dataset, "class", "training images", lines) for dataset, lines in by_dataset.items()]
    return curves("Training images per class", panels, log=True, source="Counted by the sampling rule; no training.")


def training_counts(column: Column) -> list[int]:
    """Training images per class of a column whose dataset has equally many of each."""
    from common.data.imbalance import class_counts
    from common.data.sets import find_set

    dataset = find_set(column.dataset)
    if column.counts:
        return list(column.counts)
    largest, rest = divmod(dataset.train, dataset.classes)
    if rest:
        raise UserError(f"{column.dataset} has classes of unequal size; their numbers are in the records.")
    return [largest] * dataset.classes if column.imbalance == "none" else (
        class_counts(column.imbalance, column.ratio, largest, dataset.classes).tolist())
