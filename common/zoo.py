"""Trained networks by name, as plain modules: `model = load("cifar10-lt-100/ldam-drw", seed=0)`.

A model is made from the record of its run and the weights beside it; the code of the paper that planned it is not needed.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from common.checkout import ROOT
from common.data.class_names import TURNS, class_names
from common.data.large_sets import LARGE
from common.data.sets import SETS, Images
from common.errors import UserError
from common.methods.method import Head, Method
from common.methods.one_stage import prior_adjustment
from common.models.backbones import backbone
from common.models.imagenet import LargeNetwork
from common.plan import checkpoint_path
from common.spec import ProfileName
from common.store import files_by_key, parse_record, read_weights
from common.train.groups import Group, make_head

CONFIG, RECORD, WEIGHTS = "config.json", "record.json", "model.safetensors"  # what `export` writes for a run
ADJUSTMENTS: Mapping[str, Callable[..., np.ndarray]] = {prior_adjustment.__name__: prior_adjustment}
Record = Mapping[str, Any]


class Classifier(nn.Module):
    """A trained network with all that stands between an image and its classes.

    Images [batch, channels, side, side], float in 0 to 1 -> logits [batch, classes], scaled as the loss scales them and adjusted
    where the method does so at test time, so that their softmax is what the record's calibration is about.

    classes: the name of each; mean, std: [channels, 1, 1], what images are normalised with; shape: (channels, side, side) of an
    image; record: that of the run.
    """

    def __init__(self, record: Record, state: Mapping[str, Tensor], classes: tuple[str, ...]):
        super().__init__()
        spec, counts = record["spec"], np.array(record["counts"])
        method, column = spec["method"], spec["column"]
        facts = SETS.get(column["dataset"]) or LARGE[column["dataset"]]
        channels = len(facts.mean)
        self.record, self.classes, self.shape = record, classes, (channels, facts.side, facts.side)
        self.scale, self.decide = float(method["loss"].get("s", 1.0)), method.get("decide", "largest")
        self.register_buffer("mean", torch.tensor(facts.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(facts.std)[:, None, None])
        self.register_buffer("adjustment", torch.tensor(_adjustment(method["adjust"], counts), dtype=torch.float32))
        if column["dataset"] in LARGE:
            self.backbone = LargeNetwork(column["backbone"], method["network"], method.get("adapter", 0))
        else:
            self.backbone = backbone(column["backbone"], 1, channels, method["network"], facts.side, method.get("adapter", 0))
        parent = np.repeat(np.arange(len(counts)), record["clusters"]["counts"]).tolist() if "clusters" in record else ()
        same = Method(record["label"], "written", _no_loss, Head(**method["head"]))
        images = state["head.clusters"].shape[1] if parent else 0
        self.head = make_head(Group(0, 1, same, len(classes), tuple(parent)), self.backbone.width, self.backbone.copies, images)
        self._take(state)
        self.eval()

    def _take(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights of backbone and head. What is missing, unknown or of another shape is a UserError."""
        mine = {name: t for name, t in self.state_dict().items() if name.startswith(("backbone.", "head."))}
        odd = sorted(n for n in mine.keys() | state.keys() if n not in mine or n not in state or mine[n].shape != state[n].shape)
        if odd:
            raise UserError(f"The weights of {self.record['label']} do not fit the network that its record describes: {odd[0]} "
                            "is missing, unknown or of another shape; take the version of the commit that the record names.")
        with torch.no_grad():  # not load_state_dict: it wants the counter of batches, which these normalisations do without
            for name, tensor in mine.items():
                tensor.copy_(state[name])

    def features(self, images: Tensor) -> Tensor:
        """What the classifier sees of images [batch, channels, side, side] in 0 to 1: [batch, width]."""
        return self.head.seen(self.backbone((images - self.mean) / self.std))[0]

    def forward(self, images: Tensor) -> Tensor:
        logits = self.scale * self.head(self.backbone((images - self.mean) / self.std))
        if "clusters" in self.record:
            logits = self.head.class_logits(logits, len(self.classes), self.decide)
        return logits[0] + self.adjustment


def _adjustment(described: Mapping[str, Any] | None, counts: np.ndarray) -> np.ndarray:
    """What the method adds to the logits at test time, [classes] or one 0."""
    if described is None:
        return np.zeros(())
    values = dict(described)
    name = values.pop("function")
    if name not in ADJUSTMENTS:
        raise UserError(f"The logits of this run are adjusted by {name}, which this version does not have; take the version of "
                        "the commit that its record names.")
    return ADJUSTMENTS[name](counts, **values)


def _no_loss(outputs: Any, labels: Tensor, context: Any) -> Tensor:
    raise UserError("A loaded model has no loss: train with the method of the paper.")


class Entry(NamedTuple):
    """A run that can be loaded. weights: where they are, or would be. paper: the folder that holds its record, or ""."""

    record: Record
    weights: Path
    classes: tuple[str, ...]
    paper: str


def load(name: str, seed: int = 0, source: str | Path | None = None, profile: ProfileName = "paper") -> Classifier:
    """The trained network of a run, in evaluation mode on the CPU, in float32.

    name: "column/method" as in "cifar10-lt-100/ldam-drw", the method with or without its reading ("@written" is taken where both
    are there) and with its variant where it has one; "paper/column/method" where papers have trained it under their own settings;
    or the key of a run.
    source: a checkout of this repository (None: the one that this file is in), whose missing weights are pulled from its DVC
    remote; or a folder that `export` wrote, or one such run's.
    profile: which records of a checkout. No such run, several, or no weights is a UserError that says which there are.
    """
    root = Path(source).expanduser() if source is not None else ROOT
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; name a checkout of this repository, or what `export` wrote.")
    checkout = (root / "papers").is_dir()
    entry = choose(list(_of_checkout(root, profile, name, seed) if checkout else _of_export(root)), name, seed, root)
    if checkout and not entry.weights.exists():
        _pull(entry.weights, root, name)
    return Classifier(entry.record, read_weights(entry.weights, entry.record["key"], "pt"), entry.classes)


def choose(entries: list[Entry], name: str, seed: int, root: Path) -> Entry:
    """The one run of that name and seed; where it exists in both readings, the one as "written"."""
    parts = name.split("/")
    candidates = [e for e in entries if e.record["status"] == "done" and (e.record["key"] == name or (
        len(parts) in (2, 3) and e.record["spec"]["seed"] == seed and _matches(e, parts)))]
    if len(candidates) > 1 and "@" not in parts[-1]:
        candidates = [e for e in candidates if e.record["label"].endswith("@written")] or candidates
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        there = sorted({e.record["label"].replace(" ", "/") for e in entries if e.record["status"] == "done"})
        some = f"; it has {', '.join(there[:8])}{' and others' if len(there) > 8 else ''}" if there else ""
        raise UserError(f"{root} has no finished run {name} of seed {seed}{some}. A name is COLUMN/METHOD, as in "
                        "cifar10-lt-100/ce.")
    names = ["/".join(filter(None, (e.paper, *e.record["label"].split(" ", 1)))) for e in candidates]
    which = ", ".join(f"{label} ({e.record['key']})" for label, e in zip(names, candidates, strict=True))
    raise UserError(f"{name} of seed {seed} is {len(candidates)} runs: {which}; say the paper, or give the key in brackets.")


def _matches(entry: Entry, parts: list[str]) -> bool:
    *paper, column, method = parts
    label = entry.record["label"]
    return label in (f"{column} {method}", f"{column} {method}@written", f"{column} {method}@released") and (
        not paper or paper == [entry.paper])


def _of_checkout(root: Path, profile: ProfileName, name: str, seed: int) -> Iterator[Entry]:
    """The runs of a checkout that may be meant; only those files are read whose folder and name agree."""
    for key, path in files_by_key(root / "papers").items():
        column, of = path.parent.name, path.parent.parent.name
        if key == name or (of == profile and column in name.split("/") and f"-s{seed}-" in path.name):
            record = parse_record(path.read_bytes(), str(path))
            mine = checkpoint_path(path.parent, key)
            others = sorted(root.glob(f"papers/*/checkpoints/*/*/{key}.safetensors"))
            weights = mine if mine.exists() or not others else others[0]
            yield Entry(record, weights, _classes(record, root / "data"), path.parents[3].name)


def _of_export(root: Path) -> Iterator[Entry]:
    """The runs of a folder that `export` wrote, or the one run of a folder in it."""
    for path in sorted([*root.glob(RECORD), *root.glob(f"*/{RECORD}")]):
        record, config = parse_record(path.read_bytes(), str(path)), path.with_name(CONFIG)
        try:
            classes = tuple(json.loads(config.read_bytes())["classes"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{config} cannot be read ({type(error).__name__}); export the run again.") from None
        yield Entry(record, path.with_name(WEIGHTS), classes, "")


def _classes(record: Record, data: Path) -> tuple[str, ...]:
    """The names of the classes of a run: of its column, or of the pretext task."""
    spec = record["spec"]
    return TURNS if spec["method"]["task"] == "rotation" else class_names(spec["column"]["dataset"], data)[:len(record["counts"])]


def _pull(weights: Path, root: Path, name: str) -> None:
    """Fetch the weights from the DVC remote of the checkout; where that cannot be, a UserError."""
    why = "DVC is not installed (pip install '.[pipeline]')"
    if find_spec("dvc"):
        command = [sys.executable, "-m", "dvc", "pull", "--quiet", str(weights.relative_to(root))]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        why = (done.stderr.strip().splitlines() or ["`dvc pull` brought nothing"])[-1]
    if not weights.exists():
        raise UserError(f"The weights of {name} are not here and could not be pulled: {why}. Bring {weights.name} into "
                        f"{weights.parent}, merge the file that its machine wrote with `campaign --out`, or train the run here.")


@torch.no_grad()
def measure(model: Classifier, images: Images, batch: int = 500) -> np.ndarray:
    """The confusion of a model on the test images of its classes, int64 [true, predicted]: what its record should say.

    A model of the pretext task, which turns images, is a UserError.
    """
    if model.classes == TURNS:
        raise UserError("This model tells by how much an image was turned, not what it shows: there is nothing to measure here.")
    tested = images.y_test < len(model.classes)
    x, labels = images.x_test[tested], images.y_test[tested].astype(np.int64)
    device, predicted = model.mean.device, []
    for start in range(0, len(x), batch):
        part = torch.from_numpy(x[start:start + batch]).to(device)
        predicted.append(model(part.permute(0, 3, 1, 2).float() / 255).argmax(-1).cpu().numpy())
    confusion = np.zeros((len(model.classes), len(model.classes)), np.int64)
    np.add.at(confusion, (labels, np.concatenate(predicted)), 1)
    return confusion
