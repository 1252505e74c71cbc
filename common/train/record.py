"""The record of a finished run, from the counts of its last evaluation and its curves."""

import base64
import datetime
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.checkout import commit
from common.methods.digest import ENGINE
from common.metrics import summary
from common.store import SCHEMA
from common.train.pack import Device, Pack
from common.train.tally import Tally

FEATURES = 2000  # images of a split whose features a record keeps, where a figure wants them; equally many of each class
FEATURE_NORMS = 20  # how often, evenly over the epochs, the feature norms are stored, which are one number a class


class Curves:
    """What an epoch leaves of every run; it grows by `add` and travels in the resume state."""

    SHARED = ("tested", "norm_epochs")  # one list for the pack; the others hold one a run

    def __init__(self, runs: int):
        self.loss: list[list[float]] = [[] for _ in range(runs)]
        self.accuracy: list[list[float]] = [[] for _ in range(runs)]
        self.norms: list[list[list[float]]] = [[] for _ in range(runs)]
        self.tested: list[int] = []
        self.norm_epochs: list[int] = []

    def add(self, epoch: int, epochs: int, losses: Sequence[float], tallies: Sequence[Tally]) -> None:
        """The epoch of so many in all. losses [runs]; tallies in the order of the runs, one a group."""
        accuracies = torch.cat([t.accuracy() for t in tallies]).tolist()
        self.tested.append(int(tallies[0].confusion[0].sum()))
        with_norms = epoch + 1 == epochs or (epoch + 1) % max(1, epochs // FEATURE_NORMS) == 0
        self.norm_epochs += [epoch] if with_norms else []
        means = [n for t in tallies for n in (t.norms / t.confusion.sum(2)).tolist()] if with_norms else []
        for run, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True)):
            self.loss[run].append(round(float(loss), 6))
            self.accuracy[run].append(round(accuracy, 4))
            if with_norms:
                self.norms[run].append([float(f"{n:.4g}") if n == n else None for n in means[run]])  # None: no such class seen


def best_epoch(accuracy: Sequence[float], tested: Sequence[int]) -> int:
    """The first epoch of highest accuracy among those that saw the whole test set."""
    whole = max(tested)
    return max((e for e, n in enumerate(tested) if n == whole), key=lambda e: (accuracy[e], -e))


def make_record(pack: Pack, run: int, curves: Curves, tally: Tally, made: Mapping[str, Any]) -> dict[str, Any]:
    """The record of run `run`, whose group's last evaluation over the whole test set is `tally`."""
    member, state = pack.members[run], pack.run_state(run)
    group = pack.groups[pack.group_of(run)]
    at = run - group.first
    counts = pack.feed.counts if member.method.task == "classes" else np.full(4, len(pack.feed.labels))
    parts = summary(tally.confusion[at].cpu().numpy(), tally.bins[at].cpu().numpy(), counts)
    accuracy, tested = curves.accuracy[run], curves.tested
    best = best_epoch(accuracy, tested)
    last = parts.pop("accuracy")
    norms = state["head.weight"][0].norm(dim=0).cpu().double().numpy()
    more: dict[str, Any] = {}
    if group.parent:  # a class has the mean of its clusters' norms
        each = np.bincount(group.parent)
        more = {"clusters": {"counts": each.tolist(), "norms": [float(f"{n:.5g}") for n in norms]}}
        norms = np.bincount(group.parent, norms) / each
    if member.method.keep_features and member.spec.seed == 0:
        head = {n.removeprefix("head."): t[0].tolist() for n, t in state.items() if n.startswith("head.")}
        more |= {"features": stored_features(pack, run), "head": head}
    return common_fields(pack, run, curves, made) | parts | more | {
        "status": "done",
        "accuracy": {"last": last, "best": accuracy[best], "best_epoch": best},
        "norms": {"classifier": [float(f"{n:.5g}") for n in norms], "feature_epochs": list(curves.norm_epochs),
                  "feature": curves.norms[run]},
        "counts": counts.tolist(),
    }


def stored_features(pack: Pack, run: int) -> dict[str, Any]:
    """For a figure: split -> labels, and features as base64 of little-endian float16 [images, width]."""
    found = {}
    for split in ("train", "test"):
        values, labels = pack.features(run, split, max(1, FEATURES // pack.feed.classes))
        content = values.cpu().numpy().astype("<f2").tobytes()
        found[split] = {"labels": labels.tolist(), "values": base64.b64encode(content).decode()}
    return found


def make_diverged_record(pack: Pack, run: int, curves: Curves, made: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run that left the finite range: it has no accuracy, and says in which epoch it ended."""
    return common_fields(pack, run, curves, {**made, "diverged_in_epoch": pack.ended[run]}) | {
        "status": "diverged",
        "accuracy": {"last": None, "best": None, "best_epoch": None},
        "per_class_accuracy": [], "confusion": [], "groups": {"many": None, "medium": None, "few": None},
        "calibration": {"ece": None, "bins": []},
        "norms": {"classifier": [], "feature_epochs": [], "feature": []},
        "counts": pack.feed.counts.tolist(),
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


def surroundings(pack: Pack) -> dict[str, Any]:
    """Device, precision, versions and commit: what made a record, beside its spec."""
    return {
        "device": device_name(pack.device), "device_type": "cuda" if pack.device.cuda else "cpu",
        "precision": pack.device.precision, "compiled": pack.device.compile,
        "graph": pack.captures, "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(), "runs_in_pack": pack.runs,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def device_name(device: Device) -> str:
    """What the machine calls the device."""
    return torch.cuda.get_device_name(torch.device(device.name)) if device.cuda else _processor()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'CPU'} ({torch.get_num_threads()} threads)"
