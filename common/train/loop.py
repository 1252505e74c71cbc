"""The one training loop: epochs of a pack, evaluation, resume state, records."""

import io
import json
import math
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from common.data.sets import Images
from common.errors import UserError
from common.models.backbones import backbone
from common.models.memory import FROM_FIRST, class_means
from common.plan import Run
from common.predictions import Answers, Predictions, write_predictions
from common.spec import canonical_json, spec_key
from common.stopping import is_asked
from common.store import has_diverged, record_files, save_record, weights_metadata, write_atomically
from common.train.checks import check_first_batch
from common.train.clusters import cluster_counts, divide_by_features
from common.train.pack import TEST_BATCH, Device, Pack, take_run
from common.train.record import Curves, make_diverged_record, make_record, surroundings
from common.train.tally import BestAnswers, Tally

WATCH = 10  # before the rate first decays an epoch is tested on every tenth test image: the whole set costs a quarter of an epoch
SAVES = {"cpu": 30.0, "cuda": 300.0}  # seconds between two states of a pack: a GPU waits for each
LAST = 30.0  # seconds before a deadline in which one more is saved, as the process may be killed at it
STATE = {"identities", "epoch", "seconds", "ended", "curves", "precision", "cuda", "path", "threads", "bounds",
         "tensors", "best"}


@dataclass(frozen=True)
class Progress:
    """What an observer is told after each epoch."""

    epoch: int
    epochs: int
    loss: float
    best: float
    worst: float


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
        """Every resume state that is here; tensors are read when they are used."""
        found = {}
        for file in sorted((self.folder / "resume").glob("*.pt")):
            with suppress(FileNotFoundError):  # another worker has just finished that pack
                found[file] = read_state(file)
        return found

    def log(self, **event) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / "log.jsonl", "ab") as file:
                file.write(canonical_json({"time": round(time.time(), 3), **event}) + b"\n")
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written ({error.strerror}); unfinished work is kept there: make it "
                            "writable, or free some space.") from None


def evaluation_stride(pack: Pack, epoch: int) -> int:
    """1 (the whole test set) from the first decay on and in the last epoch, else every WATCH-th image."""
    first = min(pack.protocol.decay_epochs, default=0)
    return 1 if epoch >= first or epoch + 1 == pack.protocol.epochs else WATCH


def load_start(pack: Pack) -> None:
    """Give runs that start from another run its backbone, and its head where the method keeps it, else that stays as
    drawn. A memory head begins with that run's classifier inside it, and with the class means of its features. A start that
    diverged ends the run too."""
    for run, member in enumerate(pack.members):
        if start := member.start:
            path = start.checkpoint
            if not path.exists():
                if has_diverged(start.identity, record_files(member.root)):
                    pack.stop_run(run, 0)
                    continue
                raise UserError(f"{path} is missing: {member.label} starts from {start.label}, so train that first.")
            state = load_file(path, device=str(pack.rate.device))
            if member.method.takes == "clusters":
                give_clusters(pack, run, state)
                continue
            parts = ("backbone.", "head.") if member.method.head.keep else ("backbone.",)
            mine = pack.run_state(run)
            if member.method.head.kind == "memory":
                state |= {f"head.{to}": state[f"head.{name}"] for to, name in FROM_FIRST.items()}
                parts = (*parts, *(f"head.{to}" for to in FROM_FIRST))
            pack.load_run_state(run, {n: t for n, t in state.items() if n.startswith(parts) and n in mine})
    if any(m.start and m.method.head.kind == "memory" for m in pack.members):
        give_centroids(pack)


def give_centroids(pack: Pack) -> None:
    """Let memory heads begin with the class means of the features that their runs' backbones have now."""
    means = class_means(pack.plain_features(), len(pack.feed.counts))
    for group, head in zip(pack.groups, pack.heads, strict=True):
        if group.method.head.kind == "memory":
            with torch.no_grad():
                head.centroids.copy_(means[group.first:group.stop])


def give_clusters(pack: Pack, run: int, state: Mapping[str, Tensor]) -> None:
    """Divide the training images of a run by the features that the weights `state` of its start give them."""
    member, facts = pack.members[run], pack.feed.facts
    method, first = member.method, member.method.starts_from
    net = backbone(pack.column.backbone, 1, facts.channels, first.network, facts.side, first.adapter)
    net = net.to(pack.rate.device, pack.device.dtype).to(memory_format=torch.channels_last).eval()
    for name, tensor in net.state_dict().items():
        tensor.copy_(state[f"backbone.{name}"])
    with torch.no_grad(), pack.autocast():
        parts = torch.arange(pack.feed.size, device=pack.rate.device).split(TEST_BATCH)
        features = torch.cat([net(pack.feed.plain("train", part, 1))[0].float().cpu() for part in parts])
    each = cluster_counts(method, pack.feed.counts)
    found = divide_by_features(pack.feed.cpu_labels, each, features, method.clustering, member.spec.seed)
    pack.load_run_state(run, {"head.clusters": found[None]})


def test_only(pack: Pack, curves: Curves, best: BestAnswers) -> list[Tally]:
    """What a setting of no epochs does: the whole test set, once."""
    tallies = pack.evaluate()
    curves.add(0, 0, [math.nan] * pack.runs, tallies)
    best.add([tally.answered() for tally in tallies], torch.cat([tally.accuracy() for tally in tallies]).cpu())
    return tallies


def train_pack(members: Sequence[Run], images: Images, device: Device, work: Workspace,
               observe: Callable[[Progress], None] = lambda progress: None) -> bool:
    """Train the pack from where it stopped, and leave a record and a checkpoint for every run.

    Returns False if the workspace's deadline ended it early; the next call then goes on from there. A call trains at
    least one epoch, so it always gets further.
    """
    pack = Pack(members, images, device)
    try:
        return train_on(pack, work, observe)
    finally:
        pack.close()


def train_on(pack: Pack, work: Workspace, observe: Callable[[Progress], None]) -> bool:
    """Train the epochs that the pack still lacks, as `train_pack` says."""
    identities = [m.identity for m in pack.members]
    file, begun_in = work.resume_file(identities), find_state(work, identities)
    epoch, curves, seconds, best = 0, Curves(pack.runs), 0.0, BestAnswers(pack.runs)
    if begun_in:
        epoch, curves, seconds = load_state(pack, begun_in, best)
    else:
        load_start(pack)
        check_first_batch(pack)
    begun, took = time.monotonic(), []
    tallies = [] if pack.protocol.epochs else test_only(pack, curves, best)
    saved = before = begun
    while epoch < pack.protocol.epochs and any(pack.alive):
        tallies = run_epoch(pack, epoch, curves, best)
        epoch += 1
        tell(pack, epoch, curves, work, observe)
        now = time.monotonic()
        took.append(now - before)
        late = is_asked() or now + max(took[1:] or took) > work.deadline  # the first epoch compiles
        if epoch < pack.protocol.epochs and (late or work.must_save(pack.device.cuda, saved, now)):
            save_state(pack, file, epoch, curves, best, seconds + now - begun, work)
            if late:
                return False
            saved = time.monotonic()
        before = time.monotonic()
    finish(pack, curves, best, tallies, seconds + time.monotonic() - begun)
    file.unlink(missing_ok=True)
    return True


def run_epoch(pack: Pack, epoch: int, curves: Curves, best: BestAnswers) -> list[Tally]:
    """Train and test one epoch; a run whose loss has left the finite range is stopped."""
    losses = pack.train_epoch(epoch).tolist()
    for run, loss in enumerate(losses):
        if pack.alive[run] and not math.isfinite(loss):
            pack.stop_run(run, epoch)
    stride = evaluation_stride(pack, epoch)
    tallies = pack.evaluate(stride)
    curves.add(epoch, pack.protocol.epochs, losses, tallies)
    if stride == 1:
        best.add([tally.answered() for tally in tallies], torch.cat([tally.accuracy() for tally in tallies]).cpu())
    return tallies


def tell(pack: Pack, epoch: int, curves: Curves, work: Workspace, observe: Callable[[Progress], None]) -> None:
    """Report the epoch just finished to the log and to the observer."""
    alive = [r for r in range(pack.runs) if pack.alive[r]] or [0]
    accuracies = [curves.accuracy[r][-1] for r in alive]
    loss = sum(curves.loss[r][-1] for r in alive) / len(alive)
    observe(Progress(epoch, pack.protocol.epochs, loss, max(accuracies), min(accuracies)))
    runs = {m.spec.key: [None if not pack.alive[r] else curves.loss[r][-1], curves.accuracy[r][-1]]
            for r, m in enumerate(pack.members)}
    work.log(column=pack.column.name, epoch=epoch, loss_and_accuracy=runs)


def save_state(pack: Pack, file: Path, epoch: int, curves: Curves, best: BestAnswers, seconds: float, work: Workspace) -> None:
    """Write all that the next start needs; draws need no state, they are made from (seed, purpose, epoch)."""
    buffer = io.BytesIO()
    state = {
        "identities": [m.identity for m in pack.members], "epoch": epoch, "seconds": seconds / pack.runs, "ended": pack.ended,
        "curves": json.dumps(vars(curves)), "precision": pack.device.precision, "cuda": pack.device.cuda,
        "path": pack.path, "threads": pack.threads, "bounds": pack.bounds,
        "tensors": {n: t.cpu() for n, t in pack.state().items()}, "best": best.tensors(),
    }
    torch.save(state, buffer)
    write_atomically(file, buffer.getvalue())
    work.mirror(file.name, buffer.getvalue())


def read_state(file: Path) -> dict:
    """A resume state; its tensors are read when they are used. A damaged file is a UserError."""
    try:
        state = torch.load(file, weights_only=True, mmap=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a damaged file makes the unpickler raise
        raise UserError(f"{file} is damaged ({type(error).__name__}); delete it, and its runs start again.") from None
    if not isinstance(state, dict) or set(state) != STATE:
        raise UserError(f"{file} was written by another version; delete it, and its runs start again.")
    return state


def find_state(work: Workspace, identities: Sequence[str]) -> Path | None:
    """The resume state that holds all of these runs and got furthest: their own, or that of a pack which they were part of."""
    found = [(state["epoch"], file) for file, state in work.states().items() if set(identities) <= set(state["identities"])]
    return max(found)[1] if found else None


def load_state(pack: Pack, file: Path, best: BestAnswers) -> tuple[int, Curves, float]:
    """Restore the pack's runs and their best answers; returns the epochs done, the curves and the seconds spent."""
    state = read_state(file)
    was = ("cuda" if state["cuda"] else "cpu", state["precision"])
    if was != ("cuda" if pack.device.cuda else "cpu", pack.device.precision):
        raise UserError(f"{file} was begun in {was[1]} on {was[0]}; go on with --device {was[0]} --precision {was[1]}, or delete "
                        "it to start again.")
    follow_path(pack, state, file)
    saved, curves = Curves(len(state["identities"])), Curves(pack.runs)
    vars(saved).update(json.loads(state["curves"]))
    places = [state["identities"].index(m.identity) for m in pack.members]
    best.load(state["best"], places)
    for run, place in enumerate(places):
        pack.load_run_state(run, take_run(state["tensors"], place, state["bounds"]))
    for name, value in vars(saved).items():
        setattr(curves, name, value if name in Curves.SHARED else [value[place] for place in places])
    pack.ended = [state["ended"][place] for place in places]
    pack.set_steps(state["epoch"])
    return state["epoch"], curves, state["seconds"] * pack.runs


def follow_path(pack: Pack, state: Mapping, file: Path) -> None:
    """Go on with what the state was begun with: its bits depend on that. Where it cannot be had, a UserError."""
    if state["path"] == "eager":
        pack.go_eager()
    elif pack.path == "eager":
        raise UserError(f"{file} was begun with the C++ step, which this pack cannot have here; go on where it can be built, and "
                        "with the run by itself, or delete it to start again.")
    elif state["threads"] != pack.threads:
        raise UserError(f"{file} was begun with {state['threads']} thread(s), and there are {pack.threads}; go on with "
                        f"OMP_NUM_THREADS={state['threads']}, or delete it to start again.")


def finish(pack: Pack, curves: Curves, best: BestAnswers, tallies: Sequence[Tally], seconds: float) -> None:
    """Leave the predictions, then of every run a checkpoint and a record; `seconds` is shared equally. A record that is here
    already stays: its run was trained again for its weights only."""
    made = {**surroundings(pack), "path": pack.path, "seconds": round(seconds / pack.runs, 3)}
    have = record_files(pack.members[0].root)
    whole = {name: tensor.cpu() for name, tensor in pack.state().items()}  # a device answers each question slowly
    states = [take_run(whole, run, pack.bounds) for run in range(pack.runs)]
    for run, state in enumerate(states):
        if pack.alive[run] and not all(t.isfinite().all() for t in state.values()):
            pack.stop_run(run, pack.protocol.epochs - 1)  # the very last step spoiled the weights, after the last loss
    answered = keep_predictions(pack, best, tallies, have)
    for run, (member, state) in enumerate(zip(pack.members, states, strict=True)):
        if pack.alive[run]:
            tensors = {n: t.contiguous() for n, t in state.items() if n.startswith(("backbone.", "head."))}
            write_atomically(member.checkpoint, save(tensors, weights_metadata(key=member.spec.key, label=member.label)))
        if member.identity in have:
            continue
        if pack.alive[run]:
            record = make_record(pack, run, curves, tallies[pack.group_of(run)], made)
            save_record(member.folder, record | {"predictions": answered[member.identity]})
        else:
            save_record(member.folder, make_diverged_record(pack, run, curves, made))


def keep_predictions(pack: Pack, best: BestAnswers, tallies: Sequence[Tally], have: Container[str]) -> dict[str, dict[str, str]]:
    """Write a file of predictions into every folder that gets records, of the runs that get one. Returns by identity what the
    records hold of it."""
    answered, found = [tally.answered() for tally in tallies], {}
    by_folder: dict[Path, list[int]] = {}
    for run, member in enumerate(pack.members):
        if pack.alive[run] and member.identity not in have:
            by_folder.setdefault(member.folder, []).append(run)
    for folder, runs in by_folder.items():
        kept = {}
        for run in runs:
            group = pack.group_of(run)
            labels = torch.cat(tallies[group].labels).cpu().numpy()
            row = run - pack.groups[group].first
            kept[pack.members[run].spec.key] = predictions_of(labels, run, best, answered[group], row)
        fields = write_predictions(folder, kept)
        found |= {pack.members[run].identity: fields[pack.members[run].spec.key] for run in runs}
    return found


def predictions_of(labels: np.ndarray, run: int, best: BestAnswers, answered: Sequence[Tensor], row: int) -> Predictions:
    """What a run answered to the test images in its last epoch (a row of what the tally of its group has) and in its best."""
    last, confidence, *plain = (part[row].numpy() for part in answered)
    adjusted, unadjusted = (part[run].numpy() for part in best.predicted)
    return Predictions(labels, Answers(last, adjusted, confidence),
                       Answers(plain[0], unadjusted, plain[1]) if plain else None)
