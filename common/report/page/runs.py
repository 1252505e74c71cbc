"""The runs behind the page's cells, and how each is made, as deflated JSON: what the page's script draws when a cell is opened.

Values that belong together stand together, a list for every field over all runs, which is what deflating likes. A curve is
thinned to at most `points` epochs.
"""

import base64
import inspect
import json
import math
import shlex
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from common.checkout import ROOT
from common.methods.digest import file_of
from common.methods.method import Method
from common.methods.sampling import shuffled, uniform_weights
from common.paper import Paper
from common.plan import Run
from common.report.compare import Cell
from common.report.large import COMMAND
from common.report.results import Record, Results
from common.spec import ProfileName, canonical_json, unwrap
from common.store import files_by_key

PLACE = ("device", "precision", "compiled", "torch", "python")


def deflated(value: Any) -> str:
    """JSON, deflated, in base64: nothing in it can end a script element."""
    content = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    return base64.b64encode(zlib.compress(content, 9)).decode()


def thin(values: Sequence[Any], points: int) -> list[Any]:
    """At most `points` of the values, evenly spaced, the first and the last among them.

    >>> thin([0, 1, 2, 3, 4, 5, 6], 3)
    [0, 3, 6]
    """
    if len(values) <= points:
        return list(values)
    return [values[math.floor(i * (len(values) - 1) / (points - 1) + 0.5)] for i in range(points)] if points > 1 else []


class Shared:
    """A list in which every value stands once; `at` gives its place."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[bytes, int] = {}

    def at(self, value: Any) -> int:
        name = canonical_json(value)
        if name not in self._places:
            self._places[name] = len(self.values)
            self.values.append(value)
        return self._places[name]


class Plan(NamedTuple):
    """How a run is trained: its method, and the command up to its number of seeds."""

    method: Method
    command: str


def plans(results: Sequence[Results]) -> dict[str, Plan]:
    """Key -> how the run is trained again; the first paper's that plans it.

    What only other runs start from is trained with the first of them.
    """
    planned: dict[str, Plan] = {}
    starts: dict[str, Plan] = {}
    for profile in ("paper", "quick"):
        for one in (one.under(profile) for one in results):
            for item in (item for column in one.paper.columns[profile] for seeds in one.planned(column) for item in seeds):
                command = _command(one.paper, profile, item)
                planned.setdefault(item.spec.key, Plan(item.method, command))
                for start in item.chain[:-1]:
                    starts.setdefault(start.spec.key, Plan(start.method, command))
    return starts | planned


def _command(paper: Paper, profile: ProfileName, item: Run) -> str:
    """Up to its number of seeds. A column of a large set is trained under torchrun, and in the paper's profile only."""
    column = item.spec.column.name
    begin = COMMAND.format(paper=paper.name) if column in paper.large else (
        f".venv/bin/python -m papers.{paper.name}.replicate train --profile {profile}")
    return f"{begin} --column {shlex.quote(column)} --method {shlex.quote(item.method.label)} --seeds "


# ---------------------------------------------------------------- where the equations stand


@cache
def equations(method: Method) -> list[list[Any]]:
    """[what it is for, name, file, line] of the functions that a method is made of, its first stage's behind them. What every
    method has where it says nothing (a shuffle, equal weights) is left out."""
    own = [[use, function.__name__, *_place(function)] for use, part in method.functions.items()
           if part not in (shuffled, uniform_weights) for function in _functions(part) if function is not uniform_weights]
    first = equations(method.first_stage) if method.first_stage else []
    return own + [[f"first stage: {use}", *rest] for use, *rest in first]


def _functions(part: Any) -> Iterator[Any]:
    """A function, and those that are bound to it."""
    function, values = unwrap(part)
    yield function
    for value in values.values():
        if callable(value):
            yield from _functions(value)


def _place(function: Any) -> tuple[str, int]:
    path = file_of(function)
    shown = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    return shown, inspect.unwrap(function).__code__.co_firstlineno


# ---------------------------------------------------------------- what a cell names


class Sources:
    """What the buttons of the page name: places of runs in the run data, and of ways, which say how a method's runs are made
    (command, equations, spec). Both are given out in the order in which the page asks for them."""

    def __init__(self, results: Sequence[Results]):
        self.results = {one.paper.name: one for one in results}
        self.records = results[0].records
        self.keys: dict[str, int] = {}
        self.ways = Shared()
        self._lost: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._lines: dict[str, dict[tuple[str, ...], int]] = {}
        self._known: dict[tuple[str, str, str], int | None] = {}

    def runs(self, keys: Iterable[str]) -> tuple[int, ...]:
        return tuple(self.keys.setdefault(key, len(self.keys)) for key in keys if key in self.records)

    def cell_runs(self, cell: Cell, paper: str) -> tuple[int, ...]:
        """Finished runs first, then those that diverged, which a cell only counts."""
        return self.runs((*cell.keys, *(self._diverged(cell, paper) if cell.diverged else ())))

    def _diverged(self, cell: Cell, paper: str) -> tuple[str, ...]:
        place = paper, cell.column, cell.method, cell.variant, cell.reading
        if place not in self._lost:
            own = self.results[paper]
            for column in (column for column in own.paper.columns["paper"] if column.name == cell.column):
                for runs in own.runs(column):
                    method = runs.method
                    self._lost[paper, column.name, method.name, method.variant, method.reading] = tuple(
                        record["key"] for record in runs.diverged)
        return self._lost.get(place, ())

    def way(self, column: str, label: str, paper: str) -> int | None:
        """The way of a method, by its label, in a column of the published protocol; None where the paper does not plan it."""
        if (paper, column, label) not in self._known:
            own = self.results[paper].paper
            for there in (there for there in own.columns["paper"] if there.name == column):
                for method in own.rows("paper", there):
                    item = Run(own.spec("paper", there, method, 0), method, own.folder)
                    plan = Plan(method, _command(own, "paper", item))
                    self._known[paper, column, method.label] = self.ways.at(_way(plan, item.spec.as_json()))
        return self._known.setdefault((paper, column, label), None)

    def cell_way(self, cell: Cell, paper: str) -> int | None:
        label = cell.method + (f"[{cell.variant}]" if cell.variant else "") + f"@{cell.reading}"
        return self.way(cell.column, label, paper) if cell.reading else None

    def line(self, cell: Cell, paper: str) -> int:
        """The line of published.csv that prints the number."""
        if paper not in self._lines:
            rows = enumerate(self.results[paper].printed, 2)
            self._lines[paper] = {_printed(row, row.column): line for line, row in rows}
        return self._lines[paper][_printed(cell, cell.stands_for)]


def _printed(row: Any, column: str) -> tuple[str, ...]:
    return row.table, row.row, row.method, row.variant, column, row.metric, row.group


def _way(plan: Plan | None, spec: Mapping[str, Any]) -> dict[str, Any]:
    """plan: None where no paper plans the run any more."""
    return {"command": plan.command if plan else "", "equations": equations(plan.method) if plan else [],
            "column": {"data": spec["data"], **spec["column"]}, "protocol": spec["protocol"], "method": spec["method"]}


# ---------------------------------------------------------------- the runs


def run_data(sources: Sources, planned: Mapping[str, Plan], points: int) -> dict[str, Any]:
    """The records that `sources` was asked for, a list for every field, in this order; their counts, devices and ways once.

    planned: what `plans` returns.
    """
    shared = {"ways": sources.ways, "counts": Shared(), "places": Shared()}
    root = next(iter(sources.results.values())).paper.folder.parent
    files = {key: path.relative_to(root.parent).as_posix() for key, path in files_by_key(root).items() if key in sources.keys}
    runs = [_run(sources.records[key], shared, planned.get(key), files.get(key, ""), points) for key in sources.keys]
    return {"runs": {name: [run[name] for run in runs] for name in (runs[0] if runs else ())},
            "number": len(runs), **{name: of.values for name, of in shared.items()}}


def _run(record: Record, shared: Mapping[str, Shared], plan: Plan | None, file: str, points: int) -> dict[str, Any]:
    made, curves, accuracy = record["made"], record["curves"], record["accuracy"]
    answers = record["predictions"].get("file") or ""
    return {
        "key": record["key"], "seed": record["spec"]["seed"], "status": record["status"],
        "way": shared["ways"].at(_way(plan, record["spec"])), "counts": shared["counts"].at(record["counts"]),
        "place": shared["places"].at({name: made.get(name) for name in PLACE}), "commit": made.get("commit"), "file": file,
        "answers": file and answers and f"{file.rpartition('/')[0]}/{answers}",
        "finished": made.get("finished"), "seconds": made.get("seconds"), "side": made.get("runs_in_pack"),
        "ended": made.get("diverged_in_epoch"),
        "last": accuracy["last"], "best": accuracy["best"], "epoch": accuracy["best_epoch"],
        "groups": [record["groups"][name] for name in ("many", "medium", "few")], "ece": record["calibration"]["ece"],
        "epochs": len(curves["test_accuracy"]),
        "loss": [value if value is None else float(f"{value:.3g}") for value in thin(curves["train_loss"], points)],
        "test": rounded(thin(curves["test_accuracy"], points)), "classes": rounded(record["per_class_accuracy"]),
    }


def rounded(values: Iterable[float | None]) -> list[float | None]:
    """Percent to a tenth, a third of a pixel of the page's charts."""
    return [value if value is None else round(value, 1) for value in values]
