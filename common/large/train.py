"""From missing runs on large sets to their records: one run after another, on all processes that torchrun started.

    torchrun --standalone --nproc-per-node=8 --max-restarts=3 -m papers.<paper>.replicate train --column imagenet-lt

The same without torchrun is one process. A state is saved after every epoch and within it every `save_seconds`; when a
process is lost, torchrun starts all of them again and they go on from there.
"""

import io
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save

from common.errors import UserError
from common.large.engine import WORKERS, LargeRun
from common.large.lists import load_large
from common.large.processes import Processes, from_first, join, leave, share_from_first, together
from common.large.record import LargeCurves, LargeTally, large_surroundings, make_large_record
from common.plan import Run, missing_runs
from common.predictions import write_predictions
from common.stopping import is_asked
from common.store import drop_twins, record_files, save_record, weights_metadata, write_atomically
from common.train.loop import Progress, Workspace, evaluation_stride, load_start, predictions_of
from common.train.pack import Device
from common.train.record import make_diverged_record
from common.train.tally import BestAnswers
from common.train.work import Observe, Observer, choose_device

LOOK = 10  # batches between two looks at the clock of rank 0, where there is a deadline
FIELDS = {"identity", "best", "epoch", "batch", "seconds", "images", "ended", "loss_sum", "curves", "precision", "cuda",
          "tensors"}


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


@dataclass
class Place:
    """How far a run has come: epochs done, batches done of the next one, device-seconds spent, and images trained on."""

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    images: int = 0


def train_large(planned: Sequence[Run], data: Path, work: Workspace, options: LargeOptions, observer: Observer) -> bool:
    """Train every planned run that has no record. Every process of torchrun calls it. Returns False if the deadline came first.

    What a user did wrong is a UserError on one process; the others then end quietly with exit code 2.
    """
    processes = join()
    done = train_missing(processes, planned, data, work, options, observer)
    from_first(processes, lambda: None)  # nobody leaves before rank 0 has written
    leave()
    return done


def train_missing(processes: Processes, planned: Sequence[Run], data: Path, work: Workspace, options: LargeOptions,
                  observer: Observer) -> bool:
    """The runs of all processes, one after another. Returns False if the deadline came first."""
    device = together(processes, lambda: local_device(options, processes))
    missing = from_first(processes, lambda: [m.identity for m in missing_runs(planned, record_files(planned[0].root))])
    found = {m.identity: m for item in planned for m in item.chain}
    if processes.first:
        drop_twins(planned[0].root, found)
        have = record_files(planned[0].root)
        drop_finished(work, [name for name in found if name in have and name not in missing])
    for member in map(found.__getitem__, missing):
        run = together(processes, partial(begin, member, data, device, processes, options))
        with observer([member]) if processes.first else nullcontext(lambda progress: None) as observe:
            if not train_run(run, work, observe):
                return False
        del run  # its memory, before the next one's
    return True


def drop_finished(work: Workspace, identities: Sequence[str]) -> None:
    """Delete the states of runs that are not to be trained, and what a process that was killed while writing one left."""
    folder = work.folder / "resume" / "large"
    for left in (left for name in identities for left in (*folder.glob(f"{name}.pt"), *folder.glob(f".{name}.pt.*"))):
        left.unlink(missing_ok=True)


def begin(member: Run, data: Path, device: Device, processes: Processes, options: LargeOptions) -> LargeRun:
    """The run as it is before its first batch. What is missing is a UserError, before any process waits for another."""
    images = load_large(member.spec.column.dataset, data)
    return LargeRun(member, images, device, processes, data, options.per_device, options.workers)


def local_device(options: LargeOptions, processes: Processes) -> Device:
    """The device of this process: under torchrun on CUDA, each has the GPU of its number."""
    name = options.device
    if processes.world > 1 and name and name.startswith("cuda:"):
        raise UserError(f"--device {name} is one GPU, but torchrun started {processes.world} processes; use --device cuda, and "
                        "CUDA_VISIBLE_DEVICES to choose.")
    if name == "cuda" or (name is None and torch.cuda.is_available()):
        name = f"cuda:{processes.local}"
    return choose_device(name, options.precision, options.compile)


def train_run(run: LargeRun, work: Workspace, observe: Observe) -> bool:
    """Train one run from where it stopped and leave its record and checkpoint. Returns False if the deadline ended it early."""
    curves, place, file, best = LargeCurves(), Place(), state_file(work, run), BestAnswers(1)
    go_on(run, file, curves, place, best)
    run.distribute()
    tally, begun = None, time.monotonic()

    def spent() -> float:
        return place.seconds + (time.monotonic() - begun) * run.processes.world

    while place.epoch < run.protocol.epochs and all(run.alive):
        if not train_epoch(run, work, file, curves, place, best, spent):
            return False
        tally = end_epoch(run, curves, place.epoch, best)
        place.epoch, place.batch = place.epoch + 1, 0
        if run.processes.first:
            tell(run, place.epoch, curves, work, observe)
            if place.epoch < run.protocol.epochs and all(run.alive):
                save_state(run, file, curves, place, best, spent())
    if not run.protocol.epochs:
        tally = end_epoch(run, curves, 0, best)
    finish(run, curves, best, tally, spent(), place.images)
    if run.processes.first:
        for left in (file, *file.parent.glob(f".{file.name}.*")):  # and what a process that was killed while writing left
            left.unlink(missing_ok=True)
    return True


def train_epoch(run: LargeRun, work: Workspace, file: Path, curves: LargeCurves, place: Place, best: BestAnswers,
                spent: Callable[[], float]) -> bool:
    """Train the rest of an epoch; within it, rank 0 saves the state when it is time. False if the deadline came."""
    loss_sum = run.loss_sum.clone()
    run.begin_epoch(place.epoch)
    if place.batch:
        run.loss_sum.copy_(loss_sum)
    saved, last = time.monotonic(), len(run.batch_sizes)
    for batch in run.train_batches(place.epoch, place.batch):
        try:
            run.train_batch(place.epoch, batch)
        except torch.OutOfMemoryError:
            raise UserError(f"{run.per_device} images of {run.members[0].label} do not fit into the memory of {run.device.name}; "
                            f"give fewer at once, as in --per-device {max(1, run.per_device // 2)}.") from None
        place.batch += 1
        place.images += batch.span.size
        late = is_late(run.processes, work, place.batch)
        due = time.monotonic() - saved >= work.save_seconds and place.batch < last
        asked = run.processes.first and is_asked()  # the others wait in the next exchange, and end with rank 0
        if run.processes.first and (late or due or asked):
            save_state(run, file, curves, place, best, spent())
            saved = time.monotonic()
        if asked:
            raise KeyboardInterrupt
        if late:
            return False
    return True


def is_late(processes: Processes, work: Workspace, batch: int) -> bool:
    """Whether the deadline has passed on rank 0's clock; the processes agree on it every LOOK batches."""
    if batch % LOOK or work.deadline == math.inf:
        return False
    return from_first(processes, lambda: time.monotonic() > work.deadline)


def end_epoch(run: LargeRun, curves: LargeCurves, epoch: int, best: BestAnswers) -> LargeTally:
    """Test the epoch just trained; a run whose loss has left the finite range is stopped."""
    run.share()
    loss = run.mean_loss() if run.protocol.epochs else math.nan
    if run.protocol.epochs and not math.isfinite(loss):
        run.stop_run(0, epoch)
    stride = evaluation_stride(run, epoch)
    tally = run.evaluate(stride)
    curves.add_epoch(epoch, max(1, run.protocol.epochs), loss, tally)
    if stride == 1:
        best.add([tally.answered()], torch.tensor([tally.accuracy()], dtype=torch.float64))
    return tally


def tell(run: LargeRun, epoch: int, curves: LargeCurves, work: Workspace, observe: Callable[[Progress], None]) -> None:
    """Report the epoch just finished to the log and to the observer."""
    loss, accuracy = curves.loss[0][-1], curves.accuracy[0][-1]
    observe(Progress(epoch, run.protocol.epochs, loss, accuracy, accuracy))
    key = run.members[0].spec.key
    work.log(column=run.column.name, epoch=epoch, loss_and_accuracy={key: [loss if all(run.alive) else None, accuracy]})


# States


def state_file(work: Workspace, run: LargeRun) -> Path:
    return work.folder / "resume" / "large" / f"{run.members[0].identity}.pt"


def save_state(run: LargeRun, file: Path, curves: LargeCurves, place: Place, best: BestAnswers, seconds: float) -> None:
    """Write all that the next start needs, also of another number of processes; rank 0 alone calls it."""
    buffer = io.BytesIO()
    torch.save({
        "identity": run.members[0].identity, "best": best.tensors(), "epoch": place.epoch, "batch": place.batch,
        "seconds": seconds, "images": place.images,
        "ended": run.ended, "loss_sum": run.loss_sum.cpu(), "curves": json.dumps(vars(curves)), "precision": run.device.precision,
        "cuda": run.device.cuda, "tensors": {name: tensor.cpu() for name, tensor in run.run_state(0).items()},
    }, buffer)
    write_atomically(file, buffer.getvalue())


def read_state(file: Path, run: LargeRun) -> dict:
    """A state that this run can go on from; one that is damaged or of another kind of device is a UserError."""
    try:
        state = torch.load(file, weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged file makes the unpickler raise
        raise UserError(f"{file} is damaged ({type(error).__name__}); delete it, and its run starts again.") from None
    if not isinstance(state, dict) or set(state) != FIELDS or set(state["tensors"]) != set(run.run_state(0)):
        raise UserError(f"{file} was written by another version; delete it, and its run starts again.")
    was = "cuda" if state["cuda"] else "cpu", state["precision"]
    if was != ("cuda" if run.device.cuda else "cpu", run.device.precision):
        raise UserError(f"{file} was begun in {was[1]} on {was[0]}; go on with --device {was[0]} --precision {was[1]}, or delete "
                        "it to start again.")
    return state


def go_on(run: LargeRun, file: Path, curves: LargeCurves, place: Place, best: BestAnswers) -> None:
    """Bring the run on all processes to where its state on rank 0 is, or to its start."""
    def read() -> dict | None:
        if not file.exists():
            load_start(run)
            return {"ended": run.ended}
        state = read_state(file, run)
        run.load_run_state(0, state.pop("tensors"))
        run.loss_sum.copy_(state.pop("loss_sum"))
        return state

    state = from_first(run.processes, read)
    share_from_first(run.processes, [*run.state().values(), run.loss_sum])
    run.ended = state["ended"]
    if "epoch" in state:
        place.epoch, place.batch, place.seconds, place.images = (state[n] for n in ("epoch", "batch", "seconds", "images"))
        vars(curves).update(json.loads(state["curves"]))
        best.load(state["best"], [0])
        for counter in run.counters():
            counter.fill_(place.epoch * len(run.batch_sizes) + place.batch)


def finish(run: LargeRun, curves: LargeCurves, best: BestAnswers, tally: LargeTally | None, seconds: float, trained: int
           ) -> None:
    """Rank 0 leaves a checkpoint, the predictions, then the record. A record that is here already stays: its run was trained
    again for its weights only."""
    member, state = run.members[0], run.run_state(0)
    if all(run.alive) and not all(t.isfinite().all() for t in state.values()):
        run.stop_run(0, run.protocol.epochs - 1)  # the very last step spoiled the weights, after the last loss
    if not run.processes.first:
        return
    made = {**large_surroundings(run, trained / seconds), "seconds": round(seconds, 3)}
    if all(run.alive):
        tensors = {n: t.cpu().contiguous() for n, t in state.items() if n.startswith(("backbone.", "head."))}
        write_atomically(member.checkpoint, save(tensors, weights_metadata(key=member.spec.key, label=member.label)))
    if member.identity in record_files(member.root):
        return
    if not all(run.alive):
        save_record(member.folder, make_diverged_record(run, 0, curves, made))
        return
    found = predictions_of(run.images.test_labels, 0, best, tally.answered(), 0)
    fields = write_predictions(member.folder, {member.spec.key: found})
    save_record(member.folder, make_large_record(run, curves, tally, made) | {"predictions": fields[member.spec.key]})
