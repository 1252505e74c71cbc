"""Figures in one style: a colour-blind safe palette, one colour a method across all papers, the data beside each as CSV.

Matplotlib is imported when a figure is drawn, and only as an object: no window, no global state.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.errors import UserError
from common.method import Paper
from common.report.compare import Arm, Records, arms, majority, spread
from common.report.tables import csv_bytes
from common.report.text import plain
from common.spec import Profile
from common.store import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#d9d9d9", "grid.linewidth": 0.6, "legend.frameon": False,
    "figure.facecolor": "white", "figure.dpi": 100, "savefig.dpi": 200, "hatch.linewidth": 0.5, "errorbar.capsize": 2,
    "svg.hashsalt": "figures", "svg.fonttype": "path",
}
# Okabe and Ito (2008), without yellow and black, then four of Paul Tol's: told apart with colour-blind eyes and in grey print.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#332288", "#999933", "#882255", "#888888")
HATCHES = {"written": "", "released": "///"}
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


def save(figure: "Figure", data: "DataFrame", folder: Path, name: str) -> list[Path]:
    """Write <name>.svg, .png and .csv: the same bytes for the same figure, without dates."""
    contents = {}
    with style():
        for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata)
            contents[f"{name}.{kind}"] = buffer.getvalue()
    contents[f"{name}.csv"] = csv_bytes(data)
    for file, content in contents.items():
        write_atomically(folder / file, content)
    return [folder / file for file in contents]


def save_figures(paper: Paper, profile: Profile, records: Records, folder: Path) -> list[str]:
    """Draw every figure of the paper into figure-<n>.svg, .png and .csv; one line a figure on what was written or is missing."""
    lines = []
    for figure in paper.figures:
        drawn = figure.draw(paper, profile, records)
        if isinstance(drawn, str):
            lines.append(f"Figure {figure.number}: {drawn}")
            continue
        files = save(drawn.figure, drawn.data, folder, f"figure-{figure.number}")
        lines.append(f"Figure {figure.number}: {', '.join(file.name for file in files)} in {folder}")
    return lines


def per_class_error(paper: Paper, profile: Profile, records: Records, column: str, methods: Sequence[str],
                    class_names: Sequence[str] | None = None) -> Drawing | str:
    """Top-1 error per class of some methods on a column of the profile, each in all its readings, as grouped bars.

    Bars are means over seeds, whiskers one standard deviation. Without the runs it is a sentence on what is missing.
    """
    at = next((c for c in paper.columns[profile] if c.name == column), None)
    if at is None:
        raise UserError(f"{paper.name} has no column {column!r} in profile {profile!r}.")
    found = [arm for arm in arms(paper, records, profile, at) if arm.method.name in methods and not arm.method.variant]
    if missing := [name for name in methods if not any(arm.method.name == name and arm.done for arm in found)]:
        return f"no run of {' or '.join(missing)} on {column} (profile {profile}) yet"
    found = sorted((arm for arm in found if arm.done), key=lambda arm: methods.index(arm.method.name))
    counts = found[0].done[0]["counts"]
    names = list(class_names or (f"C{i}" for i in range(len(counts))))
    data, title = _per_class_frame(found, names, counts), column + (" (quick)" if profile == "quick" else "")
    with style():
        return Drawing(_draw_per_class(data, found, names, majority(counts), title), data)


def _per_class_frame(found: Sequence[Arm], names: Sequence[str], counts: Sequence[int]) -> "DataFrame":
    from pandas import DataFrame

    large = majority(counts)
    rows = []
    for arm in found:
        for i, name in enumerate(names):
            errors = tuple(100 - record["per_class_accuracy"][i] for record in arm.done)
            mean, sd = spread(errors)
            rows.append({"method": arm.method.name, "reading": arm.method.reading, "class": name, "training_images": counts[i],
                         "group": "majority" if large[i] else "minority", "error_percent": mean, "sd": sd, "seeds": len(errors)})
    return DataFrame(rows)


def _draw_per_class(data: "DataFrame", found: Sequence[Arm], names: Sequence[str], large: Sequence[bool], title: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes, width = figure.subplots(), 0.8 / len(found)
    colour = colours(arm.method.name for arm in found)
    for i, arm in enumerate(found):
        part = data[(data["method"] == arm.method.name) & (data["reading"] == arm.method.reading)]
        where = [k + (i - (len(found) - 1) / 2) * width for k in range(len(names))]
        seeds = f"{len(arm.done)} seed{'s' if len(arm.done) > 1 else ''}"
        axes.bar(where, part["error_percent"], width * 0.94, color=colour[arm.method.name], hatch=HATCHES[arm.method.reading],
                 edgecolor="white", linewidth=0.4, label=plain(f"{arm.method.name}, {arm.method.reading} ({seeds})"),
                 yerr=part["sd"].fillna(0.0) if len(arm.done) > 1 else None, error_kw={"elinewidth": 0.8, "ecolor": "#333333"})
    axes.set(xlabel="Class", ylabel="Top-1 error (%), mean ± sd", ylim=(0, 100), xlim=(-0.5, len(names) - 0.5))
    axes.set_title(plain(title), loc="left", pad=16)  # above the names of the groups
    axes.set_xticks(range(len(names)), [plain(name) for name in names] if len(names) <= 20 else [""] * len(names))
    _mark_groups(axes, large)
    figure.legend(loc="outside lower center", ncols=min(3, len(found)))
    return figure


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
