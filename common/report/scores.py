"""A paper's results as DVC shows them: `metrics.json` for `dvc metrics` and `dvc exp show`, and two files for `dvc plots`.

They say the same as the tables, and are written with them. The same records give the same bytes, without a date or a duration,
so that `dvc metrics diff` shows what has changed and nothing else.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common.paper import Paper
from common.report.claims import Outcome, evaluate
from common.report.compare import Cell, cells
from common.report.groups import WHOLE
from common.report.intervals import mean_of
from common.report.order import orders
from common.report.results import MethodRuns, Results
from common.report.verdict import APART, LESS_IS_BETTER
from common.spec import Column
from common.store import rows_as_csv, write_atomically

METRICS, AGREEMENT, CLASSES = "metrics.json", "agreement.csv", "per_class.csv"
TOP_1 = ("top1_error", "top1_accuracy")
PLAIN = "ce"  # the method beside which a paper's own are drawn


def write_scores(results: Results) -> Path:
    """Write the three files into <paper>/scores/<profile>, which is returned."""
    folder, all_cells, outcomes = results.paper.folder / "scores" / results.profile, cells(results), evaluate(results)
    taus = [order.tau for order in orders([results]) if order.tau is not None] if results.profile == "paper" else []
    content = json.dumps(metrics(all_cells, outcomes, taus), indent=2, allow_nan=False) + "\n"
    write_atomically(folder / METRICS, content.encode())
    names = ("table", "row", "reading", "column", "published", "ours", "verdict")
    write_atomically(folder / AGREEMENT, rows_as_csv(names, agreement(all_cells)))
    names = ("column", "method", "class", "accuracy")
    write_atomically(folder / CLASSES, rows_as_csv(names, per_class(results)))
    return folder


def metrics(all_cells: Sequence[Cell], outcomes: Iterable[Outcome], taus: Sequence[float]) -> dict[str, Any]:
    """Runs behind the cells; cells by verdict, or by why they have none; mean absolute difference from the printed numbers, in
    points, over all cells that are comparable; mean of Kendall's tau-b over printed columns; claims by verdict; mean accuracy in
    percent over the cells of the paper's own methods and of the others. What cannot be computed is left out, as DVC cannot show
    that it is missing."""
    apart = [abs(cell.delta) for cell in all_cells if cell.delta is not None and cell.verdict != APART]
    claims = [outcome.verdict for outcome in outcomes if not outcome.follows and not outcome.claim.ours]
    numbers = {"mean_absolute_difference": mean_of(apart), "kendall_tau": mean_of(taus),
               "accuracy_of_own": _accuracy(all_cells, True),
               "accuracy_of_others": _accuracy(all_cells, False)}
    return {
        "runs": len({key for cell in all_cells for key in cell.keys}),
        **{name: round(value, 4) for name, value in numbers.items() if value is not None},
        "cells": _count(cell.verdict or ("run" if cell.n else cell.state) for cell in all_cells), "claims": _count(claims),
    }


def _accuracy(all_cells: Iterable[Cell], ours: bool) -> float | None:
    """Mean of our means over the top-1 cells of all classes together, errors turned into accuracies."""
    return mean_of([100 - cell.mean if cell.metric in LESS_IS_BETTER else cell.mean for cell in all_cells
                  if cell.n and cell.ours == ours and cell.group in WHOLE and cell.metric in TOP_1])


def _count(words: Iterable[str]) -> dict[str, int]:
    """How often each verdict or state occurs, without its reason (`not run: needs imagenet`), the most frequent first."""
    counts = Counter(word.split(":")[0].split(" (")[0].replace(" ", "_") for word in words)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def agreement(all_cells: Iterable[Cell]) -> list[tuple[Any, ...]]:
    """Every cell with runs: where it stands, the printed number, the mean of ours."""
    return [(cell.table, f"{cell.row} [{cell.variant}]" if cell.variant else cell.row, cell.reading, cell.column,
             f"{cell.published:g}", f"{cell.mean:.4f}", cell.verdict or "run") for cell in all_cells if cell.n]


def per_class(results: Results) -> list[tuple[Any, ...]]:
    """Accuracy of each class, from the most frequent to the rarest, of the paper's own methods and of cross-entropy. Large sets
    are left out: thousands of classes make no curve that anyone could read."""
    paper = results.paper
    columns = [column for column in paper.columns[results.profile] if column.name not in paper.large]
    return [row for column in columns for runs in results.runs(column) if _is_drawn(paper, runs)
            for row in _curve(column, runs)]


def _is_drawn(paper: Paper, runs: MethodRuns) -> bool:
    return bool(runs.done) and not runs.method.variant and runs.method.name in (*paper.own, PLAIN)


def _curve(column: Column, runs: MethodRuns) -> list[tuple[Any, ...]]:
    """Means over seeds. Classes of equal size stand in the order of their numbers; one without a test image is left out."""
    counts = runs.done[0]["counts"]
    order = sorted(range(len(counts)), key=lambda one: -counts[one])
    means = [mean_of([record["per_class_accuracy"][one] for record in runs.done]) for one in order]
    return [(column.name, runs.method.label, rank, f"{mean:.4f}") for rank, mean in enumerate(means, 1) if mean is not None]
