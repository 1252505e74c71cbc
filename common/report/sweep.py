"""Accuracy over the settings of a method: panels of points with their spread, and the printed numbers beside them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from common.report.compare import measure
from common.report.figures import column_words
from common.report.intervals import spread
from common.report.results import MethodRuns, Results
from common.report.sources import NotYet, find_column, find_runs, source_words
from common.report.style import PALETTE, Drawing, canvas, legend_below, style
from common.report.text import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


class Point(NamedTuple):
    """A setting as the axis names it, and the label of its method (`Method.label`)."""

    name: str
    label: str


class Sweep(NamedTuple):
    """One panel: points from left to right, equally far apart."""

    title: str
    xlabel: str
    points: Sequence[Point]


def sweep_figure(results: Results, published_column: str, panels: Sequence[Sweep]) -> Drawing | str:
    """Last-epoch top-1 accuracy of each point, mean and one standard deviation over seeds; settings without runs are named
    below. A sentence where no setting has any. What a stand-in does is not set beside the printed numbers."""
    from pandas import DataFrame

    rows, methods, missing = [], [], []
    try:
        column = find_column(results, published_column)
    except NotYet as why:
        return str(why)
    for k, panel in enumerate(panels):
        for i, point in enumerate(panel.points):
            try:
                runs = find_runs(results, column, [point.label])[0]
            except NotYet:
                missing.append(point.label)
                continue
            methods.append(runs)
            mean, sd = spread(tuple(measure(r, "top1_accuracy") for r in runs.done))
            printed = _printed(results, published_column, runs) if column.name == published_column else None
            rows.append({"panel": k, "title": panel.title, "place": i, "setting": point.name, "label": point.label,
                         "accuracy_percent": mean, "sd": sd, "seeds": len(runs.done), "printed": printed,
                         "keys": ";".join(r["key"] for r in runs.done)})
    if not methods:
        return f"no run of {' or '.join(missing[:3])} on {column.name} (profile {results.profile}) yet"
    data = DataFrame(rows)
    notes = f" No run yet: {', '.join(missing)}." if missing else ""
    with style():
        return Drawing(_draw(column_words(results, column), data, panels, plain(source_words(methods) + notes)), data)


def _printed(results: Results, column: str, runs: MethodRuns) -> float | None:
    """The accuracy that the paper prints for this row, in whichever table."""
    frame = results.published
    own = frame[(frame["column"] == column) & (frame["method"] == runs.method.name) & (frame["variant"] == runs.method.variant)
                & frame["metric"].isin(("top1_accuracy", "top1_error")) & frame["group"].isin(("", "all"))]
    for row in own.itertuples():
        return row.number if row.metric == "top1_accuracy" else 100 - row.number
    return None


def _draw(where: str, data: "DataFrame", panels: Sequence[Sweep], footnote: str):
    figure, upper = canvas(2.9, footnote)
    axes = upper.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for k, (at, panel) in enumerate(zip(axes, panels, strict=True)):
        _draw_panel(at, data[data["panel"] == k], panel)
    axes[0].set_ylabel("Top-1 accuracy (%), mean ± sd")
    upper.suptitle(plain(where), fontsize=9)
    legend_below(upper, 2)
    return figure


def _draw_panel(at: "Axes", part: "DataFrame", panel: Sweep) -> None:
    at.errorbar(part["place"], part["accuracy_percent"], yerr=part["sd"].astype(float).fillna(0.0), color=PALETTE[0], marker="o",
                linestyle="-" if panel.points and panel.points[0].name.isdigit() else "none", label="ours")
    printed = part[part["printed"].notna()]
    if len(printed):
        at.plot(printed["place"], printed["printed"].astype(float), color=PALETTE[3], marker="D", linestyle="none",
                label="as printed")
    at.set_xticks(range(len(panel.points)), [plain(p.name) for p in panel.points])
    at.set(xlabel=plain(panel.xlabel), xlim=(-0.5, len(panel.points) - 0.5))
    at.set_title(plain(panel.title), loc="left")
