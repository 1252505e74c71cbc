"""A paper's claims as tests on records: `claims.yaml`, strictly loaded, and one `Outcome` per claim and reading.

Every claim comes down to duels: in a column, the best of some champions against the best of some rivals; their statistics
are in `common.report.duels`. "in every column" is an intersection-union test (the largest p), and Holm corrects over the
claims of the paper, over those that are ours apart. A claim that follows from a stronger one is shown beside it, untested.
"""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal, NamedTuple

from common.errors import UserError, line_of, meant
from common.paper import Paper
from common.report.compare import (
    Arm,
    Record,
    Records,
    arms,
    drawn_lists,
    flags,
    measure,
    published,
    standing_columns,
    why_not_measured,
)
from common.report.duels import ENOUGH, LEVEL, Duel, Side, decide, holm, over_images, p_claim, p_less_paired, p_opposite
from common.report.groups import SHOTS, SPANS, TENTHS, WHOLE, group_accuracy, is_group
from common.report.paired import NO_HITS, Hits
from common.spec import Column, Profile, load_yaml

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


class Trial(NamedTuple):
    """A claim in one reading, made ready for testing.

    one_sided: columns whose table tries no setting to compare with. without: columns that have no such group of classes.
    absent: columns of each row that is not trained there. has_runs: whether any method has a run in one of its columns.
    """

    claim: Claim
    reading: str
    duels: tuple[Duel, ...]
    one_sided: tuple[str, ...]
    without: tuple[str, ...]
    absent: Mapping[str, tuple[str, ...]]
    has_runs: bool

    @property
    def comparisons(self) -> frozenset[tuple[str, ...]]:
        """(column, classes, champion, rival) of everything that must be so; none for kind "setting", whose two sides are each
        the best of several rows."""
        if self.claim.kind == "setting":
            return frozenset()
        return frozenset((d.column, d.classes, a.label, b.label) for d in self.duels for a in d.champions for b in d.rivals)


def load_claims(paper: Paper) -> tuple[Claim, ...]:
    """The claims of the paper; a method, column or table that published.csv does not have is a UserError, as is a repeated id."""
    path = paper.folder / "claims.yaml"
    claims, lines = load_yaml(path, tuple[Claim, ...]), printed_lines(paper)
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


def printed_lines(paper: Paper) -> Lines:
    """The numbers of published.csv beside which records can be set, by column."""
    found: dict[str, list[Any]] = {}
    for line in published(paper).itertuples():
        if line.metric != "top5_accuracy" and not why_not_measured(line.metric, line.group):  # claims are about top-1
            found.setdefault(line.column, []).append(line)
    return found


def rows(claim: Claim, lines: Lines, column: str) -> list[Row]:
    """The rows of the claim's tables in a column, as errors in percent: of its group where that is printed, else of all."""
    chosen = _of_group(claim, lines, column, claim.group) or _of_group(claim, lines, column, "")
    printed = [Row(r.method, r.variant, r.number if r.metric == "top1_error" else 100 - r.number) for r in chosen]
    there = {row.label for row in printed}
    others = [name for name in (claim.method, *claim.than) if "[" in name and name not in there]
    return printed + [Row(*name.removesuffix("]").split("[", 1), math.nan) for name in others]


def _of_group(claim: Claim, lines: Lines, column: str, group: str) -> list[Any]:
    """What the claim's tables print in a column for a group of classes."""
    names = WHOLE if group in WHOLE else (group,)
    return [line for line in lines.get(column, ()) if line.table in claim.tables and line.group in names]


def contenders(claim: Claim, found: list[Row]) -> tuple[list[Row], list[Row]]:
    """Champions and rivals among the rows of a column; either may be empty for kind "setting"."""
    own = _named(claim.method, found)
    if claim.kind == "setting":
        high = [row for row in own if _parameter(row, claim) > claim.above]
        return high, [row for row in own if row not in high]
    champion = min(own, key=lambda row: row.error)
    if claim.kind == "best":
        return [champion], [row for row in found if row != champion]
    return [champion], [min(_named(name, found), key=lambda row: row.error) for name in claim.than]


def _named(name: str, found: list[Row]) -> list[Row]:
    """The rows of a method, or the one of "name[variant]"; only the latter may be one that is not printed."""
    return [row for row in found if row.label == name or (row.method == name and not math.isnan(row.error))]


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


def evaluate(paper: Paper, records: Records, profile: Profile, hits: Mapping[str, Hits] = NO_HITS) -> list[Outcome]:
    """The outcome of every claim, once per reading of the methods that it compares, in the order of claims.yaml, but that what
    follows from a stronger claim stands below that. hits: of the records that have predictions, for the paired tests.

    In the quick profile a claim's columns are replaced by their stand-ins: a demonstration, not evidence on the paper.
    """
    lines, claims = printed_lines(paper), load_claims(paper)
    standing = standing_columns(paper, profile)
    wanted = {name for claim in claims for name in claim.columns}
    pool = {c.name: arms(paper, records, profile, c) for name in sorted(wanted & set(standing)) for c in standing[name]}
    trials = [_trial(claim, reading, lines, standing, pool) for claim in claims
              for reading in _readings(claim, pool, lines, standing)]
    found = []
    for reading in dict.fromkeys(trial.reading for trial in trials):
        of_reading = [trial for trial in trials if trial.reading == reading]
        stronger = follows_from(of_reading)
        for is_ours in (False, True):
            family = [trial for trial in of_reading if trial.claim.ours == is_ours]
            found += [_outcome(trial, stronger.get(trial.claim.id, ""), printed_verdict(trial.claim, lines), ps, profile, hits)
                      for trial, ps in zip(family, _corrected(family, stronger, hits), strict=True)]
    place = {claim.id: i for i, claim in enumerate(claims)}
    return sorted(found, key=lambda o: (place[o.follows or o.claim.id], bool(o.follows), place[o.claim.id]))


def follows_from(trials: Sequence[Trial]) -> dict[str, str]:
    """Id of a claim -> id of the stronger one that it follows from, among the trials of one reading.

    The stronger one has all its comparisons (and is the earlier one where it has no other), follows from none itself, and is
    not ours unless the other is too. What is compared is known before any run, so no result decides what counts.
    """
    made = [trial.comparisons for trial in trials]

    def is_stronger(i: int, j: int) -> bool:
        more = made[j] < made[i] or (made[j] == made[i] and (trials[i].claim.ours, i) < (trials[j].claim.ours, j))
        return bool(made[j]) and more and trials[i].claim.ours <= trials[j].claim.ours

    above = [[i for i in range(len(trials)) if is_stronger(i, j)] for j in range(len(trials))]
    return {trial.claim.id: next(trials[i].claim.id for i in of if not above[i])
            for trial, of in zip(trials, above, strict=True) if of}


def _corrected(family: Sequence[Trial], stronger: Mapping[str, str], hits: Mapping[str, Hits]
               ) -> list[tuple[float, float, float]]:
    """p of each claim of a family, of its opposite, and of the claim in paired tests: Holm-corrected over those that are tests.

    No test, and so without a share of the correction, is what has nothing to compare, what follows from a stronger claim, and a
    claim in whose columns nothing at all has been trained. Only whether there is any run is looked at, of whatever method: to
    choose by what the runs say would undo the correction.
    """
    raw = [(p_claim(t.duels), p_opposite(t.duels), p_claim(t.duels, partial(p_less_paired, hits=hits))) for t in family]
    tested = [i for i, t in enumerate(family) if t.duels and t.has_runs and t.claim.id not in stronger]
    corrected = zip(*(holm(raw[i][k] for i in tested) for k in range(3)), strict=True)
    return [raw[i] if i not in tested else next(corrected) for i in range(len(family))]


def _readings(claim: Claim, pool: Mapping[str, list[Arm]], lines: Lines,
              standing: Mapping[str, tuple[Column, ...]]) -> list[str]:
    """The readings of the row that the claim is about, "written" first; "written" where nothing of it is trained."""
    found = {reading for name in claim.columns for column in standing.get(name, ())
             for reading in _own_readings(claim, lines, name, pool, column.name)}
    return sorted(found, key=lambda reading: reading != "written") or ["written"]


def _own_readings(claim: Claim, lines: Lines, column: str, pool: Mapping[str, list[Arm]], at: str) -> set[str]:
    """The readings of the claim's own rows of a published column, in our column `at`."""
    compared = chain(*contenders(claim, rows(claim, lines, column)))
    own = {(row.method, row.variant) for row in compared if claim.method in (row.method, row.label)}
    return {arm.method.reading for arm in pool[at] if (arm.method.name, arm.method.variant) in own}


def _trial(claim: Claim, reading: str, lines: Lines, standing: Mapping[str, tuple[Column, ...]],
           pool: Mapping[str, list[Arm]]) -> Trial:
    """The duels of a claim on the columns of a profile, and what could not be compared."""
    duels, one_sided, without, absent = [], [], [], {}
    for name in claim.columns:
        sides = contenders(claim, rows(claim, lines, name))
        if not all(sides):
            one_sided.append(name)
            continue
        for column in standing.get(name, ()):
            there = _own_readings(claim, lines, name, pool, column.name)
            same = reading if reading in there else min(there, default=reading)  # like with like, where it has one reading only
            if any(mean_error(r, classes) is None for classes in claim.parts for arm in pool[column.name] for r in arm.done):
                without.append(name)
                continue
            for classes in claim.parts:
                found = [[(row, _side(row, same, pool[column.name], classes)) for row in side] for side in sides]
                for label in (row.label for side in found for row, runs in side if runs is None):
                    absent.setdefault(label, {})[column.name] = None
                duels.append(Duel(column.name, classes, *(tuple(runs for _, runs in side if runs is not None) for side in found)))
    columns = [column.name for name in claim.columns for column in standing.get(name, ())]
    has_runs = any(arm.done or arm.diverged for name in columns for arm in pool[name])
    return Trial(claim, reading, tuple(duels), *(tuple(dict.fromkeys(names)) for names in (one_sided, without)),
                 {label: tuple(names) for label, names in absent.items()}, has_runs)


def _side(row: Row, reading: str, found: list[Arm], classes: str) -> Side | None:
    """A row's runs in this reading, or in the only one that its method has; None where the paper trains no such method."""
    matching = [arm for arm in found if (arm.method.name, arm.method.variant) == (row.method, row.variant)]
    if not matching:
        return None
    arm = next((a for a in matching if a.method.reading == reading), matching[0])
    seeds = tuple(record["spec"]["seed"] for record in arm.done)
    errors = tuple(mean_error(record, classes) for record in arm.done)
    return Side(row.label, errors, len(arm.diverged), seeds, arm.done, arm.starts, arm.apart, classes)


def mean_error(record: Record, classes: str) -> float | None:
    """Last-epoch error in percent over the test set, the majority or minority classes, or a group; None without such classes."""
    if classes not in ("majority", "minority"):
        return measure(record, "top1_error", classes)
    accuracy = group_accuracy(record, classes)
    return None if accuracy is None else 100 - accuracy


def _outcome(trial: Trial, follows: str, printed: str, ps: tuple[float, float, float], profile: Profile,
             hits: Mapping[str, Hits]) -> Outcome:
    """ps: of the claim, of its opposite, and of the claim in paired tests."""
    claim, duels = trial.claim, trial.duels
    ready = [d for d in duels if d.champions and d.rivals and all(s.errors or s.diverged for s in d.sides)]
    complete = {d.column for d in duels} - {d.column for d in duels if d not in ready}
    left_out = {*trial.one_sided, *trial.without}
    of = len(claim.columns) - len(left_out) if profile == "paper" else len({d.column for d in duels})
    everywhere = len(left_out) == len(claim.columns)
    verdict = "not decidable" if everywhere else decide(ready, *ps[:2], len(complete), of)
    shown = (None, None, None) if verdict.startswith("not ") else ps
    gap, where = min((_gap(d) for d in ready if all(s.errors for s in d.sides)), default=(None, ""))
    verdict = f"follows from {follows}" if follows else verdict
    notes = _notes(trial) + (() if shown[0] is None else _paired_note(duels, hits))
    return Outcome(claim, trial.reading, follows, printed, verdict, *shown, gap, where, len(complete), of, notes)


def _paired_note(duels: Sequence[Duel], hits: Mapping[str, Hits]) -> tuple[str, ...]:
    some, every = over_images(duels, hits)
    if not some:
        return ()
    return ("paired over images and seeds" if some == every else
            f"paired over images and seeds in {some} of {every} comparisons, over seeds in the others",)


def _notes(trial: Trial) -> tuple[str, ...]:
    claim, notes = trial.claim, []
    if trial.one_sided:
        notes.append(f"only one side of {claim.parameter} = {claim.above:g} is tried in {', '.join(trial.one_sided)}")
    if trial.without:
        notes.append(f"no {class_words(*claim.parts).removeprefix(', ')} in {', '.join(trial.without)}")
    if trial.absent:
        names = [label + _only_in(columns, trial) for label, columns in trial.absent.items()]
        notes.append(f"left out, as there is no such method here: {', '.join(names)}")
    notes += _unlike(trial)
    runs = {(d.column, s.label): s for d in trial.duels for s in d.sides if s.diverged}
    lost = dict.fromkeys(label for _, label in runs)
    counts = [f"{sum(s.diverged for (_, other), s in runs.items() if other == label)} of {label}" for label in lost]
    return (*notes, f"diverged runs: {', '.join(counts)}") if lost else tuple(notes)


def _unlike(trial: Trial) -> list[str]:
    """What makes the runs that the claim compares with each other in a column unlike, as `flags` says it of a cell's."""
    mixed: dict[str, dict[str, None]] = {}
    for duel in trial.duels:
        for flag in flags(record for side in duel.sides for record in (*side.done, *side.starts)):
            mixed.setdefault(flag, {})[duel.column] = None
    sides = [side for duel in trial.duels for side in duel.sides if side.done]
    used = {record["key"]: record for side in sides for record in side.done}
    apart = dict.fromkeys(f"{side.label} {side.apart}" for side in sides if side.apart)
    return [*(flag + _only_in(columns, trial) for flag, columns in mixed.items()), *drawn_lists(list(used.values())), *apart]


def _only_in(columns: Collection[str], trial: Trial) -> str:
    """` (cifar10-lt-100)` after what is so in these columns alone."""
    return "" if len(columns) == len({duel.column for duel in trial.duels}) else f" ({', '.join(columns)})"


def _gap(duel: Duel) -> tuple[float, str]:
    """Points by which the best champion is ahead of the best rival, and where, against whom."""
    ours = min(statistics.fmean(s.errors) for s in duel.champions)
    theirs, label = min((statistics.fmean(s.errors), s.label) for s in duel.rivals)
    return theirs - ours, f"{duel.column}{class_words(duel.classes)}, against {label}"


def class_words(*parts: str) -> str:
    """`, majority and minority classes`, `, class-3`, `, tail1-3 classes`; empty for the whole test set."""
    names = [f"{part} classes" if part in WITH_NOUN else part for part in parts]
    return f", {' and '.join(names)}" if set(parts) - set(WHOLE) else ""
