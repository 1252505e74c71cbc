"""Features of test or training images in the plane, by t-SNE or PCA with a fixed seed."""

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from common.errors import UserError
from common.report.results import MethodRuns, Record, Results
from common.report.sources import NotYet, find_column, find_runs, source_words
from common.report.style import MARKERS, PALETTE, WIDTH, Drawing, canvas, legend_below, style
from common.report.text import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy import ndarray
    from pandas import DataFrame

Split = Literal["train", "test"]
MOST_IMAGES = 200  # of a class under t-SNE, whose cost grows with all images; the small classes of a long tail are shown whole
MOST_CLASSES = 20  # with a legend


class Scatter(NamedTuple):
    """One panel: what it shows, the points with their classes, and the record that they come from."""

    title: str
    points: "ndarray"
    labels: "ndarray"
    record: Record


def embedding(results: Results, panels: Sequence[tuple[str, str, str, Split]], method: Literal["tsne", "pca"] = "tsne"
              ) -> Drawing | str:
    """Features in the plane, one panel for each (title, published column, label, split), each projected on its own.

    The features are those of the first run that kept them (seed 0 of a method with keep_features).
    """
    scatters: list[Scatter] = []
    drawn: list[MethodRuns] = []
    try:
        for title, name, label, split in panels:
            column = find_column(results, name)
            [runs, *_] = find_runs(results, column, [label])
            record = _kept(runs, column.name)
            points, labels = read_features(record, split)
            if method == "tsne":
                points, labels = _thin(points, labels)
            mark = f" (quick: {column.name})" if results.profile == "quick" else ""
            scatters.append(Scatter(title + mark, project(points, method), labels, record))
            drawn.append(MethodRuns(runs.method, (record,), ()))
    except NotYet as missing:
        return str(missing)
    with style():
        return Drawing(_draw(scatters, drawn, method), _frame(scatters))


def _kept(runs: MethodRuns, column: str) -> Record:
    record = next((record for record in runs.done if record.get("features")), None)
    if record is None:
        raise NotYet(f"no run of {runs.method.label} on {column} has kept its features")
    return record


def read_features(record: Record, split: Split) -> tuple["ndarray", "ndarray"]:
    """Features [n, width] float64 and labels [n] of a split, as the record keeps them: little-endian float16 in base64."""
    import numpy as np

    kept = record["features"].get(split)
    if kept is None:
        raise NotYet(f"the record of {record['label']} has no features of the {split} set")
    labels = np.asarray(kept["labels"], dtype=np.int64)
    values = np.frombuffer(base64.b64decode(kept["values"]), dtype="<f2").astype(np.float64)
    if len(labels) == 0 or len(values) % len(labels):
        raise UserError(f"Record {record['key']}: {len(values)} feature values do not fit {len(labels)} labels.")
    return values.reshape(len(labels), -1), labels


def _thin(points: "ndarray", labels: "ndarray") -> tuple["ndarray", "ndarray"]:
    """The first images of each class, at most MOST_IMAGES; within a class the order is that of a hash, so it is a fair draw."""
    import numpy as np

    places = np.sort(np.concatenate([np.flatnonzero(labels == c)[:MOST_IMAGES] for c in np.unique(labels)]))
    return points[places], labels[places]


def project(points: "ndarray", method: Literal["tsne", "pca"]) -> "ndarray":
    """The points in the plane, [n, 2]; the same every time."""
    import numpy as np

    if not np.isfinite(points).all():
        raise NotYet("some features are not finite")
    if method == "pca":
        from sklearn.decomposition import PCA

        return PCA(n_components=2, svd_solver="full").fit_transform(points)
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(points) - 1) / 3)
    return TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=0).fit_transform(points)


def _frame(scatters: Sequence[Scatter]) -> "DataFrame":
    from pandas import DataFrame, concat

    parts = [DataFrame({"panel": s.title, "class": s.labels, "x": s.points[:, 0], "y": s.points[:, 1],
                        "seed": s.record["spec"]["seed"], "key": s.record["key"]}) for s in scatters]
    return concat(parts, ignore_index=True)


def _draw(scatters: Sequence[Scatter], drawn: Sequence[MethodRuns], method: str) -> "Figure":
    across = min(2, len(scatters))
    down = -(-len(scatters) // across)
    how = "two main axes (PCA)" if method == "pca" else f"t-SNE of at most {MOST_IMAGES} images a class"
    words = plain(f"Every panel by its own {how}; in brackets: training images. 1 seed. {source_words(drawn)}")
    figure, upper = canvas(2.8 * down + 0.6, words, WIDTH if across > 1 else 0.7 * WIDTH)
    axes = list(upper.subplots(down, across, squeeze=False).flat)
    for at, scatter in zip(axes, scatters, strict=False):
        _scatter(at, scatter, method)
    for spare in axes[len(scatters):]:
        spare.set_axis_off()
    if len({int(k) for s in scatters for k in s.labels}) <= MOST_CLASSES:
        legend_below(upper, 5, markerscale=2.5)
    return figure


def _scatter(at: "Axes", scatter: Scatter, method: str) -> None:
    """Every class in its colour and marker; small classes lie on top of large ones."""
    counts = scatter.record["counts"]
    small = {"s": 7 if len(scatter.labels) < 3000 else 4, "linewidths": 0, "alpha": 0.75}
    for k in sorted(set(scatter.labels.tolist())):
        mine = scatter.points[scatter.labels == k]
        at.scatter(mine[:, 0], mine[:, 1], color=PALETTE[k % len(PALETTE)], marker=MARKERS[k % len(MARKERS)],
                   label=f"class {k} ({counts[k]})", zorder=2 + 1 / (1 + counts[k]), **small)
    at.set_title(plain(scatter.title), loc="left")
    at.set(xlabel="first axis" if method == "pca" else "", ylabel="second axis" if method == "pca" else "")
    if method == "pca":
        at.grid(True, axis="both")
    else:
        at.set(xticks=[], yticks=[])  # t-SNE has no scale
        at.grid(False)
