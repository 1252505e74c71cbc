"""A paper's claims as tests on records: `claims.yaml`, strictly loaded, and one `Outcome` per claim and reading.

Every claim comes down to comparisons: in a column, the best of some champions against the best of some rivals; their statistics
are in `common.report.significance`. "in every column" is an intersection-union test (the largest p), and Holm corrects over the
claims of the paper, over those that are ours apart. A claim that follows from a stronger one is shown beside it, untested.
"""

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal, NamedTuple

from common.errors import UserError, line_of, meant
from common.paper import Paper
from common.report.compare import drawn_lists, flags, measure, why_not_measured
from common.report.groups import SHOTS, SPANS, TENTHS, WHOLE, group_accuracy, is_group
from common.report.paired import Hits
from common.report.published import published
from common.report.results import MethodRuns, Record, Results, once
from common.report.significance import (
    ENOUGH,
    LEVEL,
    Comparison,
    Side,
    decide,
    holm,
    over_images,
    p_claim,
    p_less_paired,
    p_opposite,
)
from common.spec import Column, load_yaml

RULE = (
    "Verdict of a claim: one-sided Welch t-tests over seeds on last-epoch errors; holds where the claim is significant in every "
    f"column, fails where its opposite is significant in some column (both at {LEVEL}, Holm-corrected over those of the paper's "
    "claims in whose columns anything has run; claims of ours, not the paper's, are a family of their own), else undecided; n is "
    f"called too small below {ENOUGH} runs a side. A claim whose comparisons a stronger one makes too follows from that one: "
    "it is not counted, and its p values are not corrected. Beside stands the p of paired tests, which no verdict looks at: over "
    "the seeds that both sides have and the images of the test set where every such run has its predictions, as a note then says "
    "(analysis of variance of both, Hillis 2007), else t-tests over seeds."
)
Classes = Literal["all", "majority", "minority"]
WITH_NOUN = ("majority", "minority", *SHOTS, *SPANS)


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper, and the test that it becomes.

    kind "better": `method` has a lower error than each of `than`. "best": than every other row of the tables (where
    `method` has several rows, its lowest printed one). "setting": the best row of `method` has `parameter` > `above`.
    Each is meant in every one of `columns`, and for the mean error over each of `classes`, or over the `group` of classes:
    "head", "medium", "tail" (over 100, 20 to 100, under 20 training images), "class-<k>", or "head1" to "head3", "mid1" to
    "mid4" and "tail1" to "tail3", the ten groups of equally many classes in the order of their training images, and of these
    together "head1-3", "mid1-4" or "tail1-3".
    A row of one reading is compared with the other rows of the same reading; one that has a single reading takes part in it.
    `method` and `than` name rows, or "name[variant]" for a variant that no table prints (`kind` "better" alone).
    means: how the quote was read, where that takes a word. ours: whether the comparison is ours, not one that the paper makes.
    """

    id: str
    section: str
    quote: str
    kind: Literal["better", "best", "setting"]
    tables: tuple[str, ...]
    method: str
    columns: tuple[str, ...]
    than: tuple[str, ...] = ()
    classes: tuple[Classes, ...] = ("all",)
    group: str = ""
    parameter: str | None = None
    above: float | None = None
    means: str | None = None
    ours: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """The groups of classes that it is about."""
        return (self.group,) if self.group else self.classes


@dataclass(frozen=True)
class Outcome:
    """What became of a claim in one reading.

    printed: whether the paper's own numbers bear it out. p, p_against: Holm-corrected, of the claim and of its opposite.
    p_paired: p with paired tests in place of Welch's, Holm-corrected likewise; the verdict does not look at it.
    follows: the id of the stronger claim that it follows from, "" for none; then it has no verdict of its own, and its p values
    are not corrected.
    gap: by how many points the champion is ahead in the column where it is least so (`where`); None without runs there.
    done, of: columns with runs for everything that the claim compares, and columns that it names.
    notes: what was left out of the comparison, and why; what makes the runs that it compares unlike each other; whether the
    paired tests are over images too (else they are over seeds).
    """

    claim: Claim
    reading: str
    follows: str
    printed: str
    verdict: str
    p: float | None
    p_against: float | None
    p_paired: float | None
    gap: float | None
    where: str
    done: int
    of: int
    notes: tuple[str, ...]


class Row(NamedTuple):
    """A row of a published table in one column."""

    method: str
    variant: str
    error: float

    @property
    def label(self) -> str:
        return f"{self.method}[{self.variant}]" if self.variant else self.method


Lines = Mapping[str, Sequence[Any]]  # column -> lines of published.csv
Sides = Mapping[tuple[str, str], tuple[list[Row], list[Row]]]  # by the id of a claim and a published column: `contenders`


class ClaimTest(NamedTuple):
    """A claim in one reading, made ready for testing.

    one_sided: columns whose table tries no setting to compare with. without: columns that have no such group of classes.
    absent: columns of each row that is not trained there. has_runs: whether any method has a run in one of its columns.
    """

    claim: Claim
    reading: str
    comparisons: tuple[Comparison, ...]
    one_sided: tuple[str, ...]
    without: tuple[str, ...]
    absent: Mapping[str, tuple[str, ...]]
    has_runs: bool

    @property
    def pairs(self) -> frozenset[tuple[str, ...]]:
        """(column, classes, champion, rival) of everything that must be so; none for kind "setting", whose two sides are each
        the best of several rows."""
        if self.claim.kind == "setting":
            return frozenset()
        return frozenset((d.column, d.classes, a.label, b.label) for d in self.comparisons for a in d.champions for b in d.rivals)


def load_claims(paper: Paper, lines: Lines | None = None) -> tuple[Claim, ...]:
    """The claims of the paper; a method, column or table that published.csv does not have is a UserError, as is a repeated id.
    lines: `printed_lines` of it, where they are known."""
    path = paper.folder / "claims.yaml"
    claims = load_yaml(path, tuple[Claim, ...])
    lines = printed_lines(published(paper).itertuples()) if lines is None else lines
    for i, claim in enumerate(claims):
        where = f"{line_of(path, f'id: {claim.id}')}: claim {claim.id!r}"
        if claim.id in [other.id for other in claims[:i]]:
            raise UserError(f"{where} is there twice.")
        if (claim.kind == "better") != bool(claim.than):
            raise UserError(f"{where}: `than` belongs to kind better, and to it alone.")
        if {claim.parameter is not None, claim.above is not None} != {claim.kind == "setting"}:
            raise UserError(f"{where}: `parameter` and `above` belong to kind setting, and to it alone.")
        if not claim.columns or not claim.classes:
            raise UserError(f"{where}: at least one column and one group of classes is needed.")
        if not is_group(claim.group) or (claim.group and claim.classes != ("all",)):
            known = f"head, medium, tail, class-<k>, {', '.join((*TENTHS, *SPANS))}"
            raise UserError(f"{where}: `group` is one of {known}, and stands without `classes`.")
        for column in claim.columns:
            known = {row.method for row in rows(claim, lines, column)}
            if missing := [name for name in (claim.method, *claim.than) if name.partition("[")[0] not in known]:
                near = meant(missing[0], known) if known else meant(column, lines)
                raise UserError(f"{where}: table {' or '.join(claim.tables)} has no {missing[0]!r} in column {column!r}{near}.")
    return claims


def printed_lines(printed: Iterable[Any]) -> Lines:
    """The rows of published.csv beside which records can be set, by column."""
    by_column: dict[str, list[Any]] = {}
    for line in printed:
        if line.metric != "top5_accuracy" and not why_not_measured(line.metric, line.group):  # claims are about top-1
            by_column.setdefault(line.column, []).append(line)
    return by_column


def rows(claim: Claim, lines: Lines, column: str) -> list[Row]:
    """The rows of the claim's tables in a column, as errors in percent: of its group where that is printed, else of all."""
    of_group = _of_group(claim, lines, column, claim.group) or _of_group(claim, lines, column, "")
    printed = [Row(r.method, r.variant, r.number if r.metric == "top1_error" else 100 - r.number) for r in of_group]
    there = {row.label for row in printed}
    others = [name for name in (claim.method, *claim.than) if "[" in name and name not in there]
    return printed + [Row(*name.removesuffix("]").split("[", 1), math.nan) for name in others]


def _of_group(claim: Claim, lines: Lines, column: str, group: str) -> list[Any]:
    """What the claim's tables print in a column for a group of classes."""
    names = WHOLE if group in WHOLE else (group,)
    return [line for line in lines.get(column, ()) if line.table in claim.tables and line.group in names]


def contenders(claim: Claim, column_rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Champions and rivals among the rows of a column; either may be empty for kind "setting"."""
    own = _named(claim.method, column_rows)
    if claim.kind == "setting":
        high = [row for row in own if _parameter(row, claim) > claim.above]
        return high, [row for row in own if row not in high]
    champion = min(own, key=lambda row: row.error)
    if claim.kind == "best":
        return [champion], [row for row in column_rows if row != champion]
    return [champion], [min(_named(name, column_rows), key=lambda row: row.error) for name in claim.than]


def _named(name: str, column_rows: list[Row]) -> list[Row]:
    """The rows of a method, or the one of "name[variant]"; only the latter may be one that is not printed."""
    return [row for row in column_rows if row.label == name or (row.method == name and not math.isnan(row.error))]


def _parameter(row: Row, claim: Claim) -> float:
    """The value of the claim's parameter in "beta=1.4;delta=0.6"."""
    values = dict(item.split("=", 1) for item in row.variant.split(";") if "=" in item)
    try:
        return float(values[claim.parameter])
    except (KeyError, ValueError):
        raise UserError(f"Claim {claim.id!r}: row {row.label} of published.csv has no number for {claim.parameter!r}.") from None


def printed_verdict(claim: Claim, lines: Lines) -> str:
    """Whether the printed numbers bear the claim out: `holds`, `fails (2 of 8 columns)`, or `not printed` where they are not
    there for its classes or for one of its sides. A variant among several rivals that is not printed is passed over."""
    if claim.classes != ("all",) or not all(_of_group(claim, lines, column, claim.group) for column in claim.columns):
        return "not printed"
    failing = 0
    for column in claim.columns:
        sides = contenders(claim, rows(claim, lines, column))
        ours, theirs = ([row for row in side if not math.isnan(row.error)] for side in sides)
        if (sides[0] and not ours) or (sides[1] and not theirs):
            return "not printed"
        failing += min((r.error for r in ours), default=math.inf) >= min((r.error for r in theirs), default=math.inf)
    return f"fails ({failing} of {len(claim.columns)} columns)" if failing else "holds"


@once
def evaluate(results: Results) -> tuple[Outcome, ...]:
    """The outcome of every claim, once per reading of the methods that it compares, in the order of claims.yaml, but that what
    follows from a stronger claim stands below that; none where the paper has no claims.yaml.

    In the quick profile a claim's columns are replaced by their stand-ins: a demonstration, not evidence on the paper.
    """
    if not has_claims(results.paper):
        return ()
    lines = printed_lines(results.printed)
    claims = load_claims(results.paper, lines)
    sides = {(claim.id, name): contenders(claim, rows(claim, lines, name)) for claim in claims for name in claim.columns}
    tests = [_test_of(claim, reading, results, sides) for claim in claims for reading in _readings(claim, results, sides)]
    printed = {claim.id: printed_verdict(claim, lines) for claim in claims}
    outcomes = []
    for reading in dict.fromkeys(test.reading for test in tests):
        of_reading = [test for test in tests if test.reading == reading]
        stronger = follows_from(of_reading)
        for is_ours in (False, True):
            family = [test for test in of_reading if test.claim.ours == is_ours]
            outcomes += [_outcome(test, stronger.get(test.claim.id, ""), printed[test.claim.id], ps, results)
                         for test, ps in zip(family, _corrected(family, stronger, results.hits), strict=True)]
    place = {claim.id: i for i, claim in enumerate(claims)}
    return tuple(sorted(outcomes, key=lambda o: (place[o.follows or o.claim.id], bool(o.follows), place[o.claim.id])))


def has_claims(paper: Paper) -> bool:
    """Whether the paper states claims."""
    return (paper.folder / "claims.yaml").exists()


def follows_from(tests: Sequence[ClaimTest]) -> dict[str, str]:
    """Id of a claim -> id of the stronger one that it follows from, among the tests of one reading.

    The stronger one has all its comparisons (and is the earlier one where it has no other), follows from none itself, and is
    not ours unless the other is too. What is compared is known before any run, so no result decides what counts.
    """
    made = [test.pairs for test in tests]

    def is_stronger(i: int, j: int) -> bool:
        more = made[j] < made[i] or (made[j] == made[i] and (tests[i].claim.ours, i) < (tests[j].claim.ours, j))
        return bool(made[j]) and more and tests[i].claim.ours <= tests[j].claim.ours

    above = [[i for i in range(len(tests)) if is_stronger(i, j)] for j in range(len(tests))]
    return {test.claim.id: next(tests[i].claim.id for i in of if not above[i])
            for test, of in zip(tests, above, strict=True) if of}


def _corrected(family: Sequence[ClaimTest], stronger: Mapping[str, str], hits: Mapping[str, Hits]
               ) -> list[tuple[float, float, float]]:
    """p of each claim of a family, of its opposite, and of the claim in paired tests: Holm-corrected over those that are tests.

    No test, and so without a share of the correction, is what has nothing to compare, what follows from a stronger claim, and a
    claim in whose columns nothing at all has been trained. Only whether there is any run is looked at, of whatever method: to
    choose by what the runs say would undo the correction.
    """
    paired = partial(p_less_paired, hits=hits)
    raw = [(p_claim(t.comparisons), p_opposite(t.comparisons), p_claim(t.comparisons, paired)) for t in family]
    tested = [i for i, t in enumerate(family) if t.comparisons and t.has_runs and t.claim.id not in stronger]
    corrected = zip(*(holm(raw[i][k] for i in tested) for k in range(3)), strict=True)
    return [raw[i] if i not in tested else next(corrected) for i in range(len(family))]


def _readings(claim: Claim, results: Results, sides: Sides) -> list[str]:
    """The readings of the row that the claim is about, "written" first; "written" where nothing of it is trained."""
    readings = {reading for name in claim.columns for column in results.columns_shown.get(name, ())
                for reading in _own_readings(claim, results.runs(column), sides[claim.id, name])}
    return sorted(readings, key=lambda reading: reading != "written") or ["written"]


def _own_readings(claim: Claim, runs: Sequence[MethodRuns], sides: tuple[list[Row], list[Row]]) -> set[str]:
    """The readings that the claim's own method has in a column of ours. sides: the rows compared in the published column."""
    own = {(row.method, row.variant) for row in chain(*sides) if claim.method in (row.method, row.label)}
    return {one.method.reading for one in runs if (one.method.name, one.method.variant) in own}


def _test_of(claim: Claim, reading: str, results: Results, sides: Sides) -> ClaimTest:
    """The comparisons of a claim on the columns of a profile, and what could not be compared."""
    made, one_sided, without, absent = [], [], [], {}
    shown = results.columns_shown
    for name in claim.columns:
        if not all(sides[claim.id, name]):
            one_sided.append(name)
            continue
        for column in shown.get(name, ()):
            there = _own_readings(claim, results.runs(column), sides[claim.id, name])
            same = reading if reading in there else min(there, default=reading)  # like with like, where it has one reading only
            if any(_lacks(results, column, classes) for classes in claim.parts):
                without.append(name)
                continue
            for classes in claim.parts:
                both = [[(row, _side(row, same, results, column, classes)) for row in side] for side in sides[claim.id, name]]
                for label in (row.label for side in both for row, runs in side if runs is None):
                    absent.setdefault(label, {})[column.name] = None
                made.append(Comparison(column.name, classes, *(tuple(r for _, r in side if r is not None) for side in both)))
    has_runs = any(runs.done or runs.diverged for name in claim.columns for column in shown.get(name, ())
                   for runs in results.runs(column))
    return ClaimTest(claim, reading, tuple(made), *(tuple(dict.fromkeys(names)) for names in (one_sided, without)),
                     {label: tuple(names) for label, names in absent.items()}, has_runs)


def _lacks(results: Results, column: Column, classes: str) -> bool:
    """Whether some finished run of a column has no such classes."""
    return results.keep(("lacks", column, classes), lambda: any(
        mean_error(record, classes) is None for runs in results.runs(column) for record in runs.done))


def _side(row: Row, reading: str, results: Results, column: Column, classes: str) -> Side | None:
    """A row's runs in this reading, or in the only one that its method has; None where the paper trains no such method."""
    same = [runs for runs in results.runs(column) if (runs.method.name, runs.method.variant) == (row.method, row.variant)]
    if not same:
        return None
    runs = next((one for one in same if one.method.reading == reading), same[0])
    seeds = tuple(record["spec"]["seed"] for record in runs.done)
    errors = tuple(mean_error(record, classes) for record in runs.done)
    return Side(row.label, errors, len(runs.diverged), seeds, runs.done, runs.starts, runs.apart, classes)


def mean_error(record: Record, classes: str) -> float | None:
    """Last-epoch error in percent over the test set, the majority or minority classes, or a group; None without such classes."""
    if classes not in ("majority", "minority"):
        return measure(record, "top1_error", classes)
    accuracy = group_accuracy(record, classes)
    return None if accuracy is None else 100 - accuracy


def _outcome(test: ClaimTest, follows: str, printed: str, ps: tuple[float, float, float], results: Results) -> Outcome:
    """ps: of the claim, of its opposite, and of the claim in paired tests."""
    claim, made = test.claim, test.comparisons
    ready = [d for d in made if d.champions and d.rivals and all(s.errors or s.diverged for s in d.sides)]
    complete = {d.column for d in made} - {d.column for d in made if d not in ready}
    left_out = {*test.one_sided, *test.without}
    of = len(claim.columns) - len(left_out) if results.profile == "paper" else len({d.column for d in made})
    everywhere = len(left_out) == len(claim.columns)
    verdict = "not decidable" if everywhere else decide(ready, *ps[:2], len(complete), of)
    shown = (None, None, None) if verdict.startswith("not ") else ps
    gap, where = min((_gap(d) for d in ready if all(s.errors for s in d.sides)), default=(None, ""))
    verdict = f"follows from {follows}" if follows else verdict
    notes = _notes(test) + (() if shown[0] is None else _paired_note(made, results.hits))
    return Outcome(claim, test.reading, follows, printed, verdict, *shown, gap, where, len(complete), of, notes)


def _paired_note(comparisons: Sequence[Comparison], hits: Mapping[str, Hits]) -> tuple[str, ...]:
    some, every = over_images(comparisons, hits)
    if not some:
        return ()
    return ("paired over images and seeds" if some == every else
            f"paired over images and seeds in {some} of {every} comparisons, over seeds in the others",)


def _notes(test: ClaimTest) -> tuple[str, ...]:
    claim, notes = test.claim, []
    if test.one_sided:
        notes.append(f"only one side of {claim.parameter} = {claim.above:g} is tried in {', '.join(test.one_sided)}")
    if test.without:
        notes.append(f"no {class_words(*claim.parts).removeprefix(', ')} in {', '.join(test.without)}")
    if test.absent:
        names = [label + _only_in(columns, test) for label, columns in test.absent.items()]
        notes.append(f"left out, as there is no such method here: {', '.join(names)}")
    notes += _unlike(test)
    runs = {(d.column, s.label): s for d in test.comparisons for s in d.sides if s.diverged}
    lost = dict.fromkeys(label for _, label in runs)
    counts = [f"{sum(s.diverged for (_, other), s in runs.items() if other == label)} of {label}" for label in lost]
    return (*notes, f"diverged runs: {', '.join(counts)}") if lost else tuple(notes)


def _unlike(test: ClaimTest) -> list[str]:
    """What makes the runs that the claim compares with each other in a column unlike, as `flags` says it of a cell's."""
    mixed: dict[str, dict[str, None]] = {}
    for one in test.comparisons:
        for flag in flags(record for side in one.sides for record in (*side.done, *side.starts)):
            mixed.setdefault(flag, {})[one.column] = None
    sides = [side for one in test.comparisons for side in one.sides if side.done]
    used = {record["key"]: record for side in sides for record in side.done}
    apart = dict.fromkeys(f"{side.label} {side.apart}" for side in sides if side.apart)
    return [*(flag + _only_in(columns, test) for flag, columns in mixed.items()), *drawn_lists(list(used.values())), *apart]


def _only_in(columns: Collection[str], test: ClaimTest) -> str:
    """` (cifar10-lt-100)` after what is so in these columns alone."""
    return "" if len(columns) == len({one.column for one in test.comparisons}) else f" ({', '.join(columns)})"


def _gap(comparison: Comparison) -> tuple[float, str]:
    """Points by which the best champion is ahead of the best rival, and where, against whom."""
    ours = min(statistics.fmean(s.errors) for s in comparison.champions)
    theirs, label = min((statistics.fmean(s.errors), s.label) for s in comparison.rivals)
    return theirs - ours, f"{comparison.column}{class_words(comparison.classes)}, against {label}"


def class_words(*parts: str) -> str:
    """`, majority and minority classes`, `, class-3`, `, tail1-3 classes`; empty for the whole test set."""
    names = [f"{part} classes" if part in WITH_NOUN else part for part in parts]
    return f", {' and '.join(names)}" if set(parts) - set(WHOLE) else ""
