"""The boards of a trial: the guest's rows among the papers', pair by pair on the same images and seeds; and as a table."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.guests.card import Board, Row, RunOf, Versus
from common.guests.trial import Entry, Setting, read_records
from common.paper import Paper
from common.plan import Run
from common.report.boards import entrants
from common.report.intervals import mean_of, spread
from common.report.paired import Hits, compare, hits_of
from common.report.protocols import protocol_words
from common.report.results import results_of
from common.report.significance import holm
from common.report.text import number, signed
from common.spec import Column, ProfileName, Protocol
from common.store import files_by_key, identity_of, load_records

Record = Mapping[str, Any]
Rows = list[tuple[Row, list[Record]]]


class Trained(NamedTuple):
    """What the papers have trained under a protocol: a row and its records."""

    protocol: Protocol
    row: Row
    records: list[Record]


class Evidence:
    """Records by identity, and by key which test images their runs answer right."""

    def __init__(self, places: Iterable[tuple[Path, Path]]):
        self.records: dict[str, Record] = {}
        self.hits: dict[str, Hits] = {}
        self._labels: dict[bytes, np.ndarray] = {}
        for root, records in read_records(places).items():
            self.add(root, records)

    def add(self, root: Path, records: Mapping[str, Record]) -> None:
        """The records of one root. Equal test sets are made one array, which a comparison asks for."""
        self.records |= {identity_of(record): record for record in records.values()}
        for key, hits in hits_of(root, records).items():
            self.hits[key] = hits._replace(labels=self._labels.setdefault(hits.labels.tobytes(), hits.labels))

    def of(self, runs: Iterable[Run]) -> list[Record]:
        return [self.records[item.identity] for item in runs if item.identity in self.records]


def papers_rows(papers: Sequence[Paper], profile: ProfileName, column: Column, root: Path, evidence: Evidence) -> list[Trained]:
    """Everything that the papers have trained on the column."""
    here = [replace(p, columns={**p.columns, profile: (column,)}) for p in papers if column in p.columns[profile]]
    keys = [key for key, file in files_by_key(root).items() if file.parts[-3:-1] == (profile, column.name)]
    records, trained = load_records(root, keys), []
    for entrant in entrants(results_of(here, records, profile)):
        if done := [*entrant.runs.done, *entrant.runs.diverged]:
            names = tuple(dict.fromkeys(paper for paper, _ in entrant.sources))
            trained.append(Trained(entrant.protocol, make_row(entrant.runs.method.label, "paper", names, done), done))
    evidence.add(root, {record["key"]: record for one in trained for record in one.records})
    return trained


def make_row(label: str, kind: str, papers: tuple[str, ...], records: Sequence[Record]) -> Row:
    done = [record for record in records if record["status"] == "done"]
    mean, sd = spread(tuple(record["accuracy"]["last"] for record in done))
    groups = {name: mean_of([record["groups"][name] for record in done]) for name in ("many", "medium", "few")}
    return Row(label, kind, papers, len(records) - len(done), mean, sd, **groups, runs=tuple(map(_run_of, records)))


def _entry_row(entry: Entry, records: Sequence[Record]) -> Row:
    """A reference has one reading here, which its name need not say; nor need a guest's row, unless it has two."""
    if not entry.is_guest:
        return make_row(entry.method.name, "reference", (), records)
    return make_row(entry.method.label.removesuffix("@written"), "guest", (), records)


def _run_of(record: Record) -> RunOf:
    made = record["made"]
    return RunOf(identity_of(record), record["spec"]["seed"], record["accuracy"]["last"], record["predictions"].get("digest", ""),
                 str(made.get("device", "not recorded")), str(made.get("precision", "not recorded")))


def make_board(setting: Setting, entries: Sequence[Entry], others: Sequence[Trained], evidence: Evidence) -> Board:
    """Own rows, references, and what else the papers have under this protocol; ranked by mean accuracy."""
    rows: Rows = []
    for entry in entries:
        records = evidence.of(entry.runs)
        rows.append((_entry_row(entry, records), records))
    taken = {run.identity for row, _ in rows for run in row.runs}
    rows += [(row, records) for protocol, row, records in others
             if protocol == setting.protocol and not taken & {run.identity for run in row.runs}]
    rows.sort(key=lambda pair: -np.inf if pair[0].mean is None else pair[0].mean, reverse=True)
    versus = [one for row, records in rows if row.kind == "guest" for one in _against_all(row, records, rows, evidence.hits)]
    return Board(setting.names, protocol_words(setting.protocol), setting.protocol, tuple(row for row, _ in rows), tuple(versus))


def _against_all(row: Row, records: Sequence[Record], rows: Rows, hits: Mapping[str, Hits]) -> list[Versus]:
    """The guest's row against every other row with which it has two seeds in common."""
    done = [r for r in records if r["status"] == "done"]
    tests = [(other, test) for other, theirs in rows if other is not row
             and (test := compare(done, [r for r in theirs if r["status"] == "done"], hits))]
    corrected = holm(test.p_either for _, test in tests)
    return [Versus(row.label, name(other), t.difference, t.low, t.high, p, t.seeds, t.images, t.wins, t.losses)
            for (other, t), p in zip(tests, corrected, strict=True)]


def name(row: Row) -> str:
    """What a row is called: two papers may give their rows one label."""
    return f"{row.label} ({', '.join(row.papers)})" if row.papers else row.label


def print_board(console: Console, board: Board) -> None:
    """A table for every row of the guest: all rows by rank, and by how much it is ahead of each."""
    console.print(f"\n[bold]{escape(' = '.join(board.names))}[/]: {escape(board.words)}")
    for own in (row for row in board.rows if row.kind == "guest"):
        table = Table(escape(own.label), "accuracy", "many/med./few", "ahead by, 95 %", "won/lost", "it is", box=None,
                      pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        against = {one.other: one for one in board.versus if one.guest == own.label}
        for row in board.rows:
            compared = ("", "", "") if row is own else words(against.get(name(row)))
            label = "it" if row is own else escape(name(row))
            table.add_row(label, accuracy(row), groups(row), *compared, style="bold" if row is own else None)
        console.print(table)


def accuracy(row: Row) -> str:
    """`78.61 ± 0.40`, or why there is none; how many diverged."""
    if row.mean is None:
        return "diverged" if row.diverged else "no run yet"
    lost = f", {row.diverged} diverged" if row.diverged else ""
    return number(row.mean) + ("" if row.sd is None else f" ± {number(row.sd)}") + lost


def groups(row: Row) -> str:
    """`97.2/81.0/60.3`; `-` where the column has no such classes."""
    return "/".join("-" if value is None else f"{value:.1f}" for value in (row.many, row.medium, row.few)) if row.n else ""


def words(one: Versus | None) -> tuple[str, str, str]:
    """Difference with interval, images won and lost, verdict."""
    if one is None:
        return "not compared", "", ""
    return f"{one.difference:+.1f} [{one.low:+.1f}, {one.high:+.1f}]", f"{one.wins}/{one.losses}", one.verdict


def in_short(boards: Sequence[Board]) -> list[str]:
    """A sentence for each row of the guest against each reference, over all settings."""
    references = {row.label for board in boards for row in board.rows if row.kind == "reference"}
    by_pair: dict[tuple[str, str], list[Versus]] = {}
    for one in (one for board in boards for one in board.versus if one.other in references):
        by_pair.setdefault((one.guest, one.other), []).append(one)
    return [f"{guest} against {other}: {_tally(several)}; {_range([one.difference for one in several])}."
            for (guest, other), several in by_pair.items()]


def _tally(several: Sequence[Versus]) -> str:
    counts = Counter(one.verdict for one in several)
    where = "1 setting" if len(several) == 1 else f"{len(several)} settings"
    return f"{', '.join(f'{word} in {counts[word]}' for word in ('ahead', 'behind', 'undecided') if counts[word])} of {where}"


def _range(values: Sequence[float]) -> str:
    return f"{signed(min(values))} points" if len(values) == 1 else f"{signed(min(values))} to {signed(max(values))} points"
