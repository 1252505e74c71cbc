"""`try`: judge a loss of one's own. Its file is checked, trained beside the usual references, and set on boards; and a card of
another machine is re-run and confirmed.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.cli.console import pack_observer
from common.cli.devices import choose_devices
from common.data.sources import prepare
from common.errors import UserError
from common.guests.board import Evidence, accuracy, in_short, make_board, papers_rows, print_board
from common.guests.card import SCHEMA, Board, Card, Row, read_card, source_of, write_card
from common.guests.source import Guest, load_guest
from common.guests.trial import (
    SEEDS,
    Entry,
    Ground,
    Setting,
    check_apart,
    counts_of,
    entries,
    find_column,
    known_files,
    settings,
    usable,
)
from common.methods.digest import ENGINE
from common.paper import Paper
from common.plan import has_data, with_data
from common.report.intervals import prediction_interval
from common.report.text import number
from common.spec import Column, ProfileName
from common.store import write_atomically
from common.train.packing import Limit

LimitOf = Callable[[Mapping[str, Any]], Limit]
BESIDE = ("Accuracy: last epoch, mean ± sd over seeds. Ahead by: points on the same images and seeds, with 95 % interval. Won, "
          "lost: images on which only it, only the other is right, over all seeds. It is ahead or behind where that is beyond "
          "chance (two-sided, Holm-corrected over the board, 0.05).")
SIGNS = {"ok": "[green]ok  [/]", "note": "[yellow]note[/]", "bad": "[red]bad [/]"}


class Case(NamedTuple):
    """A trial: whose rows, in which folder, on what, and its entries under every setting. alone: whether references that others
    have trained are trained again."""

    guest: Guest
    home: Path
    profile: ProfileName
    column: Column
    seeds: int
    asked: list[tuple[Setting, list[Entry]]]
    alone: bool

    @property
    def entries(self) -> list[Entry]:
        return [entry for _, rows in self.asked for entry in rows]

    def records(self, ground: Ground) -> dict[str, tuple[Path, Path]]:
        """Identity -> root and file of the records that count for it."""
        return usable(self.entries, known_files(ground, self.home), self.home, self.alone)


def try_loss(papers: Sequence[Paper], options: argparse.Namespace, ground: Ground, limit_of: LimitOf, console: Console) -> int:
    """The command. Returns 0, 3 when the minutes ran out first, or 1 where a card could not be confirmed."""
    if options.confirm:
        return confirm(papers, options, ground, limit_of, console)
    if options.loss is None:
        raise UserError("Name the file with your loss, as in `try my_loss.py`; docs/adding.md shows one of ten lines.")
    profile, column = find_column(papers, options.column)
    guest = load_guest(options.loss)
    home = ground.guests / guest.name
    case = make_case(papers, guest, home, profile, column, options.seeds or SEEDS,
                     settings(papers, profile, column, options.protocol))
    names = ", ".join(" = ".join(setting.names) for setting, _ in case.asked)
    console.print(f"{guest.path.name} is executed as your code. Column {column.name}, {len(case.asked)} settings ({names}), "
                  f"{case.seeds} seeds.", markup=False)
    remarks = check(case, console)
    done = train_case(case, options, ground, limit_of, console)
    boards = show(case, papers, ground, console)
    if any(row.kind == "guest" and row.runs for board in boards for row in board.rows):
        card = make_card(case, boards, remarks, ground)
        path = home / f"card-{column.name}.json"
        digest = write_card(card, path)
        console.print(f"\nCard {digest[:16]}: {path}. Another machine confirms it by `try --confirm {path.name}`; `make report` "
                      "shows it on the page, under Guests.", markup=False)
    if not done:
        console.print("The minutes are over; the same command goes on from here.")
    return 0 if done else 3


def make_case(papers: Sequence[Paper], guest: Guest, home: Path, profile: ProfileName, column: Column, seeds: int,
              asked: Sequence[Setting], alone: bool = False) -> Case:
    """The trial of a guest under some settings."""
    by_setting = [(setting, entries(guest, home, profile, column, setting.protocol, seeds)) for setting in asked]
    case = Case(guest, home, profile, column, seeds, by_setting, alone)
    check_apart(guest, papers, profile, column, case.entries)
    return case


def check(case: Case, console: Console) -> tuple[str, ...]:
    """Say of every row what its checks found, once where settings agree; returns the notes. A bad one is a UserError."""
    from common.guests.judge import judge

    counts, findings, notes = counts_of(case.column), {}, []
    for setting, rows in case.asked:
        for method in (entry.method for entry in rows if entry.is_guest):
            for finding in judge(method, case.guest.path, counts, setting.protocol):
                findings.setdefault((method.label, finding), None)
    for label in dict.fromkeys(label for label, _ in findings):
        console.print(f"[bold]{escape(label)}[/]")
        for finding in (finding for other, finding in findings if other == label):
            console.print(f"{SIGNS[finding.sign]} {escape(finding.text)}")
            notes += [f"{label}: {finding.text}"] if finding.sign == "note" else []
    if bad := [(label, finding) for label, finding in findings if finding.sign == "bad"]:
        label, finding = bad[0]
        names_file = str(case.guest.path) in finding.text  # an exception out of the file, with its line
        raise UserError(finding.text if names_file else
                        f"{case.guest.path}: row {label} is not trained: {finding.text.rstrip('.')}.")
    return tuple(notes)


def train_case(case: Case, options: argparse.Namespace, ground: Ground, limit_of: LimitOf, console: Console) -> bool:
    """Train every run of the trial that nobody has a record of; False when the minutes ran out first."""
    from common.train.device import place_of
    from common.train.state import Workspace
    from common.train.work import LocalDevice, train

    known = case.records(ground)
    wanted = [item for entry in case.entries for item in entry.runs if item.identity not in known]
    if not wanted:
        console.print(f"All {sum(len(entry.runs) for entry in case.entries)} runs have their records: nothing to train.")
        return True
    if case.column.dataset == "digits" and not has_data("digits", ground.data):
        prepare("digits", ground.data, None)
    with_data(wanted, ground.data, console)
    device = choose_devices(options)[0]
    console.print(f"Training {len(wanted)} runs on {device.name} in {device.precision}; {len(known)} are here already.")
    deadline = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    work = Workspace(ground.work / "guests" / case.home.name, options.save_every, deadline)
    engine = LocalDevice(device, ground.data)  # in this process: no other one knows the functions of the file
    return train(wanted, root=case.home, work=work, engine=engine, limit=limit_of(place_of(device)), observer=pack_observer())


def show(case: Case, papers: Sequence[Paper], ground: Ground, console: Console) -> list[Board]:
    """The boards, printed."""
    evidence = Evidence(case.records(ground).values())
    others = papers_rows(papers, case.profile, case.column, ground.papers, evidence)
    boards = [make_board(setting, rows, others, evidence) for setting, rows in case.asked]
    for board in boards:
        print_board(console, board)
    console.print(f"\n{BESIDE}")
    for sentence in in_short(boards):
        console.print(sentence, markup=False)
    return boards


def make_card(case: Case, boards: Sequence[Board], remarks: tuple[str, ...], ground: Ground) -> Card:
    evidence = Evidence(case.records(ground).values())
    made = [record["made"] for entry in case.entries if entry.is_guest for record in evidence.of(entry.runs)]

    def several(field: str) -> str:
        return ", ".join(sorted({str(one.get(field, "not recorded")) for one in made}))

    return Card(SCHEMA, case.guest.name, case.profile, case.column, case.seeds, ENGINE, case.entries[0].runs[0].spec.data,
                several("commit"), several("torch"), source_of(case.guest.path, case.guest.text), remarks, tuple(boards))


# ---------------------------------------------------------------- a card of another machine


def confirm(papers: Sequence[Paper], options: argparse.Namespace, ground: Ground, limit_of: LimitOf, console: Console) -> int:
    """Train the guest's rows and the references of a card here, whatever others have, and compare. Nothing of the card is
    executed before --trust."""
    card, digest = read_card(options.confirm)
    home = ground.guests / f"{card.name}-confirms-{digest[:8]}"
    path = home / card.source.name
    write_atomically(path, card.source.text.encode())
    if not options.trust:
        raise UserError(f"{options.confirm} carries code, which would run with all your rights: read {path}, then repeat the "
                        "command with --trust.")
    if card.engine != ENGINE:
        raise UserError(f"{options.confirm} was made by engine {card.engine}, and this is engine {ENGINE}: check out its commit "
                        f"({card.commit}) to confirm it.")
    case = make_case(papers, load_guest(path), home, card.profile, card.column, card.seeds,
                     [Setting(board.names, board.protocol) for board in card.boards], alone=True)
    check_same_runs(card, case, options.confirm)
    check(case, console)
    done = train_case(case, options, ground, limit_of, console)
    boards = show(case, papers, ground, console)
    if not done:
        console.print("The minutes are over; the same command goes on from here.")
        return 3
    return report_confirmation(card, boards, console)


def check_same_runs(card: Card, case: Case, where: Path) -> None:
    """The code here must plan the very runs of the card, by their identities."""
    theirs = {run.identity for board in card.boards for row in board.rows if row.kind != "paper" for run in row.runs}
    mine = {item.identity for entry in case.entries for item in entry.runs}
    if strange := sorted(theirs - mine):
        raise UserError(f"{where} has runs that this code would compute otherwise ({len(strange)} of {len(theirs)}, the first "
                        f"{strange[0]}): check out its commit ({card.commit}) to confirm it.")


def report_confirmation(card: Card, boards: Sequence[Board], console: Console) -> int:
    """A line for every row of the guest and every reference: theirs, ours, and whether ours is what theirs foretold."""
    table, results = Table("setting", "method", "the card", "here", "result", box=None, pad_edge=False, header_style="bold"), []
    for old, new in zip(card.boards, boards, strict=True):
        here = {(row.kind, row.label): row for row in new.rows}
        for row in (row for row in old.rows if row.kind != "paper"):
            other = here[row.kind, row.label]
            results.append(same := agreement(row, other))
            table.add_row(escape(old.names[0]), escape(row.label), accuracy(row), accuracy(other), same)
    console.print(table)
    console.print(RESULTS)
    off = sum(result not in AGREEING for result in results)
    console.print(f"{len(results) - off} of {len(results)} rows are confirmed." if off else "The card is confirmed.")
    return 1 if off else 0


IDENTICAL, WITHIN = "identical", "within its spread"
AGREEING = (IDENTICAL, WITHIN)
RESULTS = ("identical: the same answer to every test image in every run; within its spread: the mean here is where that of as "
           "many more runs like the card's would fall (95 %).")


def agreement(theirs: Row, ours: Row) -> str:
    """Whether ours are their runs, as RESULTS says it; else why not."""
    answers = {run.seed: run.answers for run in ours.runs}
    if theirs.runs and all(run.answers and answers.get(run.seed) == run.answers for run in theirs.runs):
        return IDENTICAL
    if theirs.mean is None or ours.mean is None:
        return "diverged" if ours.diverged else "nothing to compare"
    values = tuple(run.accuracy for run in theirs.runs if run.accuracy is not None)
    interval = prediction_interval(values, ours.n)
    if interval is None:
        return "undecided: a single seed"
    inside = interval.low <= ours.mean <= interval.high
    return WITHIN if inside else f"outside of {number(interval.low)} to {number(interval.high)}"
