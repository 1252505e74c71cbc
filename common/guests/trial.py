"""Which runs judge a loss: its rows beside cross-entropy, LDAM-DRW and logit adjustment, under the settings of the papers; and
where their records are. No torch.

A guest has a folder of its own, guests/<name>, under which its records are looked up: nothing in it is a paper's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.data.imbalance import class_counts
from common.data.sets import SETS
from common.errors import UserError, meant
from common.guests.source import Guest
from common.methods.method import Method, check_names, run_spec
from common.methods.one_stage import ce_row, la_row, ldam_drw_row, ldam_row
from common.paper import Paper
from common.plan import Run
from common.report.boards import whole_stage
from common.spec import Column, ProfileName, Protocol
from common.store import load_records, record_files

RUNS = "runs"  # in a guest's folder: what a paper's folder is among the papers'
SEEDS = 3


@dataclass(frozen=True)
class Ground:
    """Where everything is. papers: the folder of all papers; guests: of all guests; work: of unfinished work."""

    papers: Path
    guests: Path
    data: Path
    work: Path


class Setting(NamedTuple):
    """A protocol under which papers train a column. names: "<paper>@<reading>" of each."""

    names: tuple[str, ...]
    protocol: Protocol


class Entry(NamedTuple):
    """A row of a board before it has numbers: the planned runs of each seed."""

    method: Method
    is_guest: bool
    runs: tuple[Run, ...]


def find_column(papers: Sequence[Paper], name: str | None) -> tuple[ProfileName, Column]:
    """The column of that name, of whichever profile has it; without a name that of the quick profile that most papers have."""
    known: dict[str, tuple[ProfileName, Column]] = {}
    counted: dict[str, int] = {}
    for profile in ("paper", "quick"):
        for column in (c for paper in papers for c in paper.columns[profile] if c.name not in paper.large):
            known.setdefault(column.name, (profile, column))
            counted[column.name] = counted.get(column.name, 0) + (profile == "quick")
    if name is None:
        return known[max(counted, key=counted.get)]
    if name not in known:
        if name in {column for paper in papers for column in paper.large}:
            raise UserError(f"{name} is a column of a large set, whose runs are trained one by one under torchrun; take another.")
        raise UserError(f"There is no column {name!r}{meant(name, known)}; there are: {', '.join(known)}.")
    return known[name]


def settings(papers: Sequence[Paper], profile: ProfileName, column: Column, asked: Sequence[str] = ()) -> list[Setting]:
    """Every protocol under which a paper trains cross-entropy on the column. asked: of these papers alone, "<paper>" or
    "<paper>@<reading>"."""
    by_protocol: dict[Protocol, list[str]] = {}
    for paper in papers:
        if column not in paper.columns[profile]:
            continue
        for method in paper.rows(profile, column):
            if (method.name, method.variant, method.task) == ("ce", "", "classes"):
                protocol = method.protocol or paper.settings(profile, column)[method.reading]
                by_protocol.setdefault(protocol, []).append(f"{paper.name}@{method.reading}")
    known = {name for names in by_protocol.values() for full in names for name in (full, full.partition("@")[0])}
    for name in asked:
        if name not in known:
            raise UserError(f"No paper trains {column.name} under {name!r}{meant(name, known)}; there are: "
                            f"{', '.join(sorted(known))}.")
    return [Setting(tuple(names), protocol) for protocol, names in by_protocol.items()
            if not asked or set(asked) & {part for name in names for part in (name, name.partition("@")[0])}]


def references(protocol: Protocol) -> tuple[Method, ...]:
    """What every loss is set beside: cross-entropy, LDAM-DRW (LDAM, where the rate never decays) and logit adjustment."""
    ldam = ldam_drw_row("written", protocol) if protocol.decay_epochs else ldam_row("written")
    return replace(ce_row("written"), keep_features=False), ldam, la_row("written")


def counts_of(column: Column) -> np.ndarray:
    """Training images of each class, int64 [classes] (for sets with unequal classes, nearly)."""
    facts = SETS[column.dataset]
    if column.imbalance == "counts":
        return np.array(column.counts)
    if column.imbalance == "none":
        return np.full(facts.classes, facts.train // facts.classes)
    return class_counts(column.imbalance, column.ratio, facts.train // facts.classes, facts.classes)


def entries(guest: Guest, home: Path, profile: ProfileName, column: Column, protocol: Protocol, seeds: int) -> list[Entry]:
    """The guest's rows and the references under one protocol. home: the guest's folder."""
    folder, rows = home / RUNS / "results" / profile / column.name, []
    own, beside = guest.rows(protocol), references(protocol)
    if taken := {method.name for method in own} & {method.name for method in beside}:
        raise UserError(f"{guest.path}: row {min(taken)!r} is called as the reference beside it; give it another name.")
    for method in (*own, *beside):
        first = Run(run_spec(column, method.protocol or protocol, method, 0), method, folder)
        if whole_stage(first).spec.protocol != protocol:
            raise UserError(f"{guest.path}: row {method.label} trains its network under a protocol of its own, so nothing could "
                            "be set beside it; leave `protocol` out (a second stage may have one, and its first stage then the "
                            "one that methods(protocol) is given).")
        runs = tuple(replace(first, spec=replace(first.spec, seed=seed)) for seed in range(seeds))
        rows.append(Entry(method, any(method is one for one in own), runs))
    return rows


def check_apart(guest: Guest, papers: Sequence[Paper], profile: ProfileName, column: Column, rows: Iterable[Entry]) -> None:
    """Refuse a function of the guest's that has the name of another one: a run is identified by names."""
    theirs = [method for paper in papers if column in paper.columns[profile] for method in paper.rows(profile, column)]
    try:
        check_names([*theirs, *(entry.method for entry in rows)])
    except UserError as error:
        raise UserError(f"{guest.path}: {error}") from None


def known_files(ground: Ground, home: Path) -> dict[str, tuple[Path, Path]]:
    """Identity -> root and file of every record that may stand on the guest's board: the guest's own, and those of references,
    which papers or other guests may have trained."""
    others = [path for path in sorted(ground.guests.glob("*")) if path.is_dir() and path != home]
    return {identity: (root, file) for root in (*others, ground.papers, home) for identity, file in record_files(root).items()}


def usable(rows: Iterable[Entry], known: Mapping[str, tuple[Path, Path]], home: Path, alone: bool
           ) -> dict[str, tuple[Path, Path]]:
    """The known records of the entries' runs; of the guest's own rows, and if alone of all, only those of this home."""
    return {item.identity: known[item.identity] for entry in rows for item in entry.runs
            if item.identity in known and (known[item.identity][0] == home or not (alone or entry.is_guest))}


def read_records(places: Iterable[tuple[Path, Path]]) -> dict[Path, dict]:
    """Root -> key -> record of the given files."""
    by_root: dict[Path, list[str]] = {}
    for root, file in places:
        by_root.setdefault(root, []).append(file.stem.rsplit("-", 2)[1])
    return {root: load_records(root, keys) for root, keys in by_root.items()}
