"""A few steps of a pack, timed: what a device that has left no record is expected to need."""

import time
from collections.abc import Sequence

from common.cost import BACKWARD, training_images, work
from common.data.sets import SETS, Images
from common.method import Planned
from common.train.loop import evaluation_stride
from common.train.pack import Device, Pack
from common.train.record import device_name

STEPS = {True: 20, False: 1}  # timed steps on CUDA, on a CPU


def probe(members: Sequence[Planned], images: Images, device: Device) -> dict:
    """Train a few steps that nobody keeps. Returns the row that `common.cost.speeds` reads from a file of probes.

    The seconds are those of the whole run: getting ready (which compiles), all steps, all evaluations.
    """
    begun = time.perf_counter()
    pack = Pack(members, images, device)
    pack.begin_epoch(0)
    size = pack.protocol.batch_size
    batches = pack.batches()[:max(1, pack.batch_sizes.count(size))]
    pack._run_step(batches[0])
    _drain(pack)
    ready, steps = time.perf_counter() - begun, STEPS[device.cuda]
    begun = time.perf_counter()
    for step in range(steps):
        pack._run_step(batches[step % len(batches)])
    _drain(pack)
    each = (time.perf_counter() - begun) / steps
    p, trained = pack.protocol, training_images(pack.column)
    tested = sum(SETS[pack.column.dataset].test / evaluation_stride(pack, epoch) for epoch in range(p.epochs))
    seconds = ready + each * trained / size * (p.epochs + tested / (BACKWARD * trained))
    return {"name": "probe", "backbone": pack.column.backbone, "runs": pack.runs,
            "seconds_per_work": seconds / pack.runs / work(pack.column, p, pack.streams)}


def place_of(device: Device) -> dict[str, str]:
    """Name and precision of a device, as records and files of probes have them."""
    return {"device": device_name(device), "precision": device.precision}


def _drain(pack: Pack) -> None:
    """Wait for the device."""
    pack.loss_sum.cpu()
