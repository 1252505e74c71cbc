"""`campaign`: fill the tables with whatever device time there is."""

import fcntl
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.campaign.priority import Offer, Worth, fit, needs, offers, schedule, wanted
from common.cost import PROTOTYPES, SPEEDS, Costs, clock, epoch_work, place_name, read_speeds, speed_of, speeds, watched_epochs
from common.errors import UserError
from common.paper import Paper
from common.plan import Run, missing_runs, with_data
from common.spec import ProfileName
from common.store import file_stem, record_files, thin_records, write_atomically
from common.train.packing import Limit, form_packs, together, unlimited

if TYPE_CHECKING:
    from common.train.loop import Progress
    from common.train.work import Engine, Observer, Trained

SHOWN = 12  # packs of a plan
TIMED = 3  # epochs after the first, which compiles, that tell how fast a pack is
ENDING = 5.0  # seconds before the deadline for states and what goes home, where packs are compiled


@dataclass(frozen=True)
class CampaignPaths:
    """Where a campaign works. root: of the papers; benchmarks: measured speeds; limit: most runs of a pack of a run's kind."""

    root: Path
    work: Path
    benchmarks: Path
    limit: Limit


@dataclass(frozen=True)
class Wanted:
    """The selected runs, what each is worth by key, and the runs of all papers in full."""

    runs: list[Run]
    worth: dict[str, Worth]
    all: list[Run]


@contextmanager
def alone(work: Path) -> Iterator[None]:
    """One campaign at a time in a folder of unfinished work: another one would train the same packs. The system frees the lock
    when the process ends, however it does."""
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "campaign.lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"Another campaign (process {file.read().strip() or 'unknown'}) works in {work}; wait for its end, "
                            "give one campaign all devices (--device cuda:0,cuda:1), or use another checkout.") from None
        except OSError:
            pass  # a file system without locks
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def select(papers: Sequence[Paper], profile: ProfileName, only: Sequence[str], columns: Sequence[str], seeds: int | None,
           data: Path, console: Console) -> Wanted:
    """The runs that --only, --columns and --seeds leave, on datasets that are here; unknown names are refused."""
    for name, known in [(n, [p.name for p in papers]) for n in only] + [
            (n, [c.name for p in papers for c in p.columns[profile] if c.name not in p.large]) for n in columns]:
        if name not in known:
            raise UserError(f"Nothing is called {name!r} in profile {profile!r}; there is: {', '.join(dict.fromkeys(known))}.")
    runs, worth = wanted([p for p in papers if not only or p.name in only], profile, columns, seeds)
    if not runs:
        raise UserError(f"No column of {', '.join(columns)} belongs to {', '.join(only)}.")
    here = with_data(runs, data, console)
    return Wanted(here, worth, wanted(papers, profile)[0])


class Campaign:
    """One campaign on one engine: it knows the time left and what the device has been seen to need.

    place: `common.train.device.place_of` the device.
    """

    def __init__(self, paths: CampaignPaths, selection: Wanted, place: dict[str, Any], console: Console,
                 deadline: float = float("inf")):
        self.paths, self.selection, self.place, self.console, self.deadline = paths, selection, place, console, deadline
        self.costs = self.read_costs()

    def read_costs(self) -> Costs:
        """From the records, the benchmarks, and what this device's own packs have shown."""
        folder, probes = self.paths.benchmarks, self.paths.work / "probes"
        known = speeds(thin_records(self.paths.root, self.paths.work / "records.json"), folder, folder / SPEEDS, probes)
        speed = speed_of(self.place["device"], self.place["precision"], known, folder / PROTOTYPES)
        seen = frozenset((row["backbone"], row["runs"]) for row in self._rows())
        return Costs(replace(speed, compiled=self.place["compiled"]), seen)

    @property
    def _file(self) -> Path:
        return self.paths.work / "probes" / f"{file_stem(place_name(self.place['device'], self.place['precision']))}.json"

    def _rows(self) -> list[dict[str, Any]]:
        return read_speeds(self._file)["rows"] if self._file.exists() else []

    def form(self, runs: Sequence[Run], most: Limit = unlimited) -> list[list[Run]]:
        return form_packs(runs, lambda m: min(self.paths.limit(m), most(m)))

    def offer(self, ready: Sequence[Run], costs: Costs, most: Limit = unlimited) -> list[Offer]:
        """What could be begun now. A run that has its record is there for its weights."""
        have, worth = record_files(self.paths.root), self.selection.worth
        again = {m.spec.key: worth[m.spec.key].as_start or worth[m.spec.key] for m in ready if m.identity in have}
        return offers(ready, {**worth, **again}, partial(self.form, most=most), costs)

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def chooser(self, states: Callable[[Sequence[Run]], list[list[Run]]]) -> Callable:
        """What `run_schedule` asks for the next pack: unfinished ones first, then the best that fits the time."""
        def choose(ready: Sequence[Run], most: Limit) -> Sequence[Run]:
            begun = states(ready)
            keys = {m.spec.key for pack in begun for m in pack}
            if begun:
                return together(form_packs(begun[0], most)[0])
            offer = fit(self.offer([m for m in ready if m.spec.key not in keys], self.costs, most), self.left(), self.costs)
            return together(offer.pack) if offer else ()

        return choose

    @contextmanager
    def watch(self, shown: Callable, pack: Sequence[Run]) -> Iterator[Callable[["Progress"], bool]]:
        """An observer that also times the first epochs of a pack: they are the measurement of the device."""
        times = [time.monotonic()]
        with shown(pack) as tell:
            def observe(progress: "Progress") -> bool:
                tell(progress)
                times.append(time.monotonic())
                if len(times) != TIMED + 2 and not (len(times) > 2 and progress.epoch == progress.epochs <= TIMED):
                    return False
                self.learn(pack, progress.epoch, times)
                return self.too_slow(pack, progress)

            yield observe

    def learn(self, pack: Sequence[Run], epochs: int, times: Sequence[float]) -> None:
        """Keep what the epochs since the second have taken, and what the first took longer. times: of the start and of the end
        of each epoch."""
        column, p, streams = pack[0].spec.column, pack[0].spec.protocol, pack[0].method.streams.number
        took = [b - a for a, b in itertools.pairwise(times)]
        each = median(took[1:])
        units = len(pack) * epoch_work(column, p, streams, epochs <= watched_epochs(p))
        row = {"name": "epochs", "backbone": column.backbone, "runs": len(pack), "seconds_per_work": each / units,
               "ready_seconds": round(max(0.0, took[0] - each), 3), "ready_expected": self.costs.ready(pack)}
        others = [r for r in self._rows() if (r["backbone"], r["runs"]) != (column.backbone, len(pack))]
        content = {"device": self.place["device"], "precision": self.place["precision"], "compiled": self.place["compiled"],
                   "rows": [*others, row]}
        write_atomically(self._file, json.dumps(content, indent=1).encode())
        self.costs = self.read_costs()

    def too_slow(self, pack: Sequence[Run], progress: "Progress") -> bool:
        """Whether the pack would meet the deadline unfinished, while a smaller one or another would end before it."""
        rest = (self.costs.of(pack) or 0.0) * (1 - progress.epoch / progress.epochs)
        if rest <= self.left():
            return False
        offer = fit(self.offer(pack, self.costs), self.left(), self.costs)
        return offer is not None and offer.seconds is not None and offer.seconds <= self.left() and len(offer.pack) < len(pack)

    def lacking(self, runs: Sequence[Run]) -> int:
        """How many of the runs have no record."""
        have = record_files(self.paths.root)
        return sum(m.identity not in have for m in runs)

    def missing(self) -> list[Run]:
        """What is to be trained: the selected runs without a record, and those that they start from."""
        return missing_runs(self.selection.runs, record_files(self.paths.root))


def show_plan(campaign: Campaign, places: int) -> None:
    """The packs that fit, in their order, as far as the speeds foretell it."""
    console, missing = campaign.console, campaign.missing()
    planned = schedule(missing, campaign.offer, campaign.costs, campaign.left(), places, SHOWN)
    print_packs(console, "Plan", planned)
    if not planned:
        console.print("Nothing fits this time; give more minutes." if missing else "Nothing is missing.")
    if unknown := dict.fromkeys(f"{o.pack[0].spec.column.name} ({o.pack[0].spec.column.backbone})" for o in planned
                                if o.seconds is None):
        console.print("Of unknown time, as this device has not been seen to train such networks, so that nobody knows what fits "
                      f"after them: {', '.join(unknown)}.")
    if lent := sorted({o.pack[0].spec.column.backbone for o in planned} & campaign.costs.speed.prototype):
        campaign.console.print(f"Expected from the speeds of a prototype, as this device has trained no {lent[0]} yet.")


def print_packs(console: Console, title: str, planned: Sequence[Offer]) -> None:
    """The first packs of a plan."""
    if not planned:
        return
    table = Table("column", "runs", "why", "printed numbers", "expected", title=title, title_justify="left")
    for o in planned[:SHOWN]:
        time_needed = "unknown" if o.seconds is None else clock(o.seconds) + ("" if o.fits else ", goes on next time")
        table.add_row(o.pack[0].spec.column.name, runs_of(o.pack), o.worth.reason, str(o.worth.numbers), time_needed)
    console.print(table)
    if len(planned) > SHOWN:
        console.print("and more packs.")


def runs_of(pack: Sequence[Run]) -> str:
    """A pack in a table of packs: its one run by name, as `train --method` takes it, or how many there are."""
    return str(len(pack)) if len(pack) > 1 else escape(f"{pack[0].method.label} seed {pack[0].spec.seed}")


def print_done(console: Console, ended: Sequence["Trained"]) -> None:
    """What the campaign did, pack by pack, and what it set aside."""
    table = Table("column", "runs", "result", "took", title="Done", title_justify="left")
    words = {"paused": "paused; goes on next time", "lost": "worker lost; begun again", "too large": "too large; split",
             "slow": "too slow; begun smaller", "failed": "failed; tried again plainer or smaller"}
    for trained in ended:
        result = words.get(trained.result, trained.result)
        table.add_row(trained.pack[0].spec.column.name, runs_of(trained.pack), result, clock(trained.seconds))
    if ended:
        console.print(table)
    for trained in (t for t in ended if t.result == "set aside"):
        reason = (trained.why.strip().splitlines() or ["its worker died"])[-1]
        console.print(f"[red]Set aside[/]: {escape(trained.pack[0].label)}" + (
            f" and {len(trained.pack) - 1} others" if len(trained.pack) > 1 else "") + f": {escape(reason)}")
    if any(t.why for t in ended):
        console.print("The tracebacks are in .work/log.jsonl.")


def print_rest(campaign: Campaign) -> None:
    """The device-hours that all papers still need."""
    whole = missing_runs(campaign.selection.all, record_files(campaign.paths.root))
    seconds, unknown = needs(whole, campaign.form, campaign.costs)
    unseen = (f", and unknown time for {unknown} of {len(whole)} trainings (first stages among them), on networks that this "
              "device has not been seen to train") if unknown else ""
    lacking, where = campaign.lacking(campaign.selection.all), place_name(campaign.place["device"], campaign.place["precision"])
    campaign.console.print(f"All papers: {lacking} of {len(campaign.selection.all)} runs are missing; they need "
                           f"{seconds / 3600:.3g} device-hours of {where}{unseen}.")


def run_campaign(campaign: Campaign, engine: "Engine", observer: "Observer", save_seconds: float | None,
                 home: Callable[[], None] = lambda: None) -> None:
    """Train until the time is over or nothing is missing, and say what was done and what comes next.

    observer: tells a person about packs in training. home: brings home what is finished; called after every pack.
    """
    from common.train.state import Workspace
    from common.train.work import run_schedule, unfinished_packs

    if campaign.place["compiled"]:
        campaign.deadline -= ENDING
    work = Workspace(campaign.paths.work, save_seconds, campaign.deadline)
    ended: list[Trained] = []
    try:
        states = partial(unfinished_packs, work, planned=campaign.selection.runs)
        run_schedule(campaign.selection.runs, campaign.chooser(states), root=campaign.paths.root, work=work, engine=engine,
                     observer=partial(campaign.watch, observer), ended=ended, after=home)
    finally:
        print_done(campaign.console, ended)
    following = schedule(campaign.missing(), campaign.offer, campaign.costs, float("inf"), most=SHOWN)
    print_packs(campaign.console, "Next", following)
    print_rest(campaign)
