"""What a run on a large set needs: its archive, and how many GPU-hours, from images per second that were measured. No torch."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.cost import BACKWARD
from common.data.large_sets import find_large
from common.methods.method import Method
from common.metrics import EARLY_EVAL_STRIDE
from common.models.sizes import NETWORKS
from common.paper import Paper
from common.spec import Column, Protocol

ASSUMED = 1000.0  # training images of ResNet-50 a second and GPU, where no GPU has been measured


class Speed(NamedTuple):
    """Training images a second of a backbone on one device, and when that was measured (ISO 8601)."""

    device: str
    backbone: str
    images_per_second: float
    finished: str


def training_equivalents(column: Column, protocol: Protocol, streams: int = 1) -> float:
    """Images of a run in units of a training image of the whole network: a forward pass alone costs a third of one.

    streams: images of a step for each of its own. Before the rate first decays an epoch is tested on every tenth image.
    """
    facts, p = find_large(column.dataset), protocol
    whole = p.epochs - min(min(p.decay_epochs, default=0), max(0, p.epochs - 1))
    tested = facts.test.images * (whole + (p.epochs - whole) / EARLY_EVAL_STRIDE) if p.epochs else facts.test.images
    passes = BACKWARD if p.trains == "all" else 1
    return (facts.train.images * p.epochs * streams * passes + tested) / BACKWARD


def measured(records: Iterable[Mapping[str, Any]], folder: Path) -> list[Speed]:
    """What GPUs did, best evidence first: runs on large sets, the last one first, then benchmarks (`large/*.json` in folder)."""
    runs = [Speed(r["made"]["device"], r["spec"]["column"]["backbone"], r["made"]["images_per_second"], r["made"]["finished"])
            for r in records if r["made"]["device_type"] == "cuda" and r["made"].get("images_per_second")]
    stored = []
    for path in sorted((folder / "large").glob("*.json")):
        result = json.loads(path.read_text())
        rows = [row for row in result["rows"] if row["name"] == "ours, JPEG"]
        if result["device_type"] == "cuda" and rows:
            stored.append(Speed(result["device"], result["backbone"], rows[0]["images_per_second"], result["finished"]))
    return [s for found in (runs, stored) for s in sorted(found, key=lambda s: s.finished, reverse=True)]


def gpu_hours(column: Column, protocol: Protocol, speed: Speed, streams: int = 1) -> float:
    """Hours of one such device; of another backbone than the measured one by its multiplications."""
    cost = NETWORKS[column.backbone].multiplications / NETWORKS[speed.backbone].multiplications
    return training_equivalents(column, protocol, streams) * cost / speed.images_per_second / 3600


def basis(speeds: Sequence[Speed]) -> Speed:
    """The first of what `measured` found, or what is assumed where no GPU has been measured."""
    return speeds[0] if speeds else Speed("a GPU", "resnet50", ASSUMED, "")


def known_speeds(paper: Paper, records: Mapping[str, Mapping[str, Any]]) -> list[Speed]:
    """What GPUs have been seen to do, where the paper has large columns; best evidence first."""
    return measured(records.values(), paper.folder.parents[1] / "benchmarks" / "results") if paper.large else []


def hours(paper: Paper, column: Column, method: Method, speeds: Sequence[Speed]) -> float:
    """GPU-hours of a run, with the stages that it starts from."""
    protocol = method.protocol or paper.settings("paper", column)[method.reading]
    own = gpu_hours(column, protocol, basis(speeds), 1 + len(method.extra_samplers))
    return own + (hours(paper, column, method.starts_from, speeds) if method.starts_from else 0.0)


def not_run(paper: Paper, column: Column, method: Method, speeds: Sequence[Speed]) -> str:
    """What a cell of a large column without a run says."""
    return f"not run: needs {column.dataset}; about {hours(paper, column, method, speeds):,.2g} GPU-hours a run"


def head_bytes(batch: int, width: int, outputs: int) -> int:
    """The most memory that a head with its momenta, and its loss with all gradients, take in float32 beside the backbone.

    batch: images of a global batch, all streams together. No loss makes a tensor of more than one number for each image and
    output; twelve such tensors, and twenty of the size of the weights, are enough for all of them: 1.5 GB at batch 512 with
    2,048 features and 8,142 classes, on each process, however many there are.
    """
    return 4 * outputs * (12 * batch + 20 * width)
