"""From missing runs to finished records: which packs to form, in which order, and what to go on with."""

import gc
import time
from collections.abc import Callable, Container, Sequence
from contextlib import AbstractContextManager
from itertools import groupby, pairwise
from pathlib import Path

import torch

from common.data.sets import Images, load
from common.errors import UserError
from common.method import Planned, missing_runs
from common.spec import canonical_json
from common.store import record_files
from common.train.loop import Progress, Workspace, train_pack
from common.train.pack import Device

Observer = Callable[[Sequence[Planned]], AbstractContextManager[Callable[[Progress], None]]]


def form_packs(missing: Sequence[Planned], limit: int) -> list[list[Planned]]:
    """Packs of at most `limit` runs: one column and protocol each, equal methods together, starting runs first."""
    def shared(item: Planned) -> tuple[int, bytes]:
        spec = item.run.spec()
        return _depth(item), canonical_json([spec["column"], spec["protocol"]])

    order = {shared(m)[1]: i for i, m in reversed(list(enumerate(missing)))}  # columns stay in the order of the plan
    packs = []
    for _, same in groupby(sorted(missing, key=lambda m: (shared(m)[0], order[shared(m)[1]])), key=shared):
        runs = sorted(same, key=lambda m: (canonical_json(m.run.method), m.run.seed))
        parts = -(-len(runs) // limit)
        bounds = [len(runs) * i // parts for i in range(parts + 1)]
        packs += [runs[a:b] for a, b in pairwise(bounds)]
    return packs


def _depth(item: Planned) -> int:
    return 0 if item.start is None else 1 + _depth(item.start)


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


def train(planned: Sequence[Planned], *, root: Path, data: Path, work: Workspace, device: Device, limit: int,
          observer: Observer) -> bool:
    """Train every planned run that has no record. Returns False if the deadline came first."""
    have = record_files(root)
    missing = missing_runs(planned, have)
    drop_states(work, have, missing)
    packs = unfinished_packs(work, missing)
    begun = {m.run.key for pack in packs for m in pack}
    packs += form_packs([m for m in missing if m.run.key not in begun], limit)
    packs.sort(key=lambda pack: _depth(pack[0]))
    loaded: dict[str, Images] = {}
    while packs:
        if time.monotonic() > work.deadline:
            return False
        pack = packs.pop(0)
        dataset = pack[0].run.column.dataset
        if dataset not in loaded:
            loaded = {dataset: load(dataset, data)}
        release_memory()
        done = try_pack(pack, loaded[dataset], device, work, observer)
        if done is None:
            packs = form_packs(pack, -(-len(pack) // 2)) + packs
        elif not done:
            return False
        have = record_files(root)
        drop_states(work, have, missing_runs(planned, have))
    return True


def try_pack(pack: Sequence[Planned], images: Images, device: Device, work: Workspace, observer: Observer) -> bool | None:
    """`train_pack`, or None where the pack is too large for the device's memory and can be split."""
    try:
        with observer(pack) as observe:
            return train_pack(pack, images, device, work, observe)
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        if len(pack) == 1:
            raise UserError(f"One run of {pack[0].label} does not fit into the memory of {device.name}.") from None
        return None


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
    if cuda:
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = precision not in ("float32", "float64")  # float32 is float32
    default = "bfloat16" if cuda else "float32"
    return Device(name, precision or default, cuda if compiled is None else compiled)
