"""The join of what a paper prints with what our records say: one `Cell` per printed number, reading and column.

Headline numbers are those of the last epoch; the best test epoch is kept beside them and never gets a verdict.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from common.errors import UserError
from common.estimate import known_speeds, not_run
from common.methods.digest import ENGINE
from common.methods.method import Method, digest_of
from common.paper import Paper
from common.plan import Run
from common.report.groups import WHOLE, group_accuracy, is_group
from common.report.intervals import spread
from common.report.text import mean_text
from common.report.verdict import APART, BOUND, bounds, cell_verdict
from common.spec import Column, Profile
from common.store import equivalents

if TYPE_CHECKING:
    from pandas import DataFrame

Record = Mapping[str, Any]
Records = Mapping[str, Record]

NO_RUN = "no run yet"
FIELDS = ("paper", "table", "dataset", "imbalance_type", "imbalance_ratio", "backbone", "method", "method_ref", "metric", "unit",
          "value", "std", "group", "notes")
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


class Arm(NamedTuple):
    """The runs of one method on one column: records of the finished and of the diverged ones, in the order of their seeds, and
    of the earlier stages that the finished ones start from. apart: why they are not comparable with their source, if so.
    stale: records of other code than today's, which count nowhere."""

    method: Method
    done: tuple[Record, ...]
    diverged: tuple[Record, ...]
    starts: tuple[Record, ...] = ()
    apart: str = ""
    stale: tuple[Record, ...] = ()


def published(paper: Paper) -> "DataFrame":
    """`published.csv` of the paper, its strings as printed, and beside them: number, column, row, variant, remark, bound."""
    import pandas

    path = paper.folder / "published.csv"
    try:
        frame = pandas.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: it holds the numbers that the paper prints.") from None
    except ValueError as error:
        raise UserError(f"{path} is not a table of published numbers ({' '.join(str(error).split())}).") from None
    if missing := [name for name in FIELDS if name not in frame]:
        raise UserError(f"{path}: column {missing[0]!r} is missing.")
    for line, value in enumerate(frame["value"], 2):
        if not _is_number(value):
            raise UserError(f"{path}, line {line}: value {value!r} is not a number.")
    frame = frame.assign(
        number=[float(value) for value in frame["value"]],
        column=[_column_name(row, f"{path}, line {line}") for line, row in enumerate(frame.itertuples(), 2)],
        row=[_own_label(text) or _spell(method) for text, method in zip(frame["notes"], frame["method"], strict=True)],
    )
    notes = _split_notes(frame)
    return frame.assign(variant=[variant for variant, _ in notes], remark=[remark for _, remark in notes], bound=bounds(frame))


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text)
    except ValueError:
        return False


def _column_name(row: Any, where: str) -> str:
    """The name that `Column` gives to the column of a printed number; the file spells the backbone "resnet-32"."""
    try:
        ratio = int(row.imbalance_ratio or 1)
    except ValueError:
        raise UserError(f"{where}: imbalance_ratio {row.imbalance_ratio!r} is not a whole number.") from None
    return Column(row.dataset, row.imbalance_type, ratio, row.backbone.replace("-", "")).name


def _own_label(notes: str) -> str:
    """The paper's own label of the row, from "row=..."."""
    return next((item[4:] for item in notes.split(";") if item.startswith("row=")), "")


def _split_notes(frame: "DataFrame") -> list[tuple[str, str]]:
    """Variant and remark of every row.

    The settings among the notes ("beta=1.4") are a variant only where one table prints several numbers of a method in one
    column, so that the method's name alone says too little. All else is a remark on the row.
    """
    several = frame.duplicated(["table", "column", "method", "metric", "group"], keep=False)
    found = []
    for text, is_needed in zip(frame["notes"], several, strict=True):
        items = [item for item in map(str.strip, text.split(";")) if item and not item.startswith(("row=", "label="))]
        settings = [item for item in items if is_needed and re.fullmatch(r"[\w.-]+=[^\s=]+", item)]
        found.append((";".join(settings), "; ".join(item for item in items if item not in settings)))
    return found


def _spell(method: str) -> str:
    """A label for a row whose own the file does not repeat: short words are acronyms (`LDAM-DRW`), others names (`Focal`)."""
    return "-".join(word.upper() if len(word) <= 4 else word.capitalize() for word in method.split("-"))


def standing_columns(paper: Paper, profile: Profile) -> dict[str, tuple[Column, ...]]:
    """Published column name -> the columns of this profile whose runs are shown for it."""
    found: dict[str, tuple[Column, ...]] = {}
    there = {column.name for column in paper.columns[profile]}
    for column in paper.columns[profile]:
        # The join is on dataset, imbalance and backbone: which images a subset keeps is not printed anywhere. But the authors'
        # are meant, so a column of other images stands for the number only where there is none of theirs.
        authors = replace(column, subset="authors").name
        if column.name != authors and authors in there:
            continue
        plain = replace(column, backbone=column.backbone.replace("-", ""), subset="authors").name
        name = plain if profile == "paper" else paper.stand_ins.get(column.name)
        if name is not None and (profile == "quick" or name not in found):
            found[name] = (*found.get(name, ()), column)
    return found


Chains = list[tuple[Method, list[tuple[str, ...]]]]
_PLANS: dict[tuple, tuple[Paper, Chains]] = {}  # a report asks for the same keys a hundred times


def planned_keys(paper: Paper, profile: Profile, column: Column, seeds: tuple[int, ...]) -> Chains:
    """Every method of a column, as the paper lists them, with the keys of each run's stages, its own last; remembered for this
    paper object."""
    place = id(paper), profile, column, seeds
    if place not in _PLANS:  # the paper is kept beside it, so that its id stays its own
        _PLANS[place] = paper, [(method, [_chain_keys(paper, profile, column, method, seed) for seed in seeds])
                                for method in paper.rows(profile, column)]
    return _PLANS[place][1]


def _chain_keys(paper: Paper, profile: Profile, column: Column, method: Method, seed: int) -> tuple[str, ...]:
    planned = Run(paper.spec(profile, column, method, seed), method, paper.folder)
    return tuple(stage.spec.key for stage in planned.chain)


def arms(paper: Paper, records: Records, profile: Profile, column: Column) -> list[Arm]:
    """Every method of a column, as the paper lists them, with the records it has; more seeds than planned all count."""
    seeds = sorted(set(range(paper.seeds[profile])) | {record["spec"]["seed"] for record in records.values()})
    found, same = [], equivalents(paper.folder.parent)
    for method, chains in planned_keys(paper, profile, column, tuple(seeds)):
        digest = digest_of(method, column)
        there = [(records[keys[-1]], keys[:-1]) for keys in chains if keys[-1] in records]
        have = [(record, keys) for record, keys in there if is_fresh(record, digest, same)]
        done = tuple(r for r, _ in have if r["status"] == "done")
        starts = tuple(records[key] for r, keys in have if r["status"] == "done" for key in keys if key in records)
        found.append(Arm(method, done, tuple(r for r, _ in have if r["status"] != "done"), starts,
                         _why_apart(paper, column, method), tuple(r for r, _ in there if not is_fresh(r, digest, same))))
    return found


def is_fresh(record: Record, digest: str, same: Mapping[str, Collection[str]]) -> bool:
    """Whether a record is of today's engine, and of code that computes what the method computes today. digest: of the method;
    same: `common.store.equivalents`."""
    return record["engine"] == ENGINE and record["method_digest"] in same.get(digest, (digest,))


def _why_apart(paper: Paper, column: Column, method: Method) -> str:
    names = (column.name, f"{column.name}/{method.name}", f"{column.name}/{method.label}")
    reasons = [paper.not_comparable[name] for name in names if name in paper.not_comparable]
    return f"{APART}: {'; '.join(reasons)}" if reasons else ""


def cells(paper: Paper, records: Records, profile: Profile) -> list[Cell]:
    """One cell per printed number, reading and column of the profile, in the order of published.csv.

    A number that no run of this profile can stand beside still yields its cell in the paper profile, with the reason as state.
    """
    standing, found = standing_columns(paper, profile), []
    per_column = {c.name: arms(paper, records, profile, c) for columns in standing.values() for c in columns}
    large, speeds = {c.name: c for c in paper.columns["paper"] if c.name in paper.large}, known_speeds(paper, records)
    for row in published(paper).itertuples():
        if why := why_not_measured(row.metric, row.group):
            found += [_cell(row, row.column, None, state=f"not decidable: {why}")] if profile == "paper" else []
            continue
        columns = [column.name for column in standing.get(row.column, ())]
        if not columns and profile == "paper":
            found.append(_cell(row, row.column, None, state=_why_not(row, paper)))
        for name in columns:
            matching = [arm for arm in per_column[name] if (arm.method.name, arm.method.variant) == (row.method, row.variant)]
            if not matching:
                found.append(_cell(row, name, None, state="not run: no such method here"))
            for arm in matching:
                waiting = not_run(paper, large[name], arm.method, speeds) if name in large else NO_RUN
                found.append(_noted(_cell(row, name, arm, waiting), paper.notes.get(name)))
    return found


def _noted(cell: Cell, note: str | None) -> Cell:
    return replace(cell, flags=(*cell.flags, note)) if note and cell.n else cell


def _why_not(row: Any, paper: Paper) -> str:
    if row.dataset in {column.dataset for column in paper.columns["paper"]}:
        return "not run: column not planned"
    return f"not run: needs {row.dataset}"


def _cell(row: Any, column: str, arm: Arm | None, state: str = NO_RUN) -> Cell:
    cell = {name: getattr(row, name) for name in ("table", "row", "method", "variant", "metric", "group", "unit", "remark")}
    cell |= {"printed": row.value, "printed_sd": row.std, "published": row.number, "bound": row.bound}
    cell |= {"column": column, "stands_for": row.column, "reading": "", "ours": row.method_ref == "ours", "state": state}
    if arm is None:
        return Cell(**cell)
    cell |= {"reading": arm.method.reading, "diverged": len(arm.diverged), "flags": flags((*arm.done, *arm.starts))}
    if not arm.done:
        old = tuple(measure(r, row.metric, row.group) for r in arm.stale if r["status"] == "done")
        was = f"stale: {mean_text(old)}, of other code" if old and None not in old else "stale" if arm.stale else state
        return Cell(**{**cell, "state": "diverged" if arm.diverged else was})
    if arm.stale:
        cell |= {"flags": (*cell["flags"], f"left out: {len(arm.stale)} runs of other code")}
    values, best = (tuple(measure(r, row.metric, row.group, epoch) for r in arm.done) for epoch in ("last", "best"))
    if None in values:
        lacking = f"no {row.group} in {column}" if row.group else f"no record holds {row.metric}"
        return Cell(**{**cell, "state": f"not decidable: {lacking}"})
    mean, sd = spread(values)
    cell |= {"values": values, "best": () if None in best else best,
             "keys": tuple(r["key"] for r in arm.done), "state": "mean", "mean": mean, "sd": sd}
    if column == row.column:
        apart = (*([arm.apart] if arm.apart else []), *drawn_lists(arm.done))
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
    chosen = list(records)
    kinds = {"precision": "precision", "devices": "device", "torch": "torch", "compilation": "compiled", "lists": "lists",
             "numbers of processes": "processes"}
    return tuple(f"mixed {name}: {values}" for name, field in kinds.items() if ", " in (values := made(chosen, field)))


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
