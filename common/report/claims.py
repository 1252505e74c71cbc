"""A paper's claims as tests on records: `claims.yaml`, strictly loaded, and one `Outcome` per claim and reading.

Every claim comes down to duels: in a column, the best of some champions against the best of some rivals. The test is
Welch's, one-sided. It is not paired over seeds: runs of one seed share initialisation and batches, but hardly anything
of that is left after training, and pairing would halve the few degrees of freedom and need equal seeds on both sides.
The paired test over the seeds that both sides have is run all the same, and its p shown beside; no verdict rests on it.
"in every column" is an intersection-union test (the largest p), and Holm corrects over the claims of the paper.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

from common.errors import UserError
from common.method import Paper
from common.report.compare import Arm, Record, Records, arms, measure, published, spread, standing_columns, why_not_measured
from common.report.groups import TENTHS, WHOLE, is_group, majority
from common.spec import Column, Profile, load_yaml

LEVEL = 0.05
ENOUGH = 3  # fewer runs than this on a side: an undecided claim says that n is too small
RULE = (
    f"Verdict of a claim: one-sided Welch t-tests over seeds on last-epoch errors; holds where the claim is significant in every "
    f"column, fails where its opposite is significant in some column (both at {LEVEL}, Holm-corrected over the paper's claims), "
    f"else undecided; n is called too small below {ENOUGH} runs a side. The p of t-tests paired over seeds stands beside."
)
Classes = Literal["all", "majority", "minority"]


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper, and the test that it becomes.

    kind "better": `method` has a lower error than each of `than`. "best": than every other row of the tables (where
    `method` has several rows, its lowest printed one). "setting": the best row of `method` has `parameter` > `above`.
    Each is meant in every one of `columns`, and for the mean error over each of `classes`, or over the `group` of classes:
    "head", "medium", "tail" (over 100, 20 to 100, under 20 training images), "class-<k>", or "head1" to "head3", "mid1" to
    "mid4" and "tail1" to "tail3", the ten groups of equally many classes in the order of their training images.
    A row of one reading is compared with the other rows of the same reading; one that has a single reading takes part in it.
    `method` and `than` name rows, or "name[variant]" for a variant that no table prints (`kind` "better" alone).
    means: how the quote was read, where that takes a word.
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

    @property
    def parts(self) -> tuple[str, ...]:
        """The groups of classes that it is about."""
        return (self.group,) if self.group else self.classes


@dataclass(frozen=True)
class Outcome:
    """What became of a claim in one reading.

    printed: whether the paper's own numbers bear it out. p, p_against: Holm-corrected, of the claim and of its opposite.
    p_paired: p with paired tests in place of Welch's, Holm-corrected likewise; the verdict does not look at it.
    gap: by how many points the champion is ahead in the column where it is least so (`where`); None without runs there.
    done, of: columns with runs for everything that the claim compares, and columns that it names.
    notes: what was left out of the comparison, and why.
    """

    claim: Claim
    reading: str
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


class Side(NamedTuple):
    """One contender: its errors in percent, one per finished run, how many runs diverged, in which precisions they ran, and
    the seeds of the finished ones."""

    label: str
    errors: tuple[float, ...]
    diverged: int = 0
    precisions: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


Lines = Mapping[str, Sequence[Any]]  # column -> lines of published.csv
Test = Callable[[Side, Side], float]  # p of the first having the smaller mean error


class Duel(NamedTuple):
    """Some champion beats all rivals, in one column and group of classes; the opposite is that some rival beats all champions."""

    column: str
    classes: str
    champions: tuple[Side, ...]
    rivals: tuple[Side, ...]

    @property
    def sides(self) -> tuple[Side, ...]:
        return self.champions + self.rivals


class Trial(NamedTuple):
    """A claim in one reading, made ready for testing.

    one_sided: columns whose table tries no setting to compare with. without: columns that have no such group of classes.
    absent: rows that are not trained here.
    """

    claim: Claim
    reading: str
    duels: tuple[Duel, ...]
    one_sided: tuple[str, ...]
    without: tuple[str, ...]
    absent: tuple[str, ...]


def load_claims(paper: Paper) -> tuple[Claim, ...]:
    """The claims of the paper; a method, column or table that published.csv does not have is a UserError, as is a repeated id."""
    path = paper.folder / "claims.yaml"
    claims, lines = load_yaml(path, tuple[Claim, ...]), printed_lines(paper)
    for i, claim in enumerate(claims):
        where = f"{path}: claim {claim.id!r}"
        if claim.id in [other.id for other in claims[:i]]:
            raise UserError(f"{where} is there twice.")
        if (claim.kind == "better") != bool(claim.than):
            raise UserError(f"{where}: `than` belongs to kind better, and to it alone.")
        if {claim.parameter is not None, claim.above is not None} != {claim.kind == "setting"}:
            raise UserError(f"{where}: `parameter` and `above` belong to kind setting, and to it alone.")
        if not claim.columns or not claim.classes:
            raise UserError(f"{where}: at least one column and one group of classes is needed.")
        if not is_group(claim.group) or (claim.group and claim.classes != ("all",)):
            known = f"head, medium, tail, class-<k>, {', '.join(TENTHS)}"
            raise UserError(f"{where}: `group` is one of {known}, and stands without `classes`.")
        for column in claim.columns:
            known = {row.method for row in rows(claim, lines, column)}
            if missing := [name for name in (claim.method, *claim.than) if name.partition("[")[0] not in known]:
                raise UserError(f"{where}: table {' or '.join(claim.tables)} has no {missing[0]!r} in column {column!r}.")
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
    """Whether the printed numbers bear the claim out: `holds`, `fails (2 of 8 columns)`, or `not printed` for its classes."""
    if claim.classes != ("all",) or not all(_of_group(claim, lines, column, claim.group) for column in claim.columns):
        return "not printed"
    failing = 0
    for column in claim.columns:
        ours, theirs = contenders(claim, rows(claim, lines, column))
        if any(math.isnan(row.error) for row in (*ours, *theirs)):
            return "not printed"
        failing += min((r.error for r in ours), default=math.inf) >= min((r.error for r in theirs), default=math.inf)
    return f"fails ({failing} of {len(claim.columns)} columns)" if failing else "holds"


def evaluate(paper: Paper, records: Records, profile: Profile) -> list[Outcome]:
    """The outcome of every claim, once per reading of the methods that it compares, in the order of claims.yaml.

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
        family = [trial for trial in trials if trial.reading == reading]
        # A claim whose table or profile offers nothing to compare is no test, so it takes no share of the correction.
        tested = [trial.duels for trial in family if trial.duels]
        paired = holm(p_claim(duels, p_less_paired) for duels in tested)
        ps = zip(holm(map(p_claim, tested)), holm(map(p_opposite, tested)), paired, strict=True)
        found += [_outcome(trial, printed_verdict(trial.claim, lines), next(ps) if trial.duels else (1.0, 1.0, 1.0), profile)
                  for trial in family]
    return sorted(found, key=lambda outcome: claims.index(outcome.claim))


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
    duels, one_sided, without, absent = [], [], [], []
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
                absent += [row.label for side in found for row, runs in side if runs is None]
                duels.append(Duel(column.name, classes, *(tuple(runs for _, runs in side if runs is not None) for side in found)))
    return Trial(claim, reading, tuple(duels), *(tuple(dict.fromkeys(names)) for names in (one_sided, without, absent)))


def _side(row: Row, reading: str, found: list[Arm], classes: str) -> Side | None:
    """A row's runs in this reading, or in the only one that its method has; None where the paper trains no such method."""
    matching = [arm for arm in found if (arm.method.name, arm.method.variant) == (row.method, row.variant)]
    if not matching:
        return None
    arm = next((a for a in matching if a.method.reading == reading), matching[0])
    precisions = tuple(sorted({record["made"].get("precision", "not recorded") for record in arm.done}))
    seeds = tuple(record["spec"]["seed"] for record in arm.done)
    return Side(row.label, tuple(mean_error(record, classes) for record in arm.done), len(arm.diverged), precisions, seeds)


def mean_error(record: Record, classes: str) -> float | None:
    """Last-epoch error in percent over the test set, the majority or minority classes, or a group; None without such classes."""
    if classes not in ("majority", "minority"):
        return measure(record, "top1_error", classes)
    large = majority(record["counts"])
    chosen = [a for a, is_large in zip(record["per_class_accuracy"], large, strict=True) if is_large == (classes == "majority")]
    return 100 - statistics.fmean(chosen) if chosen else None


def p_less(low: Side, high: Side) -> float:
    """p of Welch's one-sided test that `low` has the smaller mean error; 1 where there is no spread to test against."""
    from scipy.stats import ttest_ind_from_stats

    (mean_low, sd_low), (mean_high, sd_high) = spread(low.errors), spread(high.errors)
    if sd_low is None or sd_high is None or max(sd_low, sd_high) < 1e-9:
        return 1.0
    test = ttest_ind_from_stats(mean_low, sd_low, len(low.errors), mean_high, sd_high, len(high.errors),
                                equal_var=False, alternative="less")
    return float(test.pvalue)


def p_less_paired(low: Side, high: Side) -> float:
    """p of the one-sided t-test on the differences in the seeds that both sides have; 1 where these have no spread."""
    from scipy.special import stdtr  # scipy.stats.ttest_rel takes a hundred times as long for the same number

    theirs = dict(zip(high.seeds, high.errors, strict=True))
    differences = tuple(error - theirs[seed] for seed, error in zip(low.seeds, low.errors, strict=True) if seed in theirs)
    (mean, sd), n = spread(differences), len(differences)
    return 1.0 if sd is None or sd < 1e-9 else float(stdtr(n - 1, mean / sd * math.sqrt(n)))


def _p_some_beats_all(some: tuple[Side, ...], others: tuple[Side, ...], test: Test = p_less) -> float:
    """Bonferroni over the candidates, intersection-union over those they must beat."""
    return min(1.0, len(some) * min((max((test(a, b) for b in others), default=1.0) for a in some), default=1.0))


def p_claim(duels: Sequence[Duel], test: Test = p_less) -> float:
    """p of "the champions win every duel": the largest p of all duels."""
    return max((_p_some_beats_all(d.champions, d.rivals, test) for d in duels), default=1.0)


def p_opposite(duels: Sequence[Duel]) -> float:
    """p of "the rivals win some duel": the smallest p, times the number of duels."""
    return min(1.0, len(duels) * min((_p_some_beats_all(d.rivals, d.champions) for d in duels), default=1.0))


def holm(ps: Iterable[float]) -> list[float]:
    """Holm's step-down correction, in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    values = list(ps)
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        adjusted[i] = largest
    return adjusted


def _outcome(trial: Trial, printed: str, ps: tuple[float, float, float], profile: Profile) -> Outcome:
    """ps: Holm-corrected, of the claim, of its opposite, and of the claim in paired tests."""
    claim, duels = trial.claim, trial.duels
    ready = [d for d in duels if d.champions and d.rivals and all(s.errors or s.diverged for s in d.sides)]
    complete = {d.column for d in duels} - {d.column for d in duels if d not in ready}
    left_out = {*trial.one_sided, *trial.without}
    of = len(claim.columns) - len(left_out) if profile == "paper" else len({d.column for d in duels})
    everywhere = len(left_out) == len(claim.columns)
    verdict = "not decidable" if everywhere else decide(ready, *ps[:2], len(complete), of)
    shown = (None, None, None) if verdict.startswith("not ") else ps
    gap, where = min((_gap(d) for d in ready if all(s.errors for s in d.sides)), default=(None, ""))
    return Outcome(claim, trial.reading, printed, verdict, *shown, gap, where, len(complete), of, _notes(trial))


def _notes(trial: Trial) -> tuple[str, ...]:
    claim, notes = trial.claim, []
    if trial.one_sided:
        notes.append(f"only one side of {claim.parameter} = {claim.above:g} is tried in {', '.join(trial.one_sided)}")
    if trial.without:
        notes.append(f"no {class_words(*claim.parts).removeprefix(', ')} in {', '.join(trial.without)}")
    if trial.absent:
        notes.append(f"left out, as there is no such method here: {', '.join(trial.absent)}")
    if len(precisions := sorted({p for d in trial.duels for s in d.sides for p in s.precisions})) > 1:
        notes.append(f"compares runs in {' and '.join(precisions)}")
    runs = {(d.column, s.label): s for d in trial.duels for s in d.sides if s.diverged}
    lost = dict.fromkeys(label for _, label in runs)
    counts = [f"{sum(s.diverged for (_, other), s in runs.items() if other == label)} of {label}" for label in lost]
    return (*notes, f"diverged runs: {', '.join(counts)}") if lost else tuple(notes)


def decide(duels: Sequence[Duel], p: float, against: float, done: int, of: int) -> str:
    """The verdict from Holm-corrected p values; nothing is decided before every column that the claim names has its runs."""
    if of == 0:
        return "not run (no stand-in for its columns)"
    if done < of:
        return f"not run ({done} of {of} columns)"
    if p <= LEVEL:
        return "holds"
    if against <= LEVEL:
        return "fails"
    fewest = min(len(side.errors) for duel in duels for side in duel.sides)
    return "undecided (n too small)" if fewest < ENOUGH else "undecided"


def _gap(duel: Duel) -> tuple[float, str]:
    """Points by which the best champion is ahead of the best rival, and where, against whom."""
    ours = min(statistics.fmean(s.errors) for s in duel.champions)
    theirs, label = min((statistics.fmean(s.errors), s.label) for s in duel.rivals)
    return theirs - ours, f"{duel.column}{class_words(duel.classes)}, against {label}"


def class_words(*parts: str) -> str:
    """`, majority and minority classes`, `, class-3`, `, tail classes`; empty for the whole test set."""
    names = [f"{part} classes" if part in ("majority", "minority", "head", "medium", "tail") else part for part in parts]
    return f", {' and '.join(names)}" if set(parts) - set(WHOLE) else ""
