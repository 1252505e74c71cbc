"""`campaign`: fill the tables with whatever device time there is."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from common.console import pack_observer
from common.cost import Speed, clock, place_name, speeds
from common.errors import UserError
from common.method import Paper, Planned, missing_runs
from common.selection import with_data
from common.spec import Profile
from common.store import load_records, record_files, write_atomically
from common.worth import Offer, Worth, cost_at, fit, needs, offers, schedule, wanted

if TYPE_CHECKING:
    from common.train.work import Engine, Trained

SHOWN = 12  # packs of a plan


@dataclass(frozen=True)
class Ground:
    """Where a campaign works. root: of the papers; benchmarks: measured speeds; limit: most runs of a pack of a column."""

    root: Path
    data: Path
    work: Path
    benchmarks: Path
    limit: Callable[[Planned], int]

    @property
    def probes(self) -> Path:
        return self.work / "probes"


@dataclass(frozen=True)
class Wanted:
    """The selected runs, what each is worth by key, and the runs of all papers in full."""

    runs: list[Planned]
    worth: dict[str, Worth]
    all: list[Planned]


def select(papers: Sequence[Paper], profile: Profile, only: Sequence[str], columns: Sequence[str], seeds: int | None,
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
    """One campaign on one engine: it knows the time left and what the device has been seen to need."""

    def __init__(self, ground: Ground, chosen: Wanted, place: dict[str, str], probe: Callable[[Sequence[Planned]], dict],
                 console: Console):
        self.ground, self.chosen, self.place, self.probe, self.console = ground, chosen, place, probe, console
        self.speed = self.read_speed()

    def read_speed(self) -> Speed:
        records = load_records(self.ground.root).values()
        return speeds(records, self.ground.benchmarks, self.ground.probes).get(place_name(**self.place), {})

    def cost(self, pack: Sequence[Planned]) -> float | None:
        return cost_at(self.speed, pack)

    def form(self, runs: Sequence[Planned], cap: int | None = None) -> list[list[Planned]]:
        from common.train.work import form_packs

        by_limit: dict[int, list[Planned]] = {}
        for item in runs:
            limit = self.ground.limit(item)
            by_limit.setdefault(min(limit, cap or limit), []).append(item)
        return [pack for limit, same in by_limit.items() for pack in form_packs(same, limit)]

    def offer(self, ready: Sequence[Planned], cap: int | None = None) -> list[Offer]:
        """What could be begun now; the network of the first is probed if this device has never been seen to train it."""
        first = next(iter(self.known_offers(ready, cap)), None)
        if first and first.seconds is None:
            self.measure(first.pack)
        return self.known_offers(ready, cap)

    def known_offers(self, ready: Sequence[Planned], cap: int | None = None) -> list[Offer]:
        """The same, without a probe."""
        return offers(ready, self.chosen.worth, partial(self.form, cap=cap), self.cost)

    def measure(self, pack: Sequence[Planned]) -> None:
        """Probe a pack and keep what came out for the next time."""
        backbone = pack[0].run.column.backbone
        self.console.print(f"Probing {backbone} with {len(pack)} runs side by side: this device has left no record of it ...")
        row = self.probe(pack)
        name = f"{self.place['device']}-{self.place['precision']}-{backbone}-{row['runs']}"
        path = self.ground.probes / f"{''.join(c if c.isalnum() else '-' for c in name)}.json"
        write_atomically(path, json.dumps({**self.place, "rows": [row]}).encode() + b"\n")
        self.speed = self.read_speed()

    def chooser(self, states: Callable[[Sequence[Planned]], list[list[Planned]]], deadline: float):
        """What `conduct` asks for the next pack: unfinished ones first, then the best that fits the time."""
        def choose(ready: Sequence[Planned], cap: int | None) -> Sequence[Planned]:
            begun = states(ready)
            keys = {m.run.key for pack in begun for m in pack}
            if begun:
                return self.form(begun[0], cap)[0] if cap else begun[0]
            found = fit(self.offer([m for m in ready if m.run.key not in keys], cap), deadline - time.monotonic(), self.cost)
            return found.pack if found else ()

        return choose

    def lacking(self, runs: Sequence[Planned]) -> int:
        """How many of the runs have no record."""
        have = record_files(self.ground.root)
        return sum(m.run.key not in have for m in runs)

    def missing(self) -> list[Planned]:
        """What is to be trained: the selected runs without a record, and those that they start from."""
        return missing_runs(self.chosen.runs, record_files(self.ground.root))


def show_plan(campaign: Campaign, seconds: float, places: int) -> None:
    """The packs that fit, in their order, as far as the speeds foretell it."""
    planned = schedule(campaign.missing(), campaign.offer, campaign.cost, seconds, places)
    print_packs(campaign.console, "Plan", planned)
    if not planned:
        campaign.console.print("Nothing fits this time; give more minutes." if campaign.missing() else "Nothing is missing.")


def print_packs(console: Console, title: str, planned: Sequence[Offer]) -> None:
    if not planned:
        return
    table = Table("column", "runs", "why", "printed numbers", "expected", title=title, title_justify="left")
    for o in planned[:SHOWN]:
        time_needed = "unknown" if o.seconds is None else clock(o.seconds)
        table.add_row(o.pack[0].run.column.name, str(len(o.pack)), o.worth.reason, str(o.worth.numbers), time_needed)
    console.print(table)
    if len(planned) > SHOWN:
        console.print(f"and {len(planned) - SHOWN} more packs.")


def print_done(console: Console, ended: Sequence["Trained"]) -> None:
    """What the campaign did, pack by pack."""
    table = Table("column", "runs", "result", "took", title="Done", title_justify="left")
    words = {"paused": "paused; goes on next time", "lost": "worker lost; begun again", "too large": "too large; split"}
    for trained in ended:
        result = words.get(trained.result, trained.result)
        table.add_row(trained.pack[0].run.column.name, str(len(trained.pack)), result, clock(trained.seconds))
    if ended:
        console.print(table)


def print_rest(campaign: Campaign) -> None:
    """The device-hours that all papers still need."""
    campaign.speed = campaign.read_speed()
    whole = missing_runs(campaign.chosen.all, record_files(campaign.ground.root))
    seconds, unknown = needs(whole, campaign.form, campaign.cost)
    said = f" and {unknown} runs on networks that this device has not been seen to train" if unknown else ""
    lacking = campaign.lacking(campaign.chosen.all)
    campaign.console.print(f"All papers: {lacking} of {len(campaign.chosen.all)} runs are missing; they need "
                           f"{seconds / 3600:.3g} device-hours of {place_name(**campaign.place)}{said}.")


def run_campaign(campaign: Campaign, engine: "Engine", seconds: float, begun: float, save_seconds: float | None) -> None:
    """Train until the time is over or nothing is missing, and say what was done and what comes next.

    begun: time.monotonic() when the campaign's time began to count.
    """
    from common.train.loop import Workspace
    from common.train.work import conduct, unfinished_packs

    work = Workspace(campaign.ground.work, save_seconds, begun + seconds)
    ended: list[Trained] = []
    try:
        conduct(campaign.chosen.runs, campaign.chooser(partial(unfinished_packs, work), work.deadline), root=campaign.ground.root,
                work=work, engine=engine, observer=pack_observer(), ended=ended)
    finally:
        print_done(campaign.console, ended)
    print_packs(campaign.console, "Next", schedule(campaign.missing(), campaign.known_offers, campaign.cost, float("inf")))
    print_rest(campaign)


def probe_here(device: Any, data: Path, pack: Sequence[Planned]) -> dict:
    """`probe` on a device of this machine; a pack that does not fit into its memory is halved."""
    import torch

    from common.data.sets import load
    from common.train.probe import probe
    from common.train.work import release_memory

    images = load(pack[0].run.column.dataset, data)
    while True:
        try:
            return probe(pack, images, device)
        except torch.OutOfMemoryError:
            if len(pack) == 1:
                raise UserError(f"One run of {pack[0].label} does not fit into the memory of {device.name}.") from None
            pack = pack[:-(-len(pack) // 2)]
        finally:
            release_memory()
