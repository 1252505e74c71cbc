"""From missing runs to finished records: which packs to form, in which order, and what to go on with."""

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import groupby, pairwise
from pathlib import Path

import torch

from common.data.sets import Images, load
from common.errors import UserError
from common.method import Planned
from common.spec import canonical_json
from common.store import record_files
from common.train.loop import Progress, Workspace, checkpoint_path, train_pack
from common.train.pack import Device

Observer = Callable[[Sequence[Planned]], AbstractContextManager[Callable[[Progress], None]]]


def missing_runs(planned: Sequence[Planned], root: Path) -> list[Planned]:
    """The planned runs without a record, each preceded by the runs that it starts from where their weights are not here."""
    have, needed = record_files(root), {}
    for item in planned:
        if item.run.key in have:
            continue
        chain = [item]
        while (start := chain[-1].start) and not checkpoint_path(start).exists():
            chain.append(start)
        for link in reversed(chain):
            needed.setdefault(link.run.key, link)
    return list(needed.values())


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
    """Packs with a resume state whose runs are all missing still: they go on exactly as they were formed."""
    by_key, packs = {m.run.key: m for m in missing}, []
    for file in sorted((work.folder / "resume").glob("*.pt")):
        try:
            keys = torch.load(file, weights_only=True, mmap=True)["keys"]
        except Exception as error:  # whatever a damaged file makes the unpickler raise
            raise UserError(f"{file} is damaged ({type(error).__name__}); delete it, and its runs start again.") from None
        if all(k in by_key for k in keys):
            packs.append([by_key[k] for k in keys])
    return packs


def train(planned: Sequence[Planned], *, root: Path, data: Path, work: Workspace, device: Device, limit: int,
          observer: Observer) -> bool:
    """Train every planned run that has no record. Returns False if the deadline came first."""
    missing = missing_runs(planned, root)
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
    default = "bfloat16" if cuda else "float32"
    return Device(name, precision or default, cuda if compiled is None else compiled)
