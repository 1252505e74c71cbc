"""From missing runs to finished records: which packs to begin, in which order, and what to go on with where one fails."""

import gc
import time
import traceback
from collections.abc import Callable, Container, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch

from common.data.sets import Images, load
from common.errors import UserError
from common.plan import Run, missing_runs
from common.stopping import is_asked
from common.store import drop_twins, record_files
from common.train.device import Device
from common.train.loop import Progress, train_pack
from common.train.packing import SIZES, UNLIMITED, Limit, form_packs, network_of, together
from common.train.state import Workspace

Observe = Callable[[Progress], bool | None]  # True: stop this pack, a smaller one is worth more
Observer = Callable[[Sequence[Run]], AbstractContextManager[Observe]]
Choose = Callable[[Sequence[Run], Limit], Sequence[Run]]  # (what can be begun, most runs) -> the next pack, or none
Result = Literal["done", "paused", "slow", "too large", "failed", "refused", "lost", "set aside"]
MOST_FAILURES = 12  # packs in a row: a bad run in a pack of 32 is found within nine


class Outcome(NamedTuple):
    """How a pack ended. why: what was wrong, as a traceback or a sentence; plainest: no plainer way is left to try."""

    result: Result
    why: str = ""
    plainest: bool = True


class Trained(NamedTuple):
    """A pack that an engine has worked on, how that ended, for how many seconds, and what was wrong."""

    pack: tuple[Run, ...]
    result: Result
    seconds: float
    why: str = ""


def unfinished_packs(work: Workspace, missing: Sequence[Run], planned: Sequence[Run] = ()) -> list[list[Run]]:
    """What goes on from a resume state: the missing runs of each, side by side as they were; the furthest state first.

    planned: where a kill came between the records of a pack, its finished runs, which these know, train along: sums in a pack of
    another size are rounded otherwise."""
    by_identity, packs, done = {m.identity: m for m in missing}, [], {}
    states = sorted(work.states().values(), key=lambda s: -s["epoch"])
    if planned and any(name not in by_identity for state in states for name in state["identities"]):
        have = record_files(planned[0].root)
        done = {link.identity: link for item in planned for link in item.chain if link.identity in have}
    for state in states:
        known = by_identity | {name: m for name, m in done.items() if name not in by_identity}
        if any(name in by_identity for name in state["identities"]):
            packs.append([known[name] for name in state["identities"] if name in known])
            for name in state["identities"]:
                by_identity.pop(name, None)
    return packs


def drop_states(work: Workspace, have: Container[str], missing: Sequence[Run]) -> None:
    """Delete the resume states whose runs all have their records, and are not trained again for their weights; and those of
    missing runs that code began which computed something else."""
    wanted = {m.spec.key: m.identity for m in missing}
    for file, state in work.states().items():
        names = {name.partition("-")[0]: name for name in state["identities"]}
        stale = any(wanted.get(key, name) != name for key, name in names.items())
        if stale or all(name in have and key not in wanted for key, name in names.items()):
            file.unlink(missing_ok=True)


class Engine(Protocol):
    """Where packs are trained: one device or several, here or elsewhere. A place trains one pack at a time."""

    places: int

    def begin(self, place: int, pack: Sequence[Run], work: Workspace, observe: Observe, plainer: int = 0) -> None:
        """Start to train the pack on a free place, so many steps plainer than the device could (see `way`)."""

    def wait(self) -> tuple[int, Outcome]:
        """Sleep until a pack ends, telling the observers meanwhile; returns its place and how it ended."""

    def close(self) -> None:
        """Let go of the places; what their packs have not saved is lost."""


class LocalDevice:
    """One device in this process."""

    places = 1

    def __init__(self, device: Device, data: Path):
        self.device, self.data, self._outcome = device, data, Outcome("done")
        self._loaded: dict[str, Images] = {}

    def begin(self, place: int, pack: Sequence[Run], work: Workspace, observe: Observe, plainer: int = 0) -> None:
        dataset = pack[0].spec.column.dataset
        if dataset not in self._loaded:
            self._loaded = {dataset: load(dataset, self.data)}
        self._outcome = try_pack(pack, self._loaded[dataset], self.device, work, observe, plainer)

    def wait(self) -> tuple[int, Outcome]:
        return 0, self._outcome

    def close(self) -> None:
        """Nothing to let go of."""


def in_order(work: Workspace, limit: Limit, planned: Sequence[Run] = ()) -> Choose:
    """Unfinished packs first, as they were formed; then packs within the limit in the order of the plan."""
    def choose(ready: Sequence[Run], most: Limit) -> Sequence[Run]:
        begun = [part for pack in unfinished_packs(work, ready, planned) for part in form_packs(pack, most)]
        keys = {m.spec.key for pack in begun for m in pack}
        packs = begun + form_packs([m for m in ready if m.spec.key not in keys], lambda m: min(limit(m), most(m)))
        return together(min(packs, key=lambda pack: len(pack[0].chain), default=()))

    return choose


@dataclass
class Trials:
    """What went wrong so far, and what follows from it for the packs to come."""

    plainer: dict[str, int] = field(default_factory=dict)  # key -> steps
    sizes: dict[str, int] = field(default_factory=dict)  # key -> most runs beside it
    caps: dict[tuple[Any, ...], int] = field(default_factory=dict)  # network -> most runs that the memory holds
    lost: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    aside: set[str] = field(default_factory=set)
    in_a_row: int = 0

    def limit(self, item: Run) -> int:
        return min(self.sizes.get(item.spec.key, UNLIMITED), self.caps.get(network_of(item), UNLIMITED))

    def steps(self, pack: Sequence[Run]) -> int:
        return max(self.plainer.get(m.spec.key, 0) for m in pack)

    def learn(self, pack: Sequence[Run], outcome: Outcome) -> Result:
        """Draw the consequences; returns what to call this end. A pack too large is split, and so are others of its network
        only. One that fails, or loses its worker twice, is tried one step plainer; where nothing plainer is left it is
        split, so that one bad run does not take its neighbours along, and a run that fails alone is set aside. A pack that a
        sentence refuses is tried once more as it is, and split then."""
        keys, result = {m.spec.key for m in pack}, outcome.result
        if result in ("done", "paused", "slow", "too large"):
            self.in_a_row = 0
        else:
            self.in_a_row += 1
        if result == "too large":
            self.caps[network_of(pack[0])] = smaller(len(pack))
        again = result == "lost" and bool(keys & self.lost)
        self.lost |= keys if result == "lost" else set()
        if result == "failed" or again:
            return self._step_down(pack, outcome.plainest)
        if result == "refused" and not keys & self.refused:  # two workers may have met at one file
            self.refused |= keys
            return "failed"
        if result == "refused":
            return self._step_down(pack, plainest=True)
        if result == "set aside":
            self.aside |= keys
            return "set aside"
        return result

    def _step_down(self, pack: Sequence[Run], plainest: bool) -> Result:
        keys, steps = [m.spec.key for m in pack], self.steps(pack)
        if not plainest and steps < 2:
            self.plainer.update(dict.fromkeys(keys, steps + 1))
        elif len(pack) > 1:
            self.sizes.update(dict.fromkeys(keys, smaller(len(pack))))
        else:
            self.aside.update(keys)
            return "set aside"
        return "failed"


def smaller(runs: int) -> int:
    """The next smaller size of a pack."""
    return next(size for size in SIZES if size < max(2, min(runs, 2 * SIZES[0])))


def run_schedule(planned: Sequence[Run], choose: Choose, *, root: Path, work: Workspace, engine: Engine, observer: Observer,
            ended: list[Trained] | None = None, after: Callable[[], None] = lambda: None) -> list[Trained]:
    """Train packs, one at each place of the engine, until nothing that `choose` wants is missing or the deadline comes.

    What becomes of a pack that fails, see `Trials`; it is logged with its traceback, and the others go on.
    ended: grows by every pack worked on, so that an interrupted caller knows them. after: called whenever one has ended.
    """
    running: dict[int, tuple[Sequence[Run], float, ExitStack]] = {}
    ended, trials, paused = [] if ended is None else ended, Trials(), False
    fresh = {link.identity for item in planned for link in item.chain}
    while True:
        drop_twins(root, fresh)
        have = record_files(root)
        missing = missing_runs(planned, have)
        drop_states(work, have, missing)
        for place in range(engine.places):
            if place in running or paused or is_asked() or time.monotonic() > work.deadline:
                continue
            busy = trials.aside | {m.spec.key for p, _, _ in running.values() for m in p}
            pack = choose(_ready(missing, busy), trials.limit)
            if not pack:
                break
            shown = ExitStack()
            running[place] = pack, time.monotonic(), shown
            engine.begin(place, pack, work, shown.enter_context(observer(pack)), trials.steps(pack))
        if not running:
            return ended
        place, outcome = engine.wait()
        pack, begun, shown = running.pop(place)
        shown.close()
        outcome = _checked(pack, outcome, root)
        result = trials.learn(pack, outcome)
        ended.append(Trained(tuple(pack), result, time.monotonic() - begun, outcome.why))
        paused = paused or result == "paused"
        if result == "slow":
            _forget(work, pack)
        if outcome.why:
            work.log(column=pack[0].spec.column.name, result=result, runs=[m.label for m in pack], why=outcome.why)
        after()
        if trials.in_a_row >= MOST_FAILURES:
            raise UserError(f"{MOST_FAILURES} packs in a row failed or lost their workers, the last with {pack[0].label} "
                            f"({last_line(outcome.why)}); see {work.folder / 'log.jsonl'}. Finished runs are kept.")


def _checked(pack: Sequence[Run], outcome: Outcome, root: Path) -> Outcome:
    """A pack whose records do not count here would be begun again and again."""
    have = record_files(root) if outcome.result == "done" else {}
    if outcome.result == "done" and any(m.identity not in have for m in pack):
        return Outcome("set aside", "Its records are of other code than what is here: every machine needs the same checkout.")
    return outcome


def last_line(why: str) -> str:
    """What a traceback says in the end."""
    return (why.strip().splitlines() or ["the worker died"])[-1]


def _forget(work: Workspace, pack: Sequence[Run]) -> None:
    """Delete the state of a pack that is begun anew with fewer runs."""
    names = {m.identity for m in pack}
    for file, state in work.states().items():
        if set(state["identities"]) == names:
            file.unlink(missing_ok=True)


def _ready(missing: Sequence[Run], busy: Container[str]) -> list[Run]:
    """What can be begun now: nobody trains it, and the run that it starts from is there."""
    wanted = {m.spec.key for m in missing}
    return [m for m in missing if m.spec.key not in busy and not (m.start and m.start.spec.key in wanted)]


def train(planned: Sequence[Run], *, root: Path, work: Workspace, engine: Engine, limit: Limit, observer: Observer) -> bool:
    """Train every planned run that has no record. Returns False if the deadline came first; runs that failed
    are a UserError when the others have ended."""
    ended = run_schedule(planned, in_order(work, limit, planned), root=root, work=work, engine=engine, observer=observer)
    if aside := [t for t in ended if t.result == "set aside"]:
        why = last_line(aside[0].why)
        runs = sum(len(t.pack) for t in aside)
        raise UserError(why if len(aside) == 1 and why == aside[0].why else
                        f"{runs} runs failed and were set aside, the first {aside[0].pack[0].label}: {why} "
                        f"({work.folder / 'log.jsonl'} has the tracebacks).")
    return not missing_runs(planned, record_files(root))


class _Stop(BaseException):
    """An observer wants no further epoch."""


def way(device: Device, plainer: int) -> tuple[Device, bool]:
    """The device so many steps plainer: not compiled, then without a graph; and whether nothing plainer is left."""
    ways = [device]
    if device.compile:
        ways.append(replace(device, compile=False))
    if device.cuda and device.graph:
        ways.append(replace(device, compile=False, graph=False))
    return ways[min(plainer, len(ways) - 1)], plainer >= len(ways) - 1


def try_pack(pack: Sequence[Run], images: Images, device: Device, work: Workspace, observe: Observe, plainer: int = 0
             ) -> Outcome:
    """`train_pack`, and how it ended; "too large" where the pack does not fit into the device's memory and can be split."""
    def tell(progress: Progress) -> None:
        if observe(progress):
            raise _Stop

    release_memory()
    device, plainest = way(device, plainer)
    try:
        return Outcome("done" if train_pack(pack, images, device, work, tell) else "paused")
    except _Stop:
        return Outcome("slow")
    except UserError as error:
        return Outcome("refused", str(error))
    except Exception as error:
        if not _out_of_memory(error):
            return Outcome("failed", traceback.format_exc(), plainest)
        if len(pack) == 1:
            return Outcome("refused", f"One run of {pack[0].label} does not fit into the memory of {device.name}.")
        return Outcome("too large")


def _out_of_memory(error: BaseException | None) -> bool:
    """Also where a capture that ran out of memory ends in an error of its own."""
    return error is not None and (isinstance(error, torch.OutOfMemoryError) or _out_of_memory(error.__context__))


def release_memory() -> None:
    """A pack refers to itself (its captured steps do), so its memory waits for the collector."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
