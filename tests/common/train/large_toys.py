"""Runs on the miniature that train in a second, and the cases on which two processes are compared with one."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from common.data.lists import load_large
from common.methods.losses import softmax_cross_entropy
from common.methods.method import Method, run_spec
from common.plan import Run
from common.spec import Column, LargeProtocol
from common.train.device import Device
from common.train.distributed import Ranks, broadcast_tensors
from common.train.sharded import ShardedSteps
from papers.catalog import PAPERS

ROOT = Path(__file__).resolve().parents[3]
COLUMN = Column("miniature", "lt", 35, "resnet10w8")
PROTOCOL = LargeProtocol(epochs=2, batch_size=33, rate=0.1, momentum=0.9, weight_decay=0.0002, warmup_epochs=1, decay_epochs=(),
                         decay_factor=0.1, drop_last=False, batch_norm="synchronised")
SECOND = replace(PROTOCOL, trains="head", schedule="cosine")
ADAM = replace(PROTOCOL, optimiser="adam", rate=0.01)
LONG = replace(PROTOCOL, epochs=200)  # for rows in which something begins late
DEVICE = Device("cpu", "float64", False)
CE = Method("ce", "written", softmax_cross_entropy)


# what kills are tested on: seven batches an epoch, and an optimiser that counts its steps
LONGER = replace(PROTOCOL, batch_size=124, batch_norm="device", decay_epochs=(1,), optimiser="adam", rate=0.01)


def quiet(pack: Sequence[Run]) -> AbstractContextManager:
    """An observer that shows nothing."""
    return nullcontext(lambda progress: None)


def member(method: Method, folder: Path, protocol: LargeProtocol = PROTOCOL, seed: int = 0) -> Run:
    """A run whose record goes where a paper's would, under `folder` in the place of `papers/`."""
    return Run(run_spec(COLUMN, protocol, method, seed), method, folder / "toy" / "results" / "quick" / COLUMN.name)


def row(paper: str, label: str, column: str = "cifar100-lt-100") -> Method:
    """A row of a paper's table, by its label."""
    owner = next(p for p in PAPERS if p.name == paper)
    place = next(c for c in owner.columns["paper"] if c.name == column)
    return next(m for m in owner.methods(place, owner.protocols["paper"]) if m.label == label)


@dataclass(frozen=True)
class Case:
    """Two batches of a method in `epoch`. per_device: of the two processes, and of the one that they are compared with.

    side: pixels of an image; at 64 a single one has statistics.
    """

    method: Method
    protocol: LargeProtocol = PROTOCOL
    epoch: int = 0
    per_device: tuple[int | None, int | None] = (None, None)
    side: int = 32


def cases() -> dict[str, Case]:
    gcl = row("gcl", "gcl@released")
    return {
        "ce": Case(CE),
        "deferred weights": Case(row("mm", "ldam-drw@released"), LONG, epoch=180),
        "kps": Case(row("kps", "kps@written"), LONG, epoch=190),
        "fbl": Case(row("fbl", "fbl@released"), epoch=150),
        "mixup and noise": Case(gcl.first_stage),
        "second stage": Case(gcl, SECOND, per_device=(10, None)),
        "second stage, moving": Case(gcl, replace(SECOND, moving_statistics=True)),
        "gaussian": Case(row("icu", "icu@written"), ADAM),
        "features as constants": Case(row("icu", "icu[regulariser=detached]@written", "cifar10-lt-100"), ADAM),
        "two heads": Case(row("two_head", "two-head-full@written"), LONG, epoch=180),
        "bilateral": Case(row("gcl", "bbn@released"), epoch=50),
        "contrast": Case(row("gcl", "hybrid-sc@released"), epoch=50),
        "last block": Case(CE, replace(PROTOCOL, trains="last")),
        "device": Case(CE, replace(PROTOCOL, batch_norm="device", drop_last=True), per_device=(None, 17)),
        "empty share": Case(CE, replace(PROTOCOL, batch_size=51), side=64),  # the last batch is one image
        "empty share, device": Case(CE, replace(PROTOCOL, batch_size=51, batch_norm="device"), per_device=(None, 26), side=64),
    }


def train_steps(case: Case, data: Path, processes: Ranks, per_device: int | None) -> dict[str, Tensor]:
    """The state after the last two batches of an epoch, which may be smaller, and the sum of their losses."""
    planned, images = member(case.method, data, case.protocol), load_large(COLUMN.dataset, data)
    steps = ShardedSteps(planned, images, DEVICE, processes, data, per_device, workers=0)
    steps.facts = replace(steps.facts, side=case.side)
    steps.get_ready()
    pack = steps.pack
    steps.begin_epoch(case.epoch)
    for batch in steps.train_batches(case.epoch, len(pack.batch_sizes) - 2):
        steps.train_batch(case.epoch, batch)
    broadcast_tensors(processes, [*pack.net.buffers(), *pack.heads.buffers(), pack.loss_sum])
    found = {name: tensor.clone() for name, tensor in pack.run_state(0).items()} | {"loss": pack.loss_sum}
    if case.protocol == PROTOCOL and case.method is CE:
        tally, = steps.evaluate(stride=1)
        found |= {"hits": tally.hits, "tested": tally.tested, "near": tally.counts.near, "bins": tally.bins, "norms": tally.norms}
    return found


def torchrun(arguments: Sequence[object]) -> subprocess.CompletedProcess:
    """`torchrun arguments`, in the repository, on two processes of which each may die once."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    return subprocess.run([*command, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
