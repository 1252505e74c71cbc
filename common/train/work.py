"""From missing runs to finished records: which packs to form, in which order, and what to go on with."""

import gc
import time
from collections.abc import Callable, Container, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import groupby, pairwise
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch

from common.data.sets import Images, load
from common.errors import UserError
from common.method import Planned, missing_runs
from common.spec import canonical_json
from common.store import record_files
from common.train.loop import Progress, Workspace, train_pack
from common.train.pack import Device

Observe = Callable[[Progress], None]
Observer = Callable[[Sequence[Planned]], AbstractContextManager[Observe]]
Choose = Callable[[Sequence[Planned], int | None], Sequence[Planned]]  # (what can be begun, most runs) -> the next pack, or none
Result = Literal["done", "paused", "too large", "lost"]
MOST_LOSSES = 3  # workers in a row


class Trained(NamedTuple):
    """A pack that an engine has worked on, how that ended, and for how many seconds."""

    pack: tuple[Planned, ...]
    result: Result
    seconds: float


def form_packs(missing: Sequence[Planned], limit: int) -> list[list[Planned]]:
    """Packs of at most `limit` runs: one column, protocol and shape each, equal methods together, starting runs first."""
    def shared(item: Planned) -> tuple[int, bytes]:
        spec = item.run.spec()
        return _depth(item), canonical_json([spec["column"], spec["protocol"], item.method.shape])

    order = {shared(m)[1]: i for i, m in reversed(list(enumerate(missing)))}  # columns stay in the order of the plan
    packs = []
    for _, same in groupby(sorted(missing, key=lambda m: (shared(m)[0], order[shared(m)[1]])), key=shared):
        runs = sorted(same, key=lambda m: (canonical_json(m.run.method), m.run.seed))
        parts = -(-len(runs) // limit)
        bounds = [len(runs) * i // parts for i in range(parts + 1)]
        packs += [runs[a:b] for a, b in pairwise(bounds)]
    return packs


def _depth(item: Planned) -> int:
    return len(item.chain) - 1


def unfinished_packs(work: Workspace, missing: Sequence[Planned]) -> list[list[Planned]]:
    """What goes on from a resume state: the missing runs of each, side by side as they were; the furthest state first."""
    by_key, packs = {m.run.key: m for m in missing}, []
    for state in sorted(work.states().values(), key=lambda s: -s["epoch"]):
        if mine := [by_key.pop(key) for key in state["keys"] if key in by_key]:
            packs.append(mine)
    return packs


def drop_states(work: Workspace, have: Container[str], missing: Sequence[Planned]) -> None:
    """Delete the resume states whose runs all have their records, and are not trained again for their weights."""
    wanted = {m.run.key for m in missing}
    for file, state in work.states().items():
        if all(key in have and key not in wanted for key in state["keys"]):
            file.unlink(missing_ok=True)


class Engine(Protocol):
    """Where packs are trained: one device or several, here or elsewhere. A place trains one pack at a time."""

    places: int

    def begin(self, place: int, pack: Sequence[Planned], work: Workspace, observe: Observe) -> None:
        """Start to train the pack on a free place."""

    def wait(self) -> tuple[int, Result]:
        """Sleep until a pack ends, telling the observers meanwhile; returns its place and how it ended."""


class Here:
    """One device in this process."""

    places = 1

    def __init__(self, device: Device, data: Path):
        self.device, self.data, self._result = device, data, "done"
        self._loaded: dict[str, Images] = {}

    def begin(self, place: int, pack: Sequence[Planned], work: Workspace, observe: Observe) -> None:
        dataset = pack[0].run.column.dataset
        if dataset not in self._loaded:
            self._loaded = {dataset: load(dataset, self.data)}
        self._result = try_pack(pack, self._loaded[dataset], self.device, work, observe)

    def wait(self) -> tuple[int, Result]:
        return 0, self._result


def in_order(work: Workspace, limit: int) -> Choose:
    """Unfinished packs first, as they were formed; then packs of at most `limit` runs in the order of the plan."""
    def choose(ready: Sequence[Planned], cap: int | None) -> Sequence[Planned]:
        begun = [part for pack in unfinished_packs(work, ready) for part in (form_packs(pack, cap) if cap else [pack])]
        keys = {m.run.key for pack in begun for m in pack}
        packs = begun + form_packs([m for m in ready if m.run.key not in keys], min(limit, cap or limit))
        return min(packs, key=lambda pack: _depth(pack[0]), default=())

    return choose


def conduct(planned: Sequence[Planned], choose: Choose, *, root: Path, work: Workspace, engine: Engine, observer: Observer,
            ended: list[Trained] | None = None) -> list[Trained]:
    """Train packs, one at each place of the engine, until nothing that `choose` wants is missing or the deadline comes.

    A pack that does not fit into the memory is split, one whose worker is lost is begun again from its last saved epoch.
    ended: grows by every pack worked on, so that an interrupted caller knows them.
    """
    running: dict[int, tuple[Sequence[Planned], float, ExitStack]] = {}
    ended = [] if ended is None else ended
    cap, losses, paused = None, 0, False
    while True:
        have = record_files(root)
        missing = missing_runs(planned, have)
        drop_states(work, have, missing)
        for place in range(engine.places):
            if place in running or paused or time.monotonic() > work.deadline:
                continue
            pack = choose(_ready(missing, {m.run.key for p, _, _ in running.values() for m in p}), cap)
            if not pack:
                break
            shown = ExitStack()
            running[place] = pack, time.monotonic(), shown
            engine.begin(place, pack, work, shown.enter_context(observer(pack)))
        if not running:
            return ended
        place, result = engine.wait()
        pack, begun, shown = running.pop(place)
        shown.close()
        ended.append(Trained(tuple(pack), result, time.monotonic() - begun))
        if result == "too large":
            cap = -(-len(pack) // 2)
        paused = paused or result == "paused"
        losses = losses + 1 if result == "lost" else 0
        if losses >= MOST_LOSSES:
            raise UserError(f"{losses} workers in a row were lost, the last with {pack[0].label}; see their logs, then start "
                            "again: finished runs are kept, and unfinished ones go on.")


def _ready(missing: Sequence[Planned], busy: Container[str]) -> list[Planned]:
    """What can be begun now: nobody trains it, and the run that it starts from is there."""
    wanted = {m.run.key for m in missing}
    return [m for m in missing if m.run.key not in busy and not (m.start and m.start.run.key in wanted)]


def train(planned: Sequence[Planned], *, root: Path, data: Path, work: Workspace, device: Device, limit: int,
          observer: Observer) -> bool:
    """Train every planned run that has no record, on one device. Returns False if the deadline came first."""
    conduct(planned, in_order(work, limit), root=root, work=work, engine=Here(device, data), observer=observer)
    return not missing_runs(planned, record_files(root))


def try_pack(pack: Sequence[Planned], images: Images, device: Device, work: Workspace, observe: Observe) -> Result:
    """`train_pack`; "too large" where the pack does not fit into the device's memory and can be split."""
    release_memory()
    try:
        return "done" if train_pack(pack, images, device, work, observe) else "paused"
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        if len(pack) == 1:
            raise UserError(f"One run of {pack[0].label} does not fit into the memory of {device.name}.") from None
        return "too large"


def _out_of_memory(error: BaseException | None) -> bool:
    """Also where a capture that ran out of memory ends in an error of its own."""
    return error is not None and (isinstance(error, torch.OutOfMemoryError) or _out_of_memory(error.__context__))


def release_memory() -> None:
    """A pack refers to itself (its captured steps do), so its memory waits for the collector."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def choose_device(name: str | None, precision: str | None, compiled: bool | None) -> Device:
    """What the user named, else CUDA where it is: bfloat16 and compiled there, float32 and eager on a CPU."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        cuda = torch.device(name).type == "cuda"
    except RuntimeError:
        raise UserError(f"{name!r} is not a device; use cpu, cuda or cuda:N.") from None
    if cuda and (not torch.cuda.is_available() or (torch.device(name).index or 0) >= torch.cuda.device_count()):
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise UserError(f"{name} was asked for, but {found} CUDA devices are here; use --device cpu, or see `doctor`.")
    default = "bfloat16" if cuda else "float32"
    return Device(name, precision or default, cuda if compiled is None else compiled)
