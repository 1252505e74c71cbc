"""From the text's method to the code's: what each difference between the readings changes, and what the choice of the epoch does.

A paper has such a path where the rows of a column hold steps (`common.methods.path`). A change is that of the mean last-epoch
error over seeds from one step to the next; its interval is Welch's, at 95 %. The released row at its best test epoch, which is
chosen on the test images themselves, is a step of its own: there the numbers are those of the same runs, so its interval is
Student's on their differences.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from common.methods.path import UNTIL, steps_of
from common.paper import Figure
from common.report.compare import measure
from common.report.groups import WHOLE
from common.report.intervals import Interval, confidence_interval, difference_interval, spread
from common.report.results import MethodRuns, Results, once
from common.report.sources import seed_words, source_words
from common.report.style import PALETTE, Drawing, canvas, legend_below, style
from common.report.text import markdown_table, mean_text, number, plain, signed
from common.spec import Column

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

NUMBER = "text-to-code"  # of the figure, and so of its files
BEST = "best epoch on the test set"
TITLE = "From the text to the code"


class Step(NamedTuple):
    """From the errors of some runs to those of others, in percent. names: of the differences that lie between, several where the
    runs between them are missing. interval: of the change, None where a side has no spread."""

    names: tuple[str, ...]
    runs: MethodRuns
    before: float
    after: float
    interval: Interval | None

    @property
    def change(self) -> float:
        return self.after - self.before

    @property
    def is_best(self) -> bool:
        return self.names == (BEST,)


class Waterfall(NamedTuple):
    """The path of a row on a column as far as there are runs. rows: the written row, the steps, and in the place of the last one
    the released row, which it is. steps: empty where either end has no run, else all differences and the best epoch. waits:
    labels of rows without a run. printed: the paper's error, None where it prints none."""

    column: Column
    rows: tuple[MethodRuns, ...]
    steps: tuple[Step, ...]
    waits: tuple[str, ...]
    printed: float | None

    @property
    def written(self) -> MethodRuns:
        return self.rows[0]

    @property
    def released(self) -> MethodRuns:
        return self.rows[-1]


@once
def waterfall_of(results: Results) -> Waterfall | None:
    """The paper's path in the published profile; None where it has none."""
    one = results.under("paper")
    for column in one.paper.columns["paper"]:
        if steps := steps_of(one.paper.rows("paper", column)):
            name = steps[0].name
            labels = (f"{name}@written", *(step.label for step in steps[:-1]), f"{name}@released")
            there = {runs.method.label: runs for runs in one.runs(column)}
            chain = tuple(there[label] for label in labels)
            names = [step.variant.removeprefix(UNTIL) for step in steps]
            return Waterfall(column, chain, _steps(chain, names), _waits(chain), _printed(one, column, name))
    return None


def errors(runs: MethodRuns, epoch: str = "last") -> tuple[float, ...]:
    """Top-1 errors in percent of the finished runs."""
    return tuple(measure(record, "top1_error", epoch=epoch) for record in runs.done)


def _steps(chain: Sequence[MethodRuns], differences: Sequence[str]) -> tuple[Step, ...]:
    """Between neighbours that have runs; what lies between them is one step. differences: of each row but the first."""
    if not (chain[0].done and chain[-1].done):
        return ()
    steps, here, names = [], chain[0], []
    for runs, name in zip(chain[1:], differences, strict=True):
        names.append(name)
        if runs.done:
            before, after = errors(here), errors(runs)
            steps.append(Step(tuple(names), runs, spread(before)[0], spread(after)[0], difference_interval(after, before)))
            here, names = runs, []
    return (*steps, _best_epoch(chain[-1]))


def _best_epoch(runs: MethodRuns) -> Step:
    last, best = errors(runs), errors(runs, "best")
    gains = tuple(after - before for before, after in zip(last, best, strict=True))
    return Step((BEST,), runs, spread(last)[0], spread(best)[0], confidence_interval(gains))


def _waits(chain: Sequence[MethodRuns]) -> tuple[str, ...]:
    return tuple(runs.method.label + (f" ({len(runs.diverged)} diverged)" if runs.diverged else "")
                 for runs in chain if not runs.done)


def _printed(results: Results, column: Column, method: str) -> float | None:
    for row in results.printed:
        is_this = (row.column, row.method, row.variant) == (column.name, method, "") and row.group in WHOLE
        if is_this and row.metric in ("top1_error", "top1_accuracy"):
            return row.number if row.metric == "top1_error" else 100 - row.number
    return None


def waiting(results: Results, waterfall: Waterfall) -> str:
    """What the figure waits for, and the command that trains it; empty where all runs are there."""
    if not waterfall.waits:
        return ""
    first = waterfall.waits[0].partition(" ")[0]
    command = (f".venv/bin/python -m papers.{results.paper.name}.replicate train --profile paper "
               f"--column {waterfall.column.name} --method '{first}'")
    return (f"waits for runs of {', '.join(waterfall.waits)} on {waterfall.column.name}. A campaign takes steps among the "
            f"ablations; `{command}` trains one now")


# ---------------------------------------------------------------- as text


def waterfall_markdown(results: Results) -> str:
    """A table of the path, or what it waits for; empty where the paper has none."""
    if (waterfall := waterfall_of(results)) is None:
        return ""
    missing = waiting(results, waterfall)
    if not waterfall.steps:
        return f"The path from text to code {missing}.\n"
    name = waterfall.written.method.name
    first = ["text (`written`)", mean_text(errors(waterfall.written)), "", ""]
    rows = [first, *([" + ".join(step.names), _after(step), signed(step.change), _span(step.interval)]
                    for step in waterfall.steps)]
    header = ["taken from the code", "top-1 error after it", "change", "95 % interval of the change"]
    printed = "" if waterfall.printed is None else f" Printed: {number(waterfall.printed)}."
    more = f" Joined steps: the path {missing}." if missing else ""
    return (f"{name} on {waterfall.column.name}, top-1 error in percent, mean ± sd (seeds). Each row has the differences of the "
            f"rows above it too; the last but one is `released`, the last the same runs at their best test epoch."
            f"{printed}{more}\n\n"
            + markdown_table(header, rows))


def _after(step: Step) -> str:
    return mean_text(errors(step.runs, "best" if step.is_best else "last"))


def _span(interval: Interval | None) -> str:
    return "not known from so few runs" if interval is None else f"{signed(interval.low)} to {signed(interval.high)}"


def waterfall_block(results: Results) -> str:
    """`waterfall_markdown` for the paper's README, with the figure above the table where there is one."""
    waterfall = waterfall_of(results)
    picture = f"![{TITLE}](../../figures/{results.paper.name}/figure-{NUMBER}.svg)\n\n" if waterfall and waterfall.steps else ""
    return picture + waterfall_markdown(results)


# ---------------------------------------------------------------- as a figure


def waterfall_figure(results: Results) -> Drawing | str:
    """The path as a waterfall, or what it waits for."""
    if results.profile != "paper":
        return "the steps from text to code are planned in the published profile only"
    if (waterfall := waterfall_of(results)) is None:
        return "text and code are one reading here"
    missing = waiting(results, waterfall)
    if not waterfall.steps:
        return missing
    data = _frame(waterfall)
    words = "Whiskers: 95 % intervals, of a mean or of a change. " + source_words(a for a in waterfall.rows if a.done)
    with style():
        return Drawing(_draw(data, waterfall, plain(words + (f" The path {missing.replace('`', '')}." if missing else ""))), data)


def _frame(waterfall: Waterfall) -> "DataFrame":
    """A row for each line of the figure, from top to bottom: totals and the changes between them."""
    from pandas import DataFrame

    rows = [_total("text (written)", waterfall.written, "last")]
    for step in waterfall.steps:
        if step.is_best:
            rows.append(_total("code (released)", waterfall.released, "last"))
        low, high = step.interval or (None, None)
        rows.append({"kind": "best" if step.is_best else "step", "name": " + ".join(step.names), "label": step.runs.method.label,
                     "from_percent": step.before, "to_percent": step.after, "change": step.change, "low": low, "high": high,
                     "seeds": len(step.runs.done), "keys": _keys(step.runs)})
    return DataFrame([*rows, _total("code (released), best epoch", waterfall.released, "best")])


def _total(name: str, runs: MethodRuns, epoch: str) -> Mapping[str, Any]:
    values = errors(runs, epoch)
    low, high = confidence_interval(values) or (None, None)
    return {"kind": "total", "name": name, "label": runs.method.label, "from_percent": None, "to_percent": spread(values)[0],
            "change": None, "low": low, "high": high, "seeds": len(values), "keys": _keys(runs)}


def _keys(runs: MethodRuns) -> str:
    return ";".join(record["key"] for record in runs.done)


def _draw(data: "DataFrame", waterfall: Waterfall, footnote: str):
    figure, upper = canvas(0.9 + 0.26 * len(data), footnote)
    axes = upper.subplots()
    for place, row in enumerate(data.astype(object).where(data.notna(), None).itertuples()):
        (_draw_total if row.kind == "total" else _draw_change)(axes, place, row)
    if waterfall.printed is not None:
        axes.axvline(waterfall.printed, color=PALETTE[3], linestyle=(0, (5, 1.5)), linewidth=1.0, label="as printed")
    axes.set_yticks(range(len(data)), [plain(name) for name in data["name"]])
    axes.set(xlabel="Top-1 error (%)", ylim=(len(data) - 0.4, -0.6))
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    written = waterfall.written
    axes.set_title(plain(f"{written.method.name} on {waterfall.column.name} ({seed_words(written)})"), loc="left")
    legend_below(upper, 4)
    return figure


def _draw_total(axes: "Axes", place: int, row: Any) -> None:
    whisker = None if row.low is None else [[row.to_percent - row.low], [row.high - row.to_percent]]
    axes.errorbar([row.to_percent], [place], xerr=whisker, color="#333333", marker="D", linestyle="none", elinewidth=0.8,
                  label="mean over seeds")


def _draw_change(axes: "Axes", place: int, row: Any) -> None:
    """A bar from the error before to that after, with the interval of the change about its end, and the step's own mean carried
    on to the next line."""
    fill, hatch, label = ((PALETTE[9], "////", "chosen on the test set") if row.kind == "best" else
                          (PALETTE[0], "", "lower error") if row.change < 0 else (PALETTE[1], "", "higher error"))
    axes.barh(place, row.change, 0.62, left=row.from_percent, color=fill, hatch=hatch, edgecolor="white", linewidth=0.4,
              label=label)
    axes.plot([row.to_percent] * 2, [place + 0.31, place + 1], color="#888888", linewidth=0.6)
    if row.low is not None:
        axes.errorbar([row.to_percent], [place], xerr=[[row.change - row.low], [row.high - row.change]], color="#333333",
                      linestyle="none", elinewidth=0.8)


TEXT_TO_CODE = Figure(NUMBER, TITLE + ": top-1 error after each difference between the readings", waterfall_figure)
