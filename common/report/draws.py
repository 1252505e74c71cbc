"""Does a number change with which images a long-tailed subset keeps? The spread over draws of the images beside that over seeds.

A method's accuracies are seen as mean + draw + seed, draws and seeds both taken from many: the one-way random-effects analysis of
variance, whose estimates of the two variances are those of Searle, Casella and McCulloch (Variance Components, 1992, section 3.6)
for unequal numbers of runs. All eight subsets are of one size and drawn at random, so each counts as a draw.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

from common.draws import OTHERS, has_draws, is_headline
from common.paper import Paper
from common.report.groups import WHOLE
from common.report.results import MethodRuns, Results
from common.spec import Column, Protocol

ACCURACIES = ("top1_error", "top1_accuracy")
RULE = (
    "Each method is trained on subsets of the same sizes that keep other images: those of the authors' scripts (NumPy's seed 0), "
    "of another released code (seed 666), by the hash of the pixels, and of five further seeds. The sd over seeds is that of "
    "runs on the same images; the sd over draws is what the choice of images adds (one-way random-effects analysis of variance; "
    "0 where the means of the subsets differ by no more than seeds explain). p: F test of no difference between subsets, not "
    "corrected. A gap is the difference between neighbours when the numbers that a table prints for one column are sorted; it is "
    "compared with the pooled sd over draws of that column. Methods compared on the same subset share some of its luck, "
    "so a gap below the sd need not be luck; but a table of a single subset cannot show that it is not."
)


class Variances(NamedTuple):
    """Of accuracies in points squared. seeds: of runs on the same images; draws: what the choice of images adds, below 0 where
    subsets differ by less than seeds explain. p: of no difference between subsets."""

    seeds: float
    draws: float
    p: float


class Drawn(NamedTuple):
    """A method under one protocol on the subsets. papers: who has it as which label. by_subset: the accuracies of its runs, in
    percent; variances: None below two subsets or without two runs on one."""

    column: Column
    label: str
    protocol: Protocol
    papers: tuple[str, ...]
    by_subset: Mapping[str, tuple[float, ...]]
    variances: Variances | None

    @property
    def means(self) -> dict[str, float]:
        return {subset: fmean(values) for subset, values in self.by_subset.items() if values}


class Gaps(NamedTuple):
    """The gaps between neighbours that a paper's table prints in a column, in points."""

    paper: str
    table: str
    gaps: tuple[float, ...]


class Pooled(NamedTuple):
    """Of a column: its methods, the sd over seeds and over draws pooled over those that have both (None where none has), and the
    published gaps."""

    column: Column
    methods: tuple[Drawn, ...]
    seeds: float | None
    draws: float | None
    tables: tuple[Gaps, ...]

    @property
    def gaps(self) -> tuple[float, ...]:
        return tuple(gap for table in self.tables for gap in table.gaps)

    @property
    def runs(self) -> int:
        """On other images than the authors'."""
        return sum(len(values) for one in self.methods for subset, values in one.by_subset.items() if subset in OTHERS)

    def smaller(self, spread: float) -> int:
        """How many published gaps are smaller."""
        return sum(gap < spread for gap in self.gaps)


def draws_of(results: Sequence[Results]) -> tuple[Pooled, ...]:
    """One for every column that has other subsets beside it, each method once, whoever plans it. results: of each paper under
    the published protocol."""
    columns = dict.fromkeys(column for one in results for column in one.paper.columns["paper"] if _beside(one.paper, column))
    pooled = []
    for column in columns:
        methods = _methods(results, column)
        with_both = [one.variances for one in methods if one.variances]
        seeds, draws = (math.sqrt(max(0.0, fmean(parts))) if with_both else None
                        for parts in ([v.seeds for v in with_both], [v.draws for v in with_both]))
        pooled.append(Pooled(column, methods, seeds, draws, _tables(results, column)))
    return tuple(pooled)


def _methods(results: Iterable[Results], column: Column) -> tuple[Drawn, ...]:
    by_key: dict[str, Drawn] = {}
    for one in results:
        paper = one.paper
        if not (beside := _beside(paper, column)):
            continue
        per_subset = {c.subset: {runs.method.label: runs for runs in one.runs(c)} for c in (column, *beside)}
        for label, runs in per_subset[column.subset].items():
            if not is_headline(runs.method, paper.own):
                continue
            run, where = runs.planned[0].spec, f"{paper.name}: {label}"
            known = by_key.get(run.key)
            values = {subset: _accuracies(each[label]) for subset, each in per_subset.items()}
            by_key[run.key] = known._replace(papers=(*known.papers, where)) if known else Drawn(
                column, label, run.protocol, (where,), values, variances(values.values()))
    return tuple(by_key.values())


def _beside(paper: Paper, column: Column) -> list[Column]:
    """The paper's columns that differ from this one, which has the authors' images, in the images alone."""
    here = column in paper.columns["paper"] and has_draws(column)
    return [c for c in paper.columns["paper"] if c.is_drawn and replace(c, subset="authors") == column] if here else []


def _accuracies(runs: MethodRuns) -> tuple[float, ...]:
    return tuple(record["accuracy"]["last"] for record in runs.done)


def variances(groups: Iterable[Sequence[float]]) -> Variances | None:
    """groups: of each subset the accuracies of its runs. None below two subsets, or where no subset has two runs."""
    from scipy.special import fdtrc  # scipy.stats takes far longer for the same number

    groups = [list(values) for values in groups if values]
    subsets, runs = len(groups), sum(map(len, groups))
    if subsets < 2 or runs == subsets:
        return None
    grand = sum(map(sum, groups)) / runs
    within = sum((value - fmean(values)) ** 2 for values in groups for value in values) / (runs - subsets)
    between = sum(len(values) * (fmean(values) - grand) ** 2 for values in groups) / (subsets - 1)
    size = (runs - sum(len(values) ** 2 for values in groups) / runs) / (subsets - 1)
    p = float(fdtrc(subsets - 1, runs - subsets, between / within)) if within > 0 else 1.0
    return Variances(within, (between - within) / size, p)


def _tables(results: Iterable[Results], column: Column) -> tuple[Gaps, ...]:
    """Of each table: the gaps between its neighbours in the column, over all images of the test set."""
    gaps = []
    for one in results:
        printed: dict[str, list[float]] = {}
        for row in one.printed:
            if row.column == column.name and row.metric in ACCURACIES and row.group in WHOLE:
                printed.setdefault(row.table, []).append(row.number)
        gaps += [Gaps(one.paper.name, table, tuple(round(high - low, 6) for low, high in pairwise(sorted(numbers))))
                 for table, numbers in printed.items() if len(numbers) > 1]
    return tuple(gaps)
