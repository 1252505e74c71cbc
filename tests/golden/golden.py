"""Golden runs: what the engine computed when its version was last raised, for every kind of method of every paper.

    python -m tests.golden.golden      trains them all (some seconds) and writes golden.json

Each kind trains a few steps on a handful of made images, in float64 on the CPU, in its own epochs and under its own setting
with a small batch. Kept are each epoch's loss, a projection of each of its weights, statistics and moments, and what its
evaluation counts. A test compares; numbers that differ mean that records of before and after are not of one kind.
"""

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from common.data.feed import DrawSpec, Feed, draw_epoch
from common.data.imbalance import class_counts
from common.data.sets import SETS, Images
from common.methods.digest import ENGINE
from common.methods.method import Method, run_spec
from common.metrics import BINS, summary
from common.models.backbones import backbone
from common.models.resnet import initialise
from common.models.sizes import BACKBONES
from common.plan import Run, merged
from common.spec import Column, Protocol, canonical_json
from common.train.device import Device
from common.train.loop import train_epoch
from common.train.packing import form_packs, together
from common.train.resident import ResidentSteps
from common.train.start import load_start
from papers.catalog import PAPERS

FILE = Path(__file__).with_name("golden.json")
COUNTS = (12, 6, 3, 3, 2, 2, 1, 1, 1, 1)  # two batches of 16; ten clusters need ten images
HELD, TESTED, BATCH = 10, 4, 16  # images a class beyond those: held out, in the test set
COLUMNS = {name: Column(dataset, "counts", 1, "cnn4" if name == "plain" else "resnet8", subset="hash", counts=COUNTS)
           for name, dataset in (("residual", "digits"), ("plain", "digits"), ("coloured", "cifar10"))}
DOUBLE = Device("cpu", "float64", False)
COLOURED = ("ce", "mixup", "ssp-rotation")  # these on images with three channels, a wider border and mirroring too


@cache
def made_images(dataset: str) -> Images:
    """Random images of the shape of a dataset, enough of each class."""
    facts, draw = SETS[dataset], np.random.RandomState(0)
    train, test = (np.repeat(np.arange(10, dtype=np.uint8), n) for n in (max(COUNTS) + HELD, TESTED))
    x_train, x_test = (draw.randint(0, 256, (len(y), facts.side, facts.side, facts.channels), dtype=np.uint8)
                       for y in (train, test))
    return Images(x_train, train, x_test, test, tuple(map(str, range(10))))


def kinds() -> list[Run]:
    """One run for every kind of method: the same functions, head and setting but for numbers are one kind."""
    found: dict[bytes, Run] = {}
    for name, column in COLUMNS.items():
        for method, protocol in planned_methods():
            if name == "coloured" and method.name not in COLOURED:
                continue
            if name == "plain" and (method.head.kind not in ("gaussian", "centres") or method.net.kind != "plain"):
                continue
            found.setdefault(canonical_json([name, _kind(method.describe()), _kind(vars(protocol))]),
                             _planned(column, method, replace(protocol, rate=protocol.rate / (1000 if name == "plain" else 1))))
    return list(merged(found.values()).values())


def planned_methods() -> Iterator[tuple[Method, Protocol]]:
    """Everything that trains side by side on one device, with its setting."""
    for paper in PAPERS:
        for profile in ("paper", "quick"):
            for column in paper.columns[profile]:
                if column.name not in paper.large:
                    for method in paper.rows(profile, column):
                        yield method, method.protocol or paper.settings(profile, column)[method.reading]


def _kind(value: Any) -> Any:
    """A description without its numbers, but for which of them are there at all."""
    if isinstance(value, dict):
        return {key: _kind(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_kind(one) for one in value][:2]
    return bool(value) if isinstance(value, int | float) else value


def _small(protocol: Protocol, rate: float) -> Protocol:
    """With a small batch, and a rate at which random images keep features of no normalised network finite."""
    return replace(protocol, batch_size=BATCH, drop_last=False, rate=min(protocol.rate, rate))


def _planned(column: Column, method: Method, protocol: Protocol) -> Run:
    def shrunk(one: Method) -> Method:
        first = one.first_stage
        return replace(one, protocol=_small(one.protocol or protocol, protocol.rate),
                       net=replace(one.net, adapter=min(one.net.adapter, 12)),
                       start=replace(one.start, method=shrunk(first)) if first else None)

    method = shrunk(method)
    return Run(run_spec(column, method.protocol, method, 0), method, Path("papers/golden/results/quick") / column.name)


def epochs_of(protocol: Protocol) -> list[int]:
    """The first epoch, those of the decays, and the last."""
    return sorted({0, *protocol.decay_epochs, protocol.epochs - 1} & set(range(protocol.epochs)))


def golden_runs() -> dict[str, dict[str, Any]]:
    """Kind -> its numbers; see the head of this file."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        wanted = [replace(item, folder=Path(folder) / item.folder) for item in kinds()]
        waiting = list(merged(link for item in wanted for link in item.chain).values())
        found = {}
        for members in form_packs(waiting, most):
            found |= _train(together(members))
    return found | golden_backbones() | golden_parts()


def most(item: Run) -> int:
    """Runs side by side."""
    return 64


def _train(members: list[Run]) -> dict[str, dict[str, Any]]:
    steps = ResidentSteps(members, made_images(members[0].spec.column.dataset), DOUBLE)
    load_start(steps)
    losses = [train_epoch(steps, epoch).tolist() for epoch in epochs_of(steps.pack.protocol)]
    tallies, found = steps.evaluate(), {}
    for run, member in enumerate(members):
        state = steps.pack.run_state(run)
        member.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        save_file({n: t.contiguous() for n, t in state.items() if n.startswith(("backbone.", "head."))}, member.checkpoint)
        group = next(i for i, g in enumerate(steps.pack.groups) if g.first <= run < g.stop)
        tally, at = tallies[group], run - steps.pack.groups[group].first
        parts = [project(t) for t in (tally.confusion[at], tally.bins[at], tally.norms[at])]
        name = f"{member.spec.column.name} {member.method.label} {member.spec.key[:4]}"
        assert name not in found
        found[name] = {"loss": [_short(epoch[run]) for epoch in losses], "test": parts, "weights": _weights(state)}
    return found


def _weights(state: dict[str, Tensor]) -> list[float]:
    """A projection of each tensor of backbone and head, and one of all moments."""
    own = [project(t) for n, t in sorted(state.items()) if n.startswith(("backbone.", "head."))]
    moments = [project(t) for n, t in sorted(state.items()) if not n.startswith(("backbone.", "head."))]
    return [*own, None if None in moments else _short(sum((-1) ** i * m for i, m in enumerate(moments)))]


def golden_backbones() -> dict[str, dict[str, Any]]:
    """Every backbone: its first weights, the features of one image and their gradient."""
    found = {}
    for name in BACKBONES:
        side, channels = (28, 1) if name.startswith("6layer") else (8, 1) if name in ("resnet8", "cnn4") else (32, 3)
        net = backbone(name, 1, channels, "plain", side).double()
        initialise(net, [torch.Generator().manual_seed(1)])
        image = torch.linspace(0, 1, 2 * channels * side**2, dtype=torch.float64).sin().view(2, channels, side, side)
        features = net(image)
        features.square().sum().backward()
        gradients = [project(p.grad) for p in net.parameters() if p.grad is not None]
        weights = [project(p) for p in net.parameters()]
        found[f"backbone {name}"] = {"features": project(features.detach()), "weights": weights[:12], "slopes": gradients[:6]}
    return found


def golden_parts() -> dict[str, dict[str, Any]]:
    """What the trained kinds do not reach: the sizes of classes, the images of figures, and what is made of hits and
    confidences."""
    sizes = {f"class sizes {kind} {ratio:g}": {"counts": class_counts(kind, ratio, 500, 10).tolist()}
             for kind, ratio in (("lt", 1.5), ("lt", 100), ("step", 1.5), ("step", 10))}
    sizes["class sizes of two"] = {"counts": class_counts("lt", 7, 500, 2).tolist()}
    feed = Feed(made_images("digits"), COLUMNS["plain"], turns=False, device=torch.device("cpu"), dtype=torch.float64)
    images, labels = feed.first_of_each("train", 2, 1)
    pictured = {"pictured": {"images": project(images), "labels": labels.tolist()}}
    confusion = (torch.arange(16).view(4, 4).square() % 7 + 8 * torch.eye(4)).long().numpy()
    bins = torch.arange(1, 3 * BINS + 1, dtype=torch.float64).view(BINS, 3).sqrt().numpy()
    found = summary(confusion, bins, np.array([101, 100, 20, 19]))
    drawn = draw_epoch(DrawSpec(0, None, True, mixup=1.0), 1, torch.arange(7) % 3, pad=4, flip=True, batch=3)
    summed = {name: found[name] for name in ("accuracy", "per_class_accuracy", "groups", "confusion")}
    return sizes | pictured | {"draws": {"rows": drawn.tolist()}, "summary": {**found["calibration"], **summed}}


def project(tensor: Tensor) -> float:
    """One number that changes where any entry does."""
    flat = tensor.detach().double().flatten()
    weights = torch.cos(0.7 + 1.3 * torch.arange(len(flat), dtype=torch.float64))
    return _short(float(flat @ weights))


def _short(value: float) -> float | None:
    return float(f"{value:.10g}") if math.isfinite(value) else None


def write(found: dict[str, dict[str, Any]]) -> None:
    lines = [f"{json.dumps(name)}: {json.dumps(one, separators=(',', ':'))}" for name, one in sorted(found.items())]
    FILE.write_text(f'{{"engine": {ENGINE},\n' + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    write(golden_runs())
    print(f"{FILE.name}: engine {ENGINE}.")
