"""What a paper's figures are drawn with: `per_class_error`, `feature_norms` and `embedding` from records, `curves` and
`class_counts_figure` from equations. Each gives a `Drawing`, with the numbers that it shows, or says what is missing.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.report.embedding import embedding
from common.report.groups import class_groups, group_names, majority
from common.report.intervals import mean_of, spread
from common.report.plots import Panel, class_counts_figure, curves
from common.report.results import MethodRuns, Results
from common.report.sources import NotYet, find_column, find_runs, seed_words, source_words
from common.report.style import HATCHES, LINES, MARKERS, PALETTE, Drawing, canvas, colours, legend_below, save, style
from common.report.text import plain
from common.spec import Column

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["PALETTE", "Drawing", "Panel", "class_counts_figure", "colours", "curves", "embedding", "feature_norms",
           "find_methods", "per_class_error", "save", "save_figures"]

MOST_BARS = 4  # methods side by side as bars; more are lines
MOST_NAMES = 20  # classes whose names find room below an axis


def save_figures(results: Results, folder: Path) -> list[str]:
    """Draw every figure of the paper into figure-<n>.svg, .png and .csv; one line a figure on what was written or is missing."""
    lines = []
    for figure in results.paper.figures:
        drawn = figure.draw(results)
        if isinstance(drawn, str):
            lines.append(f"Figure {figure.number}: {drawn}")
            continue
        files = save(drawn.figure, drawn.data, folder, f"figure-{figure.number}")
        lines.append(f"Figure {figure.number}: {', '.join(file.name for file in files)} in {folder}")
    return lines


def find_methods(results: Results, published_column: str, labels: Sequence[str]) -> tuple[list[MethodRuns], str, str] | str:
    """The methods of these labels on a column (`find_column`, `find_runs`) with words for the column and for the records, or
    what is missing; of each label its first reading that has runs."""
    try:
        column = find_column(results, published_column)
        methods = [find_runs(results, column, [label])[0] for label in labels]
    except NotYet as missing:
        return str(missing)
    keys = ", ".join(f"{runs.method.label} {' '.join(r['key'] for r in runs.done)}" for runs in methods)
    return methods, column_words(results, column), f"Means over seeds. Records: {keys}."


# ---------------------------------------------------------------- error per class


def per_class_error(results: Results, published_column: str, labels: Sequence[str], groups: int | None = None,
                    class_names: Sequence[str] | None = None) -> Drawing | str:
    """Top-1 error on the test set per class of some methods on a column; up to four as bars, more as lines.

    published_column: as `find_column` has it; labels: as `find_runs` has them. groups: the mean over each of so many groups of
    classes in the order of their training images instead. Means over seeds, whiskers of one standard deviation.
    """
    try:
        column = find_column(results, published_column)
        methods = find_runs(results, column, labels)
    except NotYet as missing:
        return str(missing)
    counts = methods[0].done[0]["counts"]
    members = class_groups(counts, groups) if groups else [[i] for i in range(len(counts))]
    names = list(class_names or (group_names(len(members)) if groups else (f"C{i}" for i in range(len(counts)))))
    data = _per_class_frame(methods, names, members, counts)
    with style():
        return Drawing(_draw_per_class(data, methods, names, column_words(results, column), bool(groups)), data)


def column_words(results: Results, column: Column) -> str:
    """The column that is drawn, and in whose place."""
    stands_for, name = results.paper.stand_ins.get(column.name), column.name
    return name if results.profile == "paper" else f"{name} (quick{f', in place of {stands_for}' if stands_for else ''})"


def _per_class_frame(methods: Sequence[MethodRuns], names: Sequence[str], members: Sequence[Sequence[int]], counts: Sequence[int]
                     ) -> "DataFrame":
    from pandas import DataFrame

    images = [sum(counts[i] for i in classes) for classes in members]
    large = majority(n / len(classes) for n, classes in zip(images, members, strict=True))
    rows = []
    for runs in methods:
        for k, (name, classes) in enumerate(zip(names, members, strict=True)):
            accuracies = [mean_of([r["per_class_accuracy"][i] for i in classes]) for r in runs.done]
            if None in accuracies:  # a class without a test image
                continue
            errors = tuple(100 - accuracy for accuracy in accuracies)
            mean, sd = spread(errors)
            rows.append({"method": runs.method.name, "reading": runs.method.reading, "label": runs.method.label, "class": name,
                         "classes": ";".join(map(str, classes)), "training_images": images[k],
                         "group": "majority" if large[k] else "minority", "error_percent": mean, "sd": sd, "seeds": len(errors),
                         "keys": ";".join(r["key"] for r in runs.done)})
    return DataFrame(rows)


def _draw_per_class(data: "DataFrame", methods: Sequence[MethodRuns], names: Sequence[str], title: str, grouped: bool
                    ) -> "Figure":
    figure, upper = canvas(3.3, source_words(methods))
    axes = upper.subplots()
    parts = [data[data["label"] == runs.method.label] for runs in methods]
    draw = _bars if len(methods) <= MOST_BARS and len(names) <= MOST_NAMES else _points
    draw(axes, methods, parts)
    axes.set(xlabel="Group of classes, largest first" if grouped else "Class", ylabel="Top-1 error (%), mean ± sd",
             ylim=(0, 100), xlim=(-0.5, len(names) - 0.5))
    axes.set_title(plain(title), loc="left", pad=16)  # above the names of the groups
    axes.set_xticks(range(len(names)), [plain(name) for name in names] if len(names) <= MOST_NAMES else [""] * len(names))
    _mark_groups(axes, [group == "majority" for group in parts[0]["group"]])
    legend_below(upper, 3, handlelength=3)
    return figure


def _method_words(runs: MethodRuns) -> str:
    variant = f" [{runs.method.variant}]" if runs.method.variant else ""
    return plain(f"{runs.method.name}{variant}, {runs.method.reading} ({seed_words(runs)})")


def _bars(axes: "Axes", methods: Sequence[MethodRuns], parts: Sequence["DataFrame"]) -> None:
    colour, width = colours(runs.method.name for runs in methods), 0.8 / len(methods)
    for i, (runs, part) in enumerate(zip(methods, parts, strict=True)):
        where = [k + (i - (len(methods) - 1) / 2) * width for k in range(len(part))]
        axes.bar(where, part["error_percent"], width * 0.94, color=colour[runs.method.name], hatch=HATCHES[i], edgecolor="white",
                 linewidth=0.4, label=_method_words(runs), yerr=part["sd"].fillna(0.0) if len(runs.done) > 1 else None,
                 error_kw={"elinewidth": 0.8, "ecolor": "#333333"})


def _points(axes: "Axes", methods: Sequence[MethodRuns], parts: Sequence["DataFrame"]) -> None:
    """Lines with markers: one colour and marker a method, one line style a reading."""
    colour = colours(runs.method.name for runs in methods)
    names = list(dict.fromkeys(runs.method.name for runs in methods))
    for i, (runs, part) in enumerate(zip(methods, parts, strict=True)):
        shift = (i - (len(methods) - 1) / 2) * 0.08 if len(part) <= MOST_NAMES else 0.0  # so that no whisker covers another
        axes.errorbar([k + shift for k in range(len(part))], part["error_percent"],
                      yerr=part["sd"].fillna(0.0) if len(runs.done) > 1 else None, label=_method_words(runs),
                      color=colour[runs.method.name], marker=MARKERS[names.index(runs.method.name) % len(MARKERS)],
                      linestyle=LINES[runs.method.reading != "written"], linewidth=0.9, elinewidth=0.7,
                      markerfacecolor="white" if runs.method.reading != "written" else None)


def _mark_groups(axes: "Axes", large: Sequence[bool]) -> None:
    """Shade every stretch of minority classes, and name each stretch above the bars."""
    first = 0
    for i in range(1, len(large) + 1):
        if i == len(large) or large[i] != large[first]:
            if not large[first]:
                axes.axvspan(first - 0.5, i - 0.5, color="#f0f0f0", zorder=0, linewidth=0)
            label: Mapping[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 8, "color": "#333333"}
            axes.text((first + i - 1) / 2, 100.5, "majority classes" if large[first] else "minority classes", **label)
            first = i


# ---------------------------------------------------------------- feature norms


def feature_norms(results: Results, published_column: str | Sequence[str], labels: Sequence[str], classes: Sequence[int]
                  ) -> Drawing | str:
    """Mean feature norm on the test set: of some classes over epochs (left), of every class at the end (right).

    One row of panels for each published column whose runs are there; those that are not are named below. Means over seeds.
    """
    names = [published_column] if isinstance(published_column, str) else list(published_column)
    panels: dict[str, tuple[Column, list[MethodRuns]]] = {}  # by the words above the panels
    missing = []
    for name in names:
        try:
            column = find_column(results, name)
            panels[column_words(results, column)] = (column, find_runs(results, column, labels))
        except NotYet as why:
            missing.append(str(why))
    if not panels:
        return "; ".join(missing)
    data = _norm_frame([(column, runs) for column, here in panels.values() for runs in here])
    with style():
        return Drawing(_draw_norms(data, panels, labels, classes, missing), data)


def _norm_frame(drawn: Iterable[tuple[Column, MethodRuns]]) -> "DataFrame":
    """Every recorded feature norm: the mean over seeds of the class's mean norm, by column, method, epoch and class."""
    from pandas import DataFrame

    rows = []
    for column, runs in drawn:
        epochs = runs.done[0]["norms"]["feature_epochs"]
        done = [record for record in runs.done if record["norms"]["feature_epochs"] == epochs]
        for i, epoch in enumerate(epochs):
            for k, images in enumerate(runs.done[0]["counts"]):
                norms = tuple(record["norms"]["feature"][i][k] for record in done)
                if None in norms:
                    continue
                mean, sd = spread(norms)
                rows.append({"column": column.name, "label": runs.method.label, "epoch": epoch + 1, "class": k,
                             "training_images": images, "norm": mean, "sd": sd, "seeds": len(norms), "last": i == len(epochs) - 1,
                             "keys": ";".join(record["key"] for record in done)})
    return DataFrame(rows)


def _draw_norms(data: "DataFrame", panels: Mapping[str, tuple[Column, list[MethodRuns]]], labels: Sequence[str],
                classes: Sequence[int], missing: Sequence[str]) -> "Figure":
    every = [runs for _, here in panels.values() for runs in here]
    kinds = ("solid", "dashed", "dotted", "dash-dotted")
    styles = ", ".join(f"{kind} {label}" for kind, label in zip(kinds, labels, strict=False))
    figure, upper = canvas(2.3 * len(panels) + 0.7,
                           plain(f"Left: {styles}. {source_words(every)}" + "".join(f" Not here: {why}." for why in missing)))
    grid = upper.subplots(len(panels), 2, squeeze=False, width_ratios=(1.25, 1))
    colour = colours(runs.method.name for runs in every)
    for (left, right), (title, (column, here)) in zip(grid, panels.items(), strict=True):
        part = data[data["column"] == column.name]
        for i, runs in enumerate(here):
            _norms_over_epochs(left, part[part["label"] == runs.method.label], classes, LINES[i % len(LINES)])
            _norms_at_the_end(right, part[(part["label"] == runs.method.label) & part["last"]], runs, colour, i)
        left.set_title(plain(title), loc="left")
        left.set(xlabel="Epoch", ylabel="Mean feature norm", ylim=(0, None))
        right.set(xlabel="Class", ylabel="Mean feature norm", ylim=(0, None))
        right.set_title("at the end, mean ± sd", loc="left")
    legend_below(upper, 4, handlelength=3)
    return figure


def _norms_over_epochs(axes: "Axes", part: "DataFrame", classes: Sequence[int], line: object) -> None:
    for i, k in enumerate(classes):
        one = part[part["class"] == k]
        if len(one):
            axes.plot(one["epoch"], one["norm"], color=PALETTE[i % len(PALETTE)], marker=MARKERS[i % len(MARKERS)], markersize=3,
                      linestyle=line, linewidth=1.0, label=f"class {k}")


def _norms_at_the_end(axes: "Axes", part: "DataFrame", runs: MethodRuns, colour: Mapping[str, str], i: int) -> None:
    many = len(part) > MOST_NAMES
    spreads = part["sd"].astype(float).fillna(0.0)  # a single seed has none
    axes.plot(part["class"], part["norm"], color=colour[runs.method.name], linestyle=LINES[i % len(LINES)], linewidth=1.0,
              marker=None if many else MARKERS[-1 - i % len(MARKERS)], label=_method_words(runs))
    axes.fill_between(part["class"], part["norm"] - spreads, part["norm"] + spreads, color=colour[runs.method.name], alpha=0.2,
                      linewidth=0)
