"""The join of what a paper prints with what our records say: one `Cell` per printed number, reading and column.

Headline numbers are those of the last epoch; the best test epoch is kept beside them and never gets a verdict.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from common.cost import not_run
from common.errors import UserError
from common.paper import Paper
from common.report.groups import WHOLE, group_accuracy, is_group
from common.report.intervals import spread
from common.report.results import MethodRuns, Record, Results, once
from common.report.text import mean_text
from common.report.verdict import APART, BOUND, cell_verdict

NO_RUN = "no run yet"
MEASURED = ("top1_error", "top1_accuracy", "top5_accuracy", "per_class_accuracy")


@dataclass(frozen=True)
class Cell:
    """A number that the paper prints, and ours for one reading of its method.

    table, row, method, variant, metric, group, unit, printed, printed_sd, published, remark: the number as printed, where,
    and what was noted on reading it; row is the paper's own label.
    column: where our runs are; stands_for: the published column (the same, but for the quick profile).
    values, best: our runs' last-epoch and best-epoch numbers in the printed metric, one per finished run; keys: their records.
    state: "mean", "no run yet", "diverged", "stale: ..." where
    code has changed since the runs, "not run: ...", or "not decidable: ..." where no run could answer the number;
    mean, sd, delta, verdict are None where there is nothing to say. bound: how small the difference must be shown to be for
    `reproduced`, in points.
    """

    table: str
    row: str
    method: str
    variant: str
    reading: str
    column: str
    stands_for: str
    metric: str
    printed: str
    published: float
    ours: bool
    group: str = ""
    unit: str = "percent"
    printed_sd: str = ""
    remark: str = ""
    values: tuple[float, ...] = ()
    best: tuple[float, ...] = ()
    keys: tuple[str, ...] = ()
    diverged: int = 0
    state: str = NO_RUN
    mean: float | None = None
    sd: float | None = None
    delta: float | None = None
    verdict: str | None = None
    bound: float = BOUND
    flags: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def shown(self) -> str:
        """The number as the paper prints it, with its spread where it prints one."""
        return f"{self.printed} ± {self.printed_sd}" if self.printed_sd else self.printed

    @property
    def quick(self) -> bool:
        """Whether the column is a stand-in, whose numbers say nothing about the published one."""
        return self.column != self.stands_for


@once
def cells(results: Results) -> tuple[Cell, ...]:
    """One cell per printed number, reading and column of the profile, in the order of published.csv.

    A number that no run of this profile can stand beside still yields its cell in the paper profile, with the reason as state.
    """
    paper, is_paper, all_cells = results.paper, results.profile == "paper", []
    large = {c.name: c for c in paper.columns["paper"] if c.name in paper.large}
    for row in results.printed:
        if why := why_not_measured(row.metric, row.group):
            all_cells += [_cell(row, row.column, None, state=f"not decidable: {why}")] if is_paper else []
            continue
        columns = results.columns_shown.get(row.column, ())
        if not columns and is_paper:
            all_cells.append(_cell(row, row.column, None, state=_why_not(row, paper)))
        for column in columns:
            name = column.name
            own = row.method, row.variant
            matching = [runs for runs in results.runs(column) if (runs.method.name, runs.method.variant) == own]
            if not matching:
                all_cells.append(_cell(row, name, None, state="not run: no such method here"))
            for runs in matching:
                waiting = not_run(paper, large[name], runs.method, results.speeds) if name in large else NO_RUN
                all_cells.append(_noted(_cell(row, name, runs, waiting), paper.notes.get(name)))
    return tuple(all_cells)


def _noted(cell: Cell, note: str | None) -> Cell:
    return replace(cell, flags=(*cell.flags, note)) if note and cell.n else cell


def _why_not(row: Any, paper: Paper) -> str:
    if row.dataset in {column.dataset for column in paper.columns["paper"]}:
        return "not run: column not planned"
    return f"not run: needs {row.dataset}"


def _cell(row: Any, column: str, runs: MethodRuns | None, state: str = NO_RUN) -> Cell:
    cell = {name: getattr(row, name) for name in ("table", "row", "method", "variant", "metric", "group", "unit", "remark")}
    cell |= {"printed": row.value, "printed_sd": row.std, "published": row.number, "bound": row.bound}
    cell |= {"column": column, "stands_for": row.column, "reading": "", "ours": row.method_ref == "ours", "state": state}
    if runs is None:
        return Cell(**cell)
    cell |= {"reading": runs.method.reading, "diverged": len(runs.diverged), "flags": flags((*runs.done, *runs.starts))}
    if not runs.done:
        old = tuple(measure(r, row.metric, row.group) for r in runs.stale if r["status"] == "done")
        was = f"stale: {mean_text(old)}, of other code" if old and None not in old else "stale" if runs.stale else state
        return Cell(**{**cell, "state": "diverged" if runs.diverged else was})
    if runs.stale:
        cell |= {"flags": (*cell["flags"], f"left out: {len(runs.stale)} runs of other code")}
    values, best = (tuple(measure(r, row.metric, row.group, epoch) for r in runs.done) for epoch in ("last", "best"))
    if None in values:
        lacking = f"no {row.group} in {column}" if row.group else f"no record holds {row.metric}"
        return Cell(**{**cell, "state": f"not decidable: {lacking}"})
    mean, sd = spread(values)
    cell |= {"values": values, "best": () if None in best else best,
             "keys": tuple(r["key"] for r in runs.done), "state": "mean", "mean": mean, "sd": sd}
    if column == row.column:
        apart = (*([runs.apart] if runs.apart else []), *drawn_lists(runs.done))
        verdict = APART if apart else cell_verdict(values, row.number, row.metric, row.bound)
        cell |= {"delta": mean - row.number, "verdict": verdict, "flags": (*cell["flags"], *apart)}
    return Cell(**cell)


def why_not_measured(metric: str, group: str) -> str:
    """Why no record can answer a number in this metric and group of classes; "" where records can."""
    if metric.endswith("_change_abs"):
        return "a change, and what it is measured against is not named"
    if metric not in MEASURED:
        return f"no record holds {metric}"
    if not is_group(group) or (metric == "per_class_accuracy" and group in WHOLE):
        return f"no record knows the classes {group!r}"
    return ""


def measure(record: Record, metric: str, group: str = "", epoch: str = "last") -> float | None:
    """A record's number in the metric that the paper prints, over a group of classes (`groups.is_group`).

    epoch: "last" or "best". None where the record does not have it: its column has no such classes, or they are not
    recorded for the best epoch.
    """
    if why := why_not_measured(metric, group):
        raise UserError(f"metric {metric!r}, group {group!r}: {why}.")
    if metric == "top5_accuracy":  # of large sets; the best epoch is that of the best top-1 accuracy
        return record.get("top5", {}).get(epoch)
    accuracy = group_accuracy(record, group, epoch)
    return accuracy if accuracy is None or metric != "top1_error" else 100 - accuracy


def flags(records: Iterable[Record]) -> tuple[str, ...]:
    """What makes some runs unlike each other: numbers from unlike machines are shown, but not silently."""
    listed = list(records)
    kinds = {"precision": "precision", "devices": "device", "torch": "torch", "compilation": "compiled", "lists": "lists",
             "numbers of processes": "processes"}
    return tuple(f"mixed {name}: {values}" for name, field in kinds.items() if ", " in (values := made(listed, field)))


def drawn_lists(records: Sequence[Record]) -> tuple[str, ...]:
    """That some runs on a large set have a training list that was drawn here, in the place of the official one."""
    drawn = sum(record["made"].get("official") is False for record in records)
    return (f"not the official split: {drawn} of {len(records)} runs",) if drawn else ()


def made(records: Iterable[Record], field: str) -> str:
    """The different values of a field of `made`, sorted and joined by commas."""
    return ", ".join(sorted({str(record["made"].get(field, "not recorded")).replace(",", ";") for record in records}))


def minutes(records: Iterable[Record]) -> float:
    """Device-minutes behind some records: `seconds` of a record is its run's share of its pack."""
    return sum(float(record["made"].get("seconds") or 0.0) for record in records) / 60
