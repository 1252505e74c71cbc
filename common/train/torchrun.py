"""From missing runs on large sets to their records: one run after another, on all processes that torchrun started.

    torchrun --standalone --nproc-per-node=8 --max-restarts=3 -m papers.<paper>.replicate train --column imagenet-lt

The same without torchrun is one process. A state is saved after every epoch and within it every `save_seconds`; when a
process is lost, torchrun starts all of them again and they go on from there.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from common.data.lists import load_large
from common.errors import UserError
from common.plan import Run, missing_runs
from common.store import drop_twins, record_files
from common.train.device import Device, choose_device
from common.train.distributed import Ranks, broadcast_from_rank0, join, leave, on_all_ranks
from common.train.loop import train_on
from common.train.sharded import WORKERS, ShardedSteps
from common.train.state import Workspace
from common.train.work import Observer, drop_states


@dataclass(frozen=True)
class LargeOptions:
    """How to train; no part of a run's identity. device, precision, compile: as the user gave them (`choose_device`).

    per_device: the most images that a device takes in one pass (None: its whole share of a batch). workers: processes that
    decode images, for each training process.
    """

    device: str | None = None
    precision: str | None = None
    compile: bool | None = None
    per_device: int | None = None
    workers: int = WORKERS


def train_large(planned: Sequence[Run], data: Path, work: Workspace, options: LargeOptions, observer: Observer) -> bool:
    """Train every planned run that has no record. Every process of torchrun calls it. Returns False if the deadline came first.

    What a user did wrong is a UserError on one process; the others then end quietly with exit code 2.
    """
    processes = join()
    done = train_missing(processes, planned, data, work, options, observer)
    broadcast_from_rank0(processes, lambda: None)  # nobody leaves before rank 0 has written
    leave()
    return done


def train_missing(processes: Ranks, planned: Sequence[Run], data: Path, work: Workspace, options: LargeOptions,
                  observer: Observer) -> bool:
    """The runs of all processes, one after another. Returns False if the deadline came first."""
    device = on_all_ranks(processes, lambda: local_device(options, processes))
    missing = broadcast_from_rank0(processes, lambda: [m.identity for m in missing_runs(planned, record_files(planned[0].root))])
    runs = {m.identity: m for item in planned for m in item.chain}
    if processes.first:
        drop_twins(planned[0].root, runs)
        drop_states(work, record_files(planned[0].root), [runs[name] for name in missing])  # which a kill after a record left
    for member in map(runs.__getitem__, missing):
        steps = on_all_ranks(processes, partial(begin, member, data, device, processes, options))
        with observer([member]) if processes.first else nullcontext(lambda progress: None) as observe:
            if not train_on(steps, work, observe):
                return False
        del steps  # its memory, before the next one's
    return True


def begin(member: Run, data: Path, device: Device, processes: Ranks, options: LargeOptions) -> ShardedSteps:
    """The run as it is before its first batch. What is missing is a UserError, before any process waits for another."""
    images = load_large(member.spec.column.dataset, data)
    return ShardedSteps(member, images, device, processes, data, options.per_device, options.workers)


def local_device(options: LargeOptions, processes: Ranks) -> Device:
    """The device of this process: under torchrun on CUDA, each has the GPU of its number."""
    name = options.device
    if processes.world > 1 and name and name.startswith("cuda:"):
        raise UserError(f"--device {name} is one GPU, but torchrun started {processes.world} processes; use --device cuda, and "
                        "CUDA_VISIBLE_DEVICES to choose.")
    if name == "cuda" or (name is None and torch.cuda.is_available()):
        name = f"cuda:{processes.local}"
    return choose_device(name, options.precision, options.compile)
