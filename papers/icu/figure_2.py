"""Figure 2: the two-dimensional features of MNIST under softmax, center loss, L-GM and ICU, training images above, test images
below; and, beyond the paper's figure, the learned centres and the ellipse of one standard deviation of every class."""

import math
from typing import TYPE_CHECKING

from common.report.embedding import read_features
from common.report.figures import column_words
from common.report.results import MethodRuns, Record, Results
from common.report.sources import NotYet, find_column, find_runs, source_words
from common.report.style import MARKERS, PALETTE, WIDTH, Drawing, canvas, legend_below, style
from common.report.text import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy import ndarray
    from pandas import DataFrame

COLUMN = "mnist-6layercnn2d"
ROWS = (("softmax", "ce"), ("center loss", "center"), ("L-GM", "l-gm"), ("ICU", "icu"))
SPLITS = (("train", "training images"), ("test", "test images"))


def figure_2(results: Results) -> Drawing | str:
    """Panels (a) to (d) and (e) to (h) of the runs that kept their features, which are those of seed 0."""
    try:
        column = find_column(results, COLUMN)
        methods = find_runs(results, column, [f"{name}@written" for _, name in ROWS])
        kept = [_kept(runs, column.name) for runs in methods]
        data = _frame(kept)
    except NotYet as missing:
        return str(missing)
    drawn = [MethodRuns(runs.method, (record,), ()) for runs, record in zip(methods, kept, strict=True)]
    with style():
        return Drawing(_draw(data, drawn, column_words(results, column)), data)


def _kept(runs: MethodRuns, column: str) -> Record:
    record = next((r for r in runs.done if r.get("features") and r.get("head")), None)
    if record is None:
        raise NotYet(f"no run of {runs.method.label} on {column} has kept its features")
    return record


def ellipses(head: dict) -> tuple["ndarray", "ndarray"] | None:
    """Centres and standard deviations [classes, 2] of what a head holds: a Gaussian head's means and deviations, the means of a
    head of centres with unit deviations, the moving centres of center loss with none (0); None for a plain linear head."""
    import numpy as np

    if "log_variances" in head:
        return np.array(head["weight"]).T, np.exp(np.array(head["log_variances"]).T / 2)
    if "centres" in head:
        centres = np.array(head["centres"]).T
        return centres, np.zeros_like(centres)
    if "bias" in head:
        return None
    means = np.array(head["weight"]).T
    return means, np.ones_like(means)


def _frame(kept: list[Record]) -> "DataFrame":
    """One row a point or centre: panel, what it is, its class, place, and the deviations of a centre."""
    import numpy as np
    from pandas import DataFrame, concat

    parts, letters = [], iter("abcdefgh")
    for split, words in SPLITS:
        for (title, name), record in zip(ROWS, kept, strict=True):
            x, labels = read_features(record, split)
            if x.shape[1] != 2 or not np.isfinite(x).all():
                raise NotYet(f"the features of {name} on the {words} are not finite points in the plane")
            same = {"panel": next(letters), "method": name, "loss": title, "split": split, "seed": record["spec"]["seed"],
                    "key": record["key"]}
            parts.append(DataFrame({**same, "kind": "feature", "class": labels, "x": x[:, 0], "y": x[:, 1], "sd_x": math.nan,
                                    "sd_y": math.nan}))
            if (learned := ellipses(record["head"])) is not None:
                means, sds = learned
                parts.append(DataFrame({**same, "kind": "centre", "class": range(len(means)), "x": means[:, 0], "y": means[:, 1],
                                        "sd_x": sds[:, 0], "sd_y": sds[:, 1]}))
    return concat(parts, ignore_index=True)


def _draw(data: "DataFrame", drawn: list[MethodRuns], where: str) -> "Figure":
    words = (f"{where}. Crosses: learned centres; ellipses: one standard deviation, learned by ICU, 1 in L-GM. The axes are the "
             f"features themselves, each loss with its own scale. 1 seed. {source_words(drawn)}")
    figure, upper = canvas(4.4, plain(words), 1.25 * WIDTH)
    grid = upper.subplots(2, len(ROWS), sharex="col", sharey="col")
    for at, (panel, part) in zip(grid.flat, data.groupby("panel", sort=True), strict=True):
        _panel(at, part)
        at.set_title(plain(f"({panel}) {part['loss'].iloc[0]}, {part['split'].iloc[0]}"), loc="left")
        at.grid(True, axis="both")  # without True it is a switch, which turns the y axis off
    legend_below(upper, 6, markerscale=2)
    return figure


def _panel(at: "Axes", part: "DataFrame") -> None:
    """Every class in its colour and marker, its centre as a cross and one standard deviation as an ellipse."""
    from matplotlib.patches import Ellipse

    points, centres = part[part["kind"] == "feature"], part[part["kind"] == "centre"]
    for k, mine in points.groupby("class", sort=True):
        at.scatter(mine["x"], mine["y"], color=PALETTE[k % len(PALETTE)], marker=MARKERS[k % len(MARKERS)], s=4, linewidths=0,
                   alpha=0.6, label=f"class {k}")
    for row in centres.itertuples():
        at.add_patch(Ellipse((row.x, row.y), 2 * row.sd_x, 2 * row.sd_y, fill=False, linewidth=0.9, zorder=3, edgecolor="black"))
    if len(centres):
        at.scatter(centres["x"], centres["y"], color="black", marker="x", s=16, linewidths=0.9, zorder=4, label="centre")
