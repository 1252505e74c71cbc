"""What a finished pack leaves: of every run a checkpoint, its predictions, and a record of its last counts and its curves."""

import datetime
import platform
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from common.checkout import commit
from common.methods.digest import ENGINE
from common.predictions import Answers, Predictions, write_predictions
from common.store import SCHEMA, record_files, save_record, weights_metadata, write_atomically
from common.train.device import Device, device_name
from common.train.pack import Pack, take_run
from common.train.steps import Steps
from common.train.tally import BestAnswers, Tally

FEATURE_NORMS = 20  # how often, evenly over the epochs, the feature norms are stored, which are one number a class


class Curves:
    """What an epoch leaves of every run; it grows by `add` and travels in the resume state. top5: of large sets only."""

    SHARED = ("tested", "norm_epochs")  # one list for the pack; the others hold one a run

    def __init__(self, runs: int):
        self.loss: list[list[float]] = [[] for _ in range(runs)]
        self.accuracy: list[list[float]] = [[] for _ in range(runs)]
        self.top5: list[list[float]] = [[] for _ in range(runs)]
        self.norms: list[list[list[float]]] = [[] for _ in range(runs)]
        self.tested: list[int] = []
        self.norm_epochs: list[int] = []

    def add(self, epoch: int, epochs: int, losses: Sequence[float], tallies: Sequence[Tally]) -> None:
        """Add epoch number `epoch` (from 0) of `epochs`. losses [runs]; tallies in the order of the runs, one a group.
        Feature norms of a large set are thousands, and kept of the last epoch only."""
        accuracies = torch.cat([t.accuracy() for t in tallies]).tolist()
        self.tested.append(int(tallies[0].tested[0].sum()))
        every = epochs if tallies[0].large else max(1, epochs // FEATURE_NORMS)
        with_norms = epoch + 1 == epochs or (epoch + 1) % every == 0
        self.norm_epochs += [epoch] if with_norms else []
        means = [n for t in tallies for n in (t.norms / t.tested).tolist()] if with_norms else []
        for run, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True)):
            self.loss[run].append(round(float(loss), 6))
            self.accuracy[run].append(round(accuracy, 4))
            if tallies[0].large:
                self.top5[run].append(round(float(tallies[0].top5()[run]), 4))
            if with_norms:
                self.norms[run].append([float(f"{n:.4g}") if n == n else None for n in means[run]])  # None: no such class seen


def best_epoch(accuracy: Sequence[float], tested: Sequence[int]) -> int:
    """The first epoch of highest accuracy among those that saw the whole test set."""
    whole = max(tested)
    return max((e for e, n in enumerate(tested) if n == whole), key=lambda e: (accuracy[e], -e))


def make_record(steps: Steps, run: int, curves: Curves, tally: Tally, made: Mapping[str, Any]) -> dict[str, Any]:
    """The record of run `run`, whose group's last evaluation over the whole test set is `tally`. That of a large set has an empty
    confusion, and `top5` with the top-5 accuracy of the last epoch and of the best one in top-1 accuracy."""
    pack = steps.pack
    member, state, group = pack.members[run], pack.run_state(run), pack.groups[pack.group_of(run)]
    counts = pack.counts if member.method.task == "classes" else np.full(4, len(pack.labels))
    parts = tally.summary(run - group.first, counts)
    accuracy, top5 = curves.accuracy[run], curves.top5[run]
    best = best_epoch(accuracy, curves.tested)
    last = parts.pop("accuracy")
    norms = state["head.weight"][0].norm(dim=0).cpu().double().numpy()
    more: dict[str, Any] = {}
    if group.parent:  # a class has the mean of its clusters' norms
        each = np.bincount(group.parent)
        more = {"clusters": {"counts": each.tolist(), "norms": [float(f"{n:.5g}") for n in norms]}}
        norms = np.bincount(group.parent, norms) / each
    if tally.large:
        more |= {"top5": {"last": top5[-1], "best": top5[best]}}
    if member.method.keep_features and member.spec.seed == 0 and (features := steps.stored_features(run)):
        head = {n.removeprefix("head."): t[0].tolist() for n, t in state.items() if n.startswith("head.")}
        more |= {"features": features, "head": head}
    return common_fields(pack, run, curves, made) | parts | more | {
        "status": "done",
        "accuracy": {"last": last, "best": accuracy[best], "best_epoch": best},
        "norms": {"classifier": [float(f"{n:.5g}") for n in norms], "feature_epochs": list(curves.norm_epochs),
                  "feature": curves.norms[run]},
        "counts": counts.tolist(),
    }


def make_diverged_record(pack: Pack, run: int, curves: Curves, made: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run that left the finite range: it has no accuracy, and says in which epoch it ended."""
    return common_fields(pack, run, curves, {**made, "diverged_in_epoch": pack.ended[run]}) | {
        "status": "diverged",
        "accuracy": {"last": None, "best": None, "best_epoch": None},
        "per_class_accuracy": [], "confusion": [], "groups": {"many": None, "medium": None, "few": None},
        "calibration": {"ece": None, "bins": []},
        "norms": {"classifier": [], "feature_epochs": [], "feature": []},
        "counts": pack.counts.tolist(),
    }


def common_fields(pack: Pack, run: int, curves: Curves, made: Mapping[str, Any]) -> dict[str, Any]:
    """What every record has, however its run ended."""
    member = pack.members[run]
    finite = [v if np.isfinite(v) else None for v in curves.loss[run]]
    return {
        "schema": SCHEMA,
        "key": member.spec.key,
        "method_digest": member.digest, "engine": ENGINE,
        "label": f"{member.spec.column.name} {member.method.label}",
        "spec": member.spec.as_json(),
        "curves": {"train_loss": finite, "test_accuracy": curves.accuracy[run], "tested": curves.tested},
        "made": dict(made),
        "predictions": {},  # of a run that diverged
    }


def surroundings(device: Device, runs: int = 1) -> dict[str, Any]:
    """Device, precision, versions and commit: what made a record, beside its spec. runs: side by side."""
    return {
        "device": device_name(device), "device_type": "cuda" if device.cuda else "cpu",
        "precision": device.precision, "compiled": device.compile,
        "graph": device.captures, "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(), "runs_in_pack": runs,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def finish(steps: Steps, curves: Curves, best: BestAnswers, tallies: Sequence[Tally], seconds: float, images: int) -> None:
    """Leave the predictions, then of every run a checkpoint and a record; `seconds` is shared equally. A record that is here
    already stays: its run was trained again for its weights only. images: trained on. Rank 0 alone writes."""
    pack = steps.pack
    whole = {name: tensor.cpu() for name, tensor in pack.state().items()}  # a device answers each question slowly
    states = [take_run(whole, run, pack.bounds) for run in range(pack.runs)]
    for run, state in enumerate(states):
        if pack.alive[run] and not all(t.isfinite().all() for t in state.values()):
            pack.stop_run(run, pack.protocol.epochs - 1)  # the very last step spoiled the weights, after the last loss
    if not steps.processes.first:
        return
    made = {**surroundings(pack.device, pack.runs), **steps.about(images, seconds), "seconds": round(seconds / pack.runs, 3)}
    have = record_files(pack.members[0].root)
    answered = keep_predictions(pack, best, tallies, have)
    for run, (member, state) in enumerate(zip(pack.members, states, strict=True)):
        if pack.alive[run]:
            tensors = {n: t.contiguous() for n, t in state.items() if n.startswith(("backbone.", "head."))}
            write_atomically(member.checkpoint, save(tensors, weights_metadata(key=member.spec.key, label=member.label)))
        if member.identity in have:
            continue
        if pack.alive[run]:
            record = make_record(steps, run, curves, tallies[pack.group_of(run)], made)
            save_record(member.folder, record | {"predictions": answered[member.identity]})
        else:
            save_record(member.folder, make_diverged_record(pack, run, curves, made))


def keep_predictions(pack: Pack, best: BestAnswers, tallies: Sequence[Tally], have: Container[str]) -> dict[str, dict[str, str]]:
    """Write a file of predictions into every folder that gets records, of the runs that get one. Returns by identity what the
    records hold of it."""
    answered, by_identity = [tally.answered() for tally in tallies], {}
    by_folder: dict[Path, list[int]] = {}
    for run, member in enumerate(pack.members):
        if pack.alive[run] and member.identity not in have:
            by_folder.setdefault(member.folder, []).append(run)
    for folder, runs in by_folder.items():
        kept = {}
        for run in runs:
            group = pack.group_of(run)
            labels, row = tallies[group].labels.cpu().numpy(), run - pack.groups[group].first
            kept[pack.members[run].spec.key] = predictions_of(labels, run, best, answered[group], row)
        fields = write_predictions(folder, kept)
        by_identity |= {pack.members[run].identity: fields[pack.members[run].spec.key] for run in runs}
    return by_identity


def predictions_of(labels: np.ndarray, run: int, best: BestAnswers, answered: Sequence[Tensor], row: int) -> Predictions:
    """What a run answered to the test images in its last epoch (a row of what the tally of its group has) and in its best."""
    last, confidence, *plain = (part[row].numpy() for part in answered)
    adjusted, unadjusted = (part[run].numpy() for part in best.predicted)
    return Predictions(labels, Answers(last, adjusted, confidence),
                       Answers(plain[0], unadjusted, plain[1]) if plain else None)
