"""Unfinished work: where it is kept, how a pack's state is saved, and how a pack goes on from it, on all of its processes."""

import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.spec import canonical_json, spec_key
from common.stopping import is_asked
from common.store import write_atomically
from common.train.distributed import broadcast_from_rank0, broadcast_tensors
from common.train.pack import take_run
from common.train.record import Curves
from common.train.start import load_start
from common.train.steps import Steps
from common.train.tally import BestAnswers

DEADLINE_CHECK_EVERY = 10  # batches between two looks at the clock of rank 0, where there is a deadline
SAVES = {"cpu": 30.0, "cuda": 300.0}  # seconds between two states of a pack: a GPU waits for each
LAST = 30.0  # seconds before a deadline in which one more is saved, as the process may be killed at it
STATE = {"identities", "epoch", "seconds", "ended", "curves", "precision", "cuda", "path", "threads", "bounds",
         "tensors", "best"}
WITHIN = {"batch": 0, "images": 0, "loss_sum": None}  # of a position within an epoch; a state that lacks it is of an epoch's end


def no_mirror(name: str, content: bytes) -> None:
    """Resume states stay where they are written."""


@dataclass(frozen=True)
class Workspace:
    """Where unfinished work is kept, out of git and out of DVC's sight. save_seconds: the least time between two saves; None
    for what SAVES says of the device."""

    folder: Path
    save_seconds: float | None
    deadline: float = math.inf  # of time.monotonic(); a pack pauses before the epoch that would pass it
    mirror: Callable[[str, bytes], None] = no_mirror  # gets name and content of every resume state, for another machine

    def resume_file(self, identities: Sequence[str]) -> Path:
        return self.folder / "resume" / f"{spec_key({'identities': list(identities)})}.pt"

    def must_save(self, cuda: bool, saved: float, now: float) -> bool:
        """Whether a state is due `now` where the last one is of `saved`, both of time.monotonic()."""
        every = SAVES["cuda" if cuda else "cpu"] if self.save_seconds is None else self.save_seconds
        return now - saved >= every or saved < self.deadline - LAST <= now

    def states(self) -> dict[Path, dict]:
        """Every resume state that is here, also where an older version left it; tensors are read when they are used."""
        states = {}
        for file in sorted((self.folder / "resume").rglob("*.pt")):
            with suppress(FileNotFoundError):  # another worker has just finished that pack
                states[file] = read_state(file)
        return states

    def log(self, **event) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / "log.jsonl", "ab") as file:
                file.write(canonical_json({"time": round(time.time(), 3), **event}) + b"\n")
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written ({error.strerror}); unfinished work is kept there: make it "
                            "writable, or free some space.") from None


@dataclass
class Course:
    """How far a pack has come, and what its epochs have left: so many epochs are done, so many batches of the next one, on so
    many images. seconds: of all its devices, before this start."""

    curves: Curves
    best: BestAnswers
    epoch: int = 0
    batch: int = 0
    images: int = 0
    seconds: float = 0.0


@dataclass
class Keeper:
    """Saves the state of a pack when it is due, and says when the pack has to pause."""

    steps: Steps
    work: Workspace
    course: Course
    begun: float = field(default_factory=time.monotonic)
    took: list[float] = field(default_factory=list)  # seconds of each epoch

    def __post_init__(self):
        self.saved = self.since = self.begun  # the last state, and the present epoch

    def seconds(self, now: float) -> float:
        """Of all devices, until now."""
        return self.course.seconds + (now - self.begun) * self.steps.processes.world

    def pauses_within_epoch(self) -> bool:
        """After each batch of steps that are pausable: whether the deadline has come. The last batch is the epoch's end."""
        now, late, last = time.monotonic(), self._is_late(), len(self.steps.pack.batch_sizes)
        asked = self.steps.processes.first and is_asked()  # the others wait in the next exchange, and end with rank 0
        if late or asked or (self.work.must_save(self.steps.pack.device.cuda, self.saved, now) and self.course.batch < last):
            self.save(now)
        if asked:
            raise KeyboardInterrupt
        return late

    def _is_late(self) -> bool:
        """Whether the deadline has passed on rank 0's clock; the processes agree on it every DEADLINE_CHECK_EVERY batches."""
        if self.course.batch % DEADLINE_CHECK_EVERY or self.work.deadline == math.inf:
            return False
        return broadcast_from_rank0(self.steps.processes, lambda: time.monotonic() > self.work.deadline)

    def pauses_after_epoch(self) -> bool:
        """Whether this process is asked to end, or the deadline would come before the next epoch ends, where that cannot be left
        within."""
        now = time.monotonic()
        self.took.append(now - self.since)
        ends = now + max(self.took[1:] or self.took)  # the first epoch compiles
        late = not self.steps.pausable and (is_asked() or ends > self.work.deadline)
        if late or self.steps.pausable or self.work.must_save(self.steps.pack.device.cuda, self.saved, now):
            self.save(now)
        self.since = time.monotonic()
        return late

    def save(self, now: float) -> None:
        if self.steps.processes.first:
            save_state(self.steps, self.course, self.seconds(now), self.work)
        self.saved = time.monotonic()

    def discard(self) -> None:
        """Delete the pack's own state, and what a process that was killed while writing left."""
        file = state_file(self.steps, self.work)
        for left in (file, *file.parent.glob(f".{file.name}.*")) if self.steps.processes.first else ():
            left.unlink(missing_ok=True)


def state_file(steps: Steps, work: Workspace) -> Path:
    return work.resume_file([m.identity for m in steps.pack.members])


def save_state(steps: Steps, course: Course, seconds: float, work: Workspace) -> None:
    """Write all that the next start needs, also of another number of processes; draws need no state, they are made from (seed,
    purpose, epoch)."""
    buffer, pack, file = io.BytesIO(), steps.pack, state_file(steps, work)
    state = {
        "identities": [m.identity for m in pack.members], "epoch": course.epoch, "batch": course.batch, "images": course.images,
        "seconds": seconds / pack.runs, "ended": pack.ended, "loss_sum": pack.loss_sum.cpu(),
        "curves": json.dumps(vars(course.curves)), "precision": pack.device.precision, "cuda": pack.device.cuda,
        "path": steps.path, "threads": steps.threads, "bounds": pack.bounds,
        "tensors": {n: t.cpu() for n, t in pack.state().items()}, "best": course.best.tensors(),
    }
    torch.save(state, buffer)
    write_atomically(file, buffer.getvalue())
    work.mirror(file.name, buffer.getvalue())


def read_state(file: Path) -> dict[str, Any]:
    """A resume state; its tensors are read when they are used. A damaged file is a UserError."""
    try:
        state = torch.load(file, weights_only=True, mmap=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a damaged file makes the unpickler raise
        raise UserError(f"{file} is damaged ({type(error).__name__}); delete it, and its runs start again.") from None
    if not isinstance(state, dict) or set(state) - set(WITHIN) != STATE:
        raise UserError(f"{file} was written by another version; delete it, and its runs start again.")
    return WITHIN | state


def find_state(work: Workspace, identities: Sequence[str]) -> Path | None:
    """The resume state that holds all of these runs and got furthest: their own, or that of a pack which they were part of."""
    candidates = [(state["epoch"], state["batch"], file) for file, state in work.states().items()
                  if set(identities) <= set(state["identities"])]
    return max(candidates)[2] if candidates else None


def restore(steps: Steps, work: Workspace) -> Course:
    """Bring the pack on all processes to where its state on rank 0 is, or to its start, and make it ready for the next batch."""
    pack = steps.pack

    def read() -> tuple[Course, list[int | None], bool]:
        file = find_state(work, [m.identity for m in pack.members])
        if not file:
            load_start(steps)
        return load_state(steps, file) if file else Course(Curves(pack.runs), BestAnswers(pack.runs)), pack.ended, bool(file)

    course, pack.ended, resumed = broadcast_from_rank0(steps.processes, read)
    broadcast_tensors(steps.processes, [*pack.state().values(), pack.loss_sum])
    pack.set_steps(course.epoch, course.batch)
    steps.get_ready(resumed)
    return course


def load_state(steps: Steps, file: Path) -> Course:
    """Restore the pack's runs; returns how far they had come."""
    state, pack = read_state(file), steps.pack
    was = ("cuda" if state["cuda"] else "cpu", state["precision"])
    if was != ("cuda" if pack.device.cuda else "cpu", pack.device.precision):
        raise UserError(f"{file} was begun in {was[1]} on {was[0]}; go on with --device {was[0]} --precision {was[1]}, or delete "
                        "it to start again.")
    follow_path(steps, state, file)
    saved, course = Curves(len(state["identities"])), Course(Curves(pack.runs), BestAnswers(pack.runs))
    vars(saved).update(json.loads(state["curves"]))
    places = [state["identities"].index(m.identity) for m in pack.members]
    course.best.load(state["best"], places)
    for run, place in enumerate(places):
        pack.load_run_state(run, take_run(state["tensors"], place, state["bounds"]))
    for name, value in vars(saved).items():
        setattr(course.curves, name, value if name in Curves.SHARED else [value[place] for place in places])
    pack.ended = [state["ended"][place] for place in places]
    if state["batch"]:
        pack.loss_sum.copy_(state["loss_sum"][places])
    course.epoch, course.batch, course.images = state["epoch"], state["batch"], state["images"]
    course.seconds = state["seconds"] * pack.runs
    return course


def follow_path(steps: Steps, state: Mapping[str, Any], file: Path) -> None:
    """Go on with the kind of passes and the threads that the state was begun with: its bits depend on them. Else a UserError."""
    if state["path"] == "eager":
        steps.go_eager()
    elif steps.path == "eager":
        raise UserError(f"{file} was begun with the C++ step, which this pack cannot have here; go on where it can be built, and "
                        "with the run by itself, or delete it to start again.")
    elif state["threads"] != steps.threads:
        raise UserError(f"{file} was begun with {state['threads']} thread(s), and there are {steps.threads}; go on with "
                        f"OMP_NUM_THREADS={state['threads']}, or delete it to start again.")
