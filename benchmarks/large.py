"""Images a second of training on large images, beside timm on the same machine, in one run.

    python benchmarks/large.py [--device cpu|cuda] [--batch N] [--workers N] [--steps N] [--no-compile] [--out FILE]
    python benchmarks/large.py --readme        # put benchmarks/results/large/*.json into benchmarks/README.md

Measured: a training step of ResNet-50 on 1,000 classes (cross-entropy, SGD with momentum), from random pixels that cost
nothing, and from JPEG files of the size of ImageNet's, decoded, cropped and mirrored by worker processes.

  ours   `common.train.sharded.ShardedSteps`, stepped exactly as `common.train.loop` does
  timm   timm's train script is not in its wheel, so what that script is made of: its model, optimiser, dataset and loader
         (`create_model`, `create_optimizer_v2`, `ImageDataset`, `create_loader`), and the step that its loop has: forward
         under autocast, cross-entropy, backward, optimiser

Both have the same model, batch, precision, crops, workers and compilation. A number means something beside the others of
the same run only, so every row of ours carries its ratio to timm's. Rows are printed and stored as they are measured.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product, repeat
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import ImageDataset, create_loader
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs by its path, with nothing installed

from benchmarks.measuring import digits, drain, fill_readme, whole
from common.data.decoding import Batch, synthetic
from common.data.large_sets import LARGE
from common.data.lists import LargeImages
from common.errors import UserError, exit_code
from common.methods.losses import softmax_cross_entropy
from common.methods.method import Method, run_spec
from common.models.sizes import NETWORKS
from common.plan import Run
from common.report.text import markdown_table
from common.spec import Column, LargeProtocol
from common.store import file_stem, write_atomically
from common.train.device import Device, choose_device
from common.train.distributed import Ranks
from common.train.record import surroundings
from common.train.sharded import ShardedSteps

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "large"
FILES, SIDES = 256, (500, 375)  # files that are read again and again; pixels, as most of ImageNet's
METHOD = Method("ce", "written", softmax_cross_entropy)
SYNTHETIC, JPEG = "synthetic", "JPEG"


@dataclass(frozen=True)
class Effort:
    """How much is measured. workers: processes that decode."""

    backbone: str
    batch: int
    steps: int
    repeats: int
    warm: int
    workers: int


EFFORTS = {
    "cuda": Effort("resnet50", 256, steps=20, repeats=3, warm=10, workers=min(16, os.cpu_count() or 1)),
    "cpu": Effort("resnet50", 4, steps=1, repeats=3, warm=1, workers=1),
}


# Images


def write_files(folder: Path) -> None:
    """Smooth random JPEG files, in the folder of one class: a real photograph takes about as long to decode."""
    generator = np.random.default_rng(0)
    (folder / "one").mkdir(parents=True)
    for number in range(FILES):
        coarse = Image.fromarray(generator.integers(256, size=(24, 32, 3), dtype=np.uint8))
        rough = np.asarray(coarse.resize(SIDES, Image.Resampling.BICUBIC)).astype(np.int16)
        pixels = (rough + generator.integers(-12, 13, rough.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "one" / f"{number:04d}.jpg", quality=90)


def listed(folder: Path, images: int, classes: int) -> LargeImages:
    """The files again and again as the training list of ImageNet, with labels of all classes by turns."""
    files = np.array([f"one/{i % FILES:04d}.jpg".encode() for i in range(images)])
    labels = np.arange(images, dtype=np.int64) % classes
    return LargeImages("imagenet", folder, files, labels, files[:1], labels[:1], classes, False, "")


# What is measured


def seconds_of(step: Callable[[], Any], effort: Effort, at: torch.device) -> list[float]:
    """Seconds a step, after the warm-up: the mean over `steps`, `repeats` times; the device is drained around each."""
    seconds = []
    for number in range(1 + effort.repeats):
        drain(at)
        begun, steps = time.perf_counter(), effort.steps if number else effort.warm
        for _ in range(steps):
            step()
        drain(at)
        seconds.append((time.perf_counter() - begun) / steps)
    return seconds[1:]


def batches_wanted(effort: Effort) -> int:
    """Of a measurement, and enough more that the workers are still busy when it ends."""
    return effort.warm + effort.steps * effort.repeats + 4 * effort.workers


def our_run(folder: Path, effort: Effort, device: Device) -> ShardedSteps:
    """A run of cross-entropy on as many images as are measured, so that its first epoch does not end before."""
    protocol = LargeProtocol(epochs=1, batch_size=effort.batch, rate=0.01, momentum=0.9, weight_decay=0.0001, warmup_epochs=0,
                             decay_epochs=(), decay_factor=1.0, drop_last=True)
    column = Column("imagenet", "none", 1, effort.backbone)
    member = Run(run_spec(column, protocol, METHOD, 0), METHOD, RESULTS)
    images = listed(folder, batches_wanted(effort) * effort.batch, LARGE["imagenet"].classes)
    steps = ShardedSteps(member, images, device, Ranks(), folder, workers=effort.workers)
    steps.get_ready()
    steps.begin_epoch(0)
    return steps


def measure_ours(kind: str, folder: Path, effort: Effort, device: Device) -> dict[str, Any]:
    steps, at = our_run(folder, effort, device), torch.device(device.name)
    batches: Iterator[Batch] = (steps.train_batches(0) if kind == JPEG else
                                synthetic(steps.facts, steps.pack.size, steps.spans(), 1, device.cuda))
    return row("ours", kind, effort, seconds_of(lambda: steps.train_batch(0, next(batches)), effort, at))


class Repeated(ImageDataset):
    """timm's dataset over the files, as long as is asked for; labels of all classes by turns."""

    def __init__(self, folder: Path, images: int, classes: int):
        super().__init__(str(folder))
        self.images, self.classes = images, classes

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return super().__getitem__(index % FILES)[0], index % self.classes


def timm_loader(folder: Path, effort: Effort, device: Device) -> Iterator[tuple[Tensor, Tensor]]:
    """The loader of timm's script with its random crop and mirroring, and none of its further augmentation."""
    facts, images = LARGE["imagenet"], batches_wanted(effort) * effort.batch
    loader = create_loader(
        Repeated(folder, images, facts.classes), input_size=(3, facts.side, facts.side), batch_size=effort.batch,
        is_training=True, use_prefetcher=device.cuda, color_jitter=None, interpolation="bilinear", mean=facts.mean, std=facts.std,
        num_workers=effort.workers, pin_memory=device.cuda, device=torch.device(device.name))
    return iter(loader)


def timm_step(net: nn.Module, optimiser: torch.optim.Optimizer, autocast: Callable[[], AbstractContextManager], at: torch.device,
              batches: Iterator[tuple[Tensor, Tensor]]) -> None:
    images, labels = next(batches)
    images = images.to(at, non_blocking=True).contiguous(memory_format=torch.channels_last)
    labels = labels.to(at, non_blocking=True)
    with autocast():
        loss = nn.functional.cross_entropy(net(images), labels)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def measure_timm(kind: str, folder: Path, effort: Effort, device: Device) -> dict[str, Any]:
    at, facts, shape = torch.device(device.name), LARGE["imagenet"], NETWORKS[effort.backbone]
    net = timm.create_model(shape.timm, num_classes=facts.classes, **shape.changes)
    net = net.to(at, device.dtype).to(memory_format=torch.channels_last).train()
    optimiser = create_optimizer_v2(net, opt="momentum", lr=0.01, momentum=0.9, weight_decay=0.0001)
    if device.compile:
        torch.compiler.reset()
        net = torch.compile(net)
    if kind == JPEG:
        batches = timm_loader(folder, effort, device)
    else:
        pixels = torch.randn(effort.batch, 3, facts.side, facts.side, device=at)
        batches = repeat((pixels, torch.arange(effort.batch, device=at) % facts.classes))
    mixed = partial(torch.autocast, at.type, dtype=torch.bfloat16) if device.precision == "bfloat16" else nullcontext
    return row("timm", kind, effort, seconds_of(partial(timm_step, net, optimiser, mixed, at, batches), effort, at))


# Results


def row(name: str, kind: str, effort: Effort, seconds: Sequence[float]) -> dict[str, Any]:
    """A row of the result: median, lowest and highest of the images a second."""
    middle, low, high = (round(effort.batch / f(seconds), 3) for f in (median, max, min))
    return {"name": f"{name}, {kind}", "images_per_second": middle, "low": low, "high": high}


def with_ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours carry how many times timm's speed on the same input they are."""
    base = {r["name"].partition(", ")[2]: r["images_per_second"] for r in rows if r["name"].startswith("timm")}
    return [{**r, "times_timm": round(r["images_per_second"] / base[kind], 3)}
            if (kind := r["name"].partition(", ")[2]) in base and r["name"].startswith("ours") else r for r in rows]


HEADER = ("way and input", "images a second (lowest to highest)", "speed, × timm")


def table_row(r: dict[str, Any]) -> list[str]:
    """The cells of a row under HEADER."""
    spread = f"{digits(r['images_per_second'])} ({digits(r['low'])} to {digits(r['high'])})"
    return [r["name"], spread, f"{r['times_timm']:.2f}" if "times_timm" in r else "-"]


def page(result: dict[str, Any]) -> str:
    """A result as Markdown: where it was measured, then its table."""
    compiled = "compiled" if result["compiled"] else "not compiled"
    head = (f"**{result['device']}**, torch {result['torch']}, timm {result['timm']}, {result['precision']}, {compiled}; "
            f"{result['backbone']} at {result['side']} pixels, batch {result['batch']}, {result['workers']} worker(s); median of "
            f"{result['repeats']} times {result['steps']} step(s); load average {result['load']} on {result['cores']} cores at "
            f"the start; commit {result['commit']}.")
    return f"{head}\n\n{markdown_table(HEADER, map(table_row, result['rows']))}"


def conditions(effort: Effort, device: Device, folder: Path) -> dict[str, Any]:
    """What the rows of a result have in common."""
    used = our_run(folder, effort, device).pack.device
    about = {name: value for name, value in surroundings(used).items() if name != "runs_in_pack"}
    more = {"side": LARGE["imagenet"].side, "timm": timm.__version__, "cores": os.cpu_count()}
    return {**about, **vars(effort), **more, "load": round(os.getloadavg()[0], 2)}


def benchmark(device: Device, effort: Effort, out: Path | None) -> Path:
    """Measure, print and store every row; returns the result's file."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, rows = Path(temporary), []
        write_files(folder)
        result = conditions(effort, device, folder)
        name = file_stem(f"{result['device_type']}-{result['device']}")
        out = out or RESULTS / f"{name}.json"
        print(f"{result['device']}, {device.precision}: {effort.backbone}, batch {effort.batch}.", flush=True)
        for kind, measure in product((SYNTHETIC, JPEG), (measure_timm, measure_ours)):
            gc.collect()
            rows.append(measure(kind, folder, effort, device))
            result["rows"] = with_ratios(rows)
            cells = zip(HEADER, table_row(result["rows"][-1]), strict=True)
            print("; ".join(f"{head}: {cell}" for head, cell in cells), flush=True)
            write_atomically(out, json.dumps(result, indent=1, allow_nan=False).encode() + b"\n")
    print(f"\n{page(result)}\nStored in {out}.")
    return out


# Command line


def run(arguments: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cpu or cuda (default: cuda where it is)")
    parser.add_argument("--batch", help="images a step (default: 256 on CUDA, 4 on a CPU)")
    parser.add_argument("--workers", help="processes that decode (default: one a core, at most 16, on CUDA; 1 on a CPU)")
    parser.add_argument("--steps", help="steps a repeat (default: 20 on CUDA, 1 on a CPU)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", default=None, help="do not compile on CUDA")
    parser.add_argument("--out", type=Path, help="the file to write (default: benchmarks/results/large/<device>.json)")
    parser.add_argument("--readme", action="store_true", help="measure nothing; put the stored results into the README")
    options = parser.parse_args(arguments)
    if options.readme:
        return fill_readme(RESULTS, "large", page)
    if options.device not in (None, "cpu", "cuda"):
        raise UserError(f"--device {options.device!r} is not cpu or cuda.")
    device = choose_device(options.device, None, options.compile)
    usual = EFFORTS["cuda" if device.cuda else "cpu"]
    texts = {name: getattr(options, name) for name in ("batch", "workers", "steps")}
    given = {name: whole(text, f"--{name}") for name, text in texts.items() if text is not None}
    benchmark(device, Effort(**{**vars(usual), **given}), options.out)


def main(arguments: Sequence[str] | None = None) -> int:
    return exit_code(partial(run, arguments))


if __name__ == "__main__":
    sys.exit(main())
