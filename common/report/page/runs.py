"""The runs behind the page's cells as compact JSON: what the page's script draws when a cell is opened.

What many runs share (columns, protocols, methods, devices, commands) is stored once. A curve is thinned to at most
`points` epochs and written as text, two characters a value, in steps of a 4095th of its range.
"""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.paper import Paper
from common.plan import Run, merged
from common.report.large import COMMAND
from common.report.results import Record, Records, Results
from common.spec import Profile, canonical_json

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
STEPS = len(DIGITS) ** 2 - 1  # the last pair of digits stands for a value that is missing
PLACE = ("device", "precision", "compiled", "torch", "python")


def pack(values: Iterable[float | None], top: float) -> str:
    """Values in [0, top] as two characters each, rounded to a 4094th of `top`; "__" where one is missing.

    >>> pack([0.0, None, 100.0], 100.0)
    'AA___-'
    """
    found = []
    for value in values:
        step = STEPS if value is None else round(min(max(value / top, 0.0), 1.0) * (STEPS - 1)) if top else 0
        found.append(DIGITS[step // 64] + DIGITS[step % 64])
    return "".join(found)


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


def commands(results: Sequence[Results]) -> dict[str, str]:
    """Key -> the command that trains the run again, up to its number of seeds; the first paper's that plans it.

    What only other runs start from is trained with the first of them.
    """
    found: dict[str, str] = {}
    starts: dict[str, str] = {}
    for profile in ("paper", "quick"):
        for one in (some.under(profile) for some in results):
            paper = one.paper
            for item in merged(run for c in paper.columns[profile] for seeds in one.planned(c) for run in seeds).values():
                line = _command(paper, profile, item)
                found.setdefault(item.spec.key, line)
                for start in item.chain[:-1]:
                    starts.setdefault(start.spec.key, line)
    return starts | found


def _command(paper: Paper, profile: Profile, item: Run) -> str:
    """Up to its number of seeds. A column of a large set is trained under torchrun, and in the paper's profile only."""
    column = item.spec.column.name
    begin = COMMAND.format(paper=paper.name) if column in paper.large else (
        f".venv/bin/python -m papers.{paper.name}.replicate train --profile {profile}")
    return f"{begin} --column {shlex.quote(column)} --method {shlex.quote(item.method.label)} --seeds "


def run_data(records: Records, keys: Sequence[str], again: Mapping[str, str], points: int) -> dict[str, Any]:
    """The records of `keys` for the page's script: a row of `runs` each, in this order, under the names in `fields`.

    A button of the page names a run by its place in this order. again: what `commands` returns.
    """
    shared = {name: Shared() for name in ("columns", "protocols", "methods", "counts", "places", "commits", "commands")}
    runs = [_run(records[key], shared, again.get(key, ""), points) for key in keys]
    rows = [list(run.values()) for run in runs]  # without the names, which would take as much room as the values
    common = {name: of.values for name, of in shared.items()}
    return {"digits": DIGITS, "fields": list(runs[0]) if runs else [], "runs": rows, **common}


def _run(record: Record, shared: Mapping[str, Shared], command: str, points: int) -> dict[str, Any]:
    spec, made, curves, accuracy = record["spec"], record["made"], record["curves"], record["accuracy"]
    losses = [value for value in curves["train_loss"] if value is not None]
    top = float(f"{max(losses, default=0.0):.3g}") * 1.01
    return {
        "key": record["key"], "seed": spec["seed"], "status": record["status"],
        "column": shared["columns"].at({"data": spec["data"], **spec["column"]}),
        "protocol": shared["protocols"].at(spec["protocol"]), "method": shared["methods"].at(spec["method"]),
        "counts": shared["counts"].at(record["counts"]),
        "place": shared["places"].at({name: made.get(name) for name in PLACE}),
        "commit": shared["commits"].at(made.get("commit")), "again": shared["commands"].at(command),
        "finished": made.get("finished"), "seconds": made.get("seconds"), "side": made.get("runs_in_pack"),
        "ended": made.get("diverged_in_epoch"),
        "last": accuracy["last"], "best": accuracy["best"], "epoch": accuracy["best_epoch"],
        "groups": [record["groups"][name] for name in ("many", "medium", "few")], "ece": record["calibration"]["ece"],
        "epochs": len(curves["test_accuracy"]), "top": top,
        "loss": pack(thin(curves["train_loss"], points), top), "test": pack(thin(curves["test_accuracy"], points), 100.0),
        "classes": pack(record["per_class_accuracy"], 100.0),
    }
