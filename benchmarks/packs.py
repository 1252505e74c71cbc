"""What a pack saves: milliseconds a training step and run, beside the usual ways of training, in one run on one machine.

    python benchmarks/packs.py [--device cpu|cuda] [--runs 1,4,16,32,64] [--data data/cifar10.npz] [--steps N] [--out FILE]
    python benchmarks/packs.py --readme        # put benchmarks/results/*.json into benchmarks/README.md

Measured, all on CIFAR-10-LT 100 with ResNet-32 and batch 128:

  the common recipe   PIL images, torchvision transforms, a DataLoader with 4 workers, float32, SGD
  plain eager         the same network and optimiser, the images and their augmentation on the device, float32
  packs of M runs     `common.train.resident.ResidentSteps`, stepped and tested exactly as `common.train.loop` does

A time means something beside the others of the same run only, so every row carries its ratios to the first two. Rows are
printed and stored as they are measured. Warm-up, compilation and graph capture are not in the times (see `ready_seconds`).
"""

import argparse
import gc
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs by its path, with nothing installed

from benchmarks.measuring import RESULTS, ROOT, copy_bandwidth, digits, drain, fill_readme, save, times, whole
from benchmarks.textbook import PlainResNet, step_bytes
from common.data.feed import INDEX, DrawSpec, Feed
from common.data.imbalance import select
from common.data.sets import SETS, Images, load
from common.errors import UserError, exit_code
from common.methods.losses import ldam, softmax_cross_entropy
from common.methods.method import COSINE, Method, run_spec
from common.methods.sampling import deferred, effective_number_weights, uniform_weights
from common.models.sizes import BACKBONES
from common.plan import Run
from common.report.text import markdown_table
from common.spec import Column, Protocol
from common.store import file_stem
from common.train.device import Device, choose_device
from common.train.loop import evaluation_stride, train_epoch
from common.train.record import surroundings
from common.train.resident import ResidentSteps

COLUMN = Column("cifar10", "lt", 100, "resnet32")
PROTOCOL = Protocol(epochs=200, batch_size=128, rate=0.1, momentum=0.9, weight_decay=0.0002, warmup_epochs=5,
                    decay_epochs=(160, 180), decay_factor=0.01, drop_last=False)
METHODS = (
    Method("ce", "written", softmax_cross_entropy),
    Method("ldam-drw", "written", partial(ldam, s=30.0, largest=0.5), COSINE,
           weights=partial(deferred, before=uniform_weights, then=effective_number_weights, start=160)),
)
RECIPE, EAGER = "common recipe", "plain eager"
WORKERS = 4
PAIRS = 7  # of steps, by turns
ITEM = {"bfloat16": 2, "float32": 4, "float64": 8}  # bytes of an activation


@dataclass(frozen=True)
class Effort:
    """How much is measured. tested: test images that evaluation is timed on; its time is then scaled to the whole set."""

    runs: tuple[int, ...]
    steps: int
    repeats: int
    warm: int
    tested: int


EFFORTS = {
    "cuda": Effort((1, 4, 16, 32, 64), steps=48, repeats=5, warm=10, tested=10_000),
    "cpu": Effort((1, 2, 4), steps=1, repeats=3, warm=1, tested=250),
}


# The floor, and the usual ways


def plain_network(at: torch.device | str) -> PlainResNet:
    facts = SETS[COLUMN.dataset]
    return PlainResNet(BACKBONES[COLUMN.backbone].blocks, BACKBONES[COLUMN.backbone].width, facts.channels, facts.classes).to(at)


# What is measured


def members(runs: int) -> list[Run]:
    """CE and LDAM-DRW by turns, two runs a seed; equal methods stand together, as a pack needs them."""
    pairs = sorted((i % 2, i // 2) for i in range(runs))
    return [Run(run_spec(COLUMN, PROTOCOL, METHODS[m], seed), METHODS[m], RESULTS) for m, seed in pairs]


def with_batch(member: Run, batch: int) -> Run:
    """The run with another size of batch."""
    return replace(member, spec=replace(member.spec, protocol=replace(member.spec.protocol, batch_size=batch)))


def read_images(path: Path | None) -> tuple[Images, str]:
    """The images and what to call them: the real set where it is, else random ones of the same shape and class counts."""
    facts = SETS[COLUMN.dataset]
    usual = ROOT / "data" / f"{facts.name}.npz"
    if path or usual.exists():
        if (path or usual).name != usual.name:
            raise UserError(f"--data {path} is not called {usual.name}, as `python -m papers prepare {facts.name}` makes it.")
        return load(facts.name, (path or usual).parent), f"{facts.name}, real images"
    generator, splits = np.random.default_rng(0), []
    for n in (facts.train, facts.test):
        splits.append(generator.integers(256, size=(n, facts.side, facts.side, facts.channels), dtype=np.uint8))
        splits.append(np.repeat(np.arange(facts.classes, dtype=np.uint8), n // facts.classes))
    images = Images(*splits, classes=tuple(map(str, range(facts.classes))), archive_order=np.arange(facts.train))
    return images, f"random images in the shape of {facts.name}"


class PilImages(Dataset):
    """The column's training images the way torchvision's CIFAR-10 hands them out."""

    def __init__(self, images: Images):
        facts, kept = SETS[COLUMN.dataset], select(images.y_train, COLUMN, images.archive_order)
        self.pixels, self.labels = images.x_train[kept], images.y_train[kept].astype(np.int64)
        self.transform = transforms.Compose([
            transforms.RandomCrop(facts.side, padding=facts.pad), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
            transforms.Normalize(facts.mean, facts.std)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def plain_step(net: nn.Module, optimiser: torch.optim.SGD, images: Tensor, labels: Tensor) -> Tensor:
    loss = F.cross_entropy(net(images), labels)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss


def plain_training(at: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """A step of the textbook network under torch's own SGD."""
    net = plain_network(at).train()
    p = PROTOCOL
    optimiser = torch.optim.SGD(net.parameters(), lr=p.rate, momentum=p.momentum, weight_decay=p.weight_decay)
    return partial(plain_step, net, optimiser)


def measure_recipe(images: Images, effort: Effort, at: torch.device) -> dict[str, Any]:
    """The common recipe with its workers running: starting them is not counted, reading the loss at every step is."""
    data, step, cuda = PilImages(images), plain_training(at), at.type == "cuda"
    wanted = effort.warm + effort.steps * effort.repeats + 4 * WORKERS  # the workers are still busy when the last step ends
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # on machines of fewer cores
    sampler = RandomSampler(data, replacement=True, num_samples=wanted * PROTOCOL.batch_size)
    batches: Iterator = iter(DataLoader(data, PROTOCOL.batch_size, sampler=sampler, num_workers=WORKERS, pin_memory=cuda))

    def work() -> float:
        x, y = next(batches)
        return step(x.to(at, non_blocking=True), y.to(at, non_blocking=True)).item()

    times(work, effort.warm, 1, at)
    return row(RECIPE, 1, "float32", times(work, effort.steps, effort.repeats, at))


def measure_eager(feed: Feed, effort: Effort, at: torch.device) -> dict[str, Any]:
    """The textbook loop on the resident feed."""
    step, batch = plain_training(at), PROTOCOL.batch_size

    def draw() -> Tensor:
        return feed.draw([DrawSpec(0, None, False)], 0, batch).images.to(at)

    drawn = draw()
    batches = cycle(drawn[:, :, i:i + batch] for i in range(0, len(feed.labels) - batch + 1, batch))

    def work() -> None:
        now = next(batches)
        step(feed.batch(now).contiguous(), feed.labels[now[INDEX, 0]])  # contiguous: NCHW, as usual

    times(work, effort.warm, 1, at)
    draw_ms = median(times(draw, 1, effort.repeats, at))
    return row(EAGER, 1, "float32", times(work, effort.steps, effort.repeats, at), draw_ms / epoch_steps(feed))


def epoch_steps(feed: Feed) -> float:
    """Batches an epoch, the smaller last one by its size."""
    return len(feed.labels) / PROTOCOL.batch_size


def measure_pack(runs: int, images: Images, device: Device, effort: Effort, at: torch.device) -> dict[str, Any]:
    """A pack as training steps and tests it; what it draws at the start of an epoch is shared among the epoch's steps."""
    release(device)
    begun = time.perf_counter()
    steps = ResidentSteps(members(runs), images, device)
    warm_up(steps, at)
    ready = time.perf_counter() - begun
    draw_ms = median(times(partial(steps.begin_epoch, 1), 1, effort.repeats, at))
    batches = cycle(steps.batches()[:steps.pack.batch_sizes.count(PROTOCOL.batch_size)])
    measured = times(lambda: steps.train_batch(1, next(batches)), effort.steps, effort.repeats, at)
    result = row(f"pack of {runs}", runs, device.precision, measured, draw_ms / epoch_steps(steps.feed))
    result["evaluation"] = measure_evaluation(steps, result["ms"] * epoch_steps(steps.feed), effort, at)
    result["ready_seconds"] = round(ready, 1)
    if device.cuda:
        result["allocated_gib"] = round(torch.cuda.max_memory_allocated(at) / 2**30, 2)
        result["reserved_gib"] = round(torch.cuda.max_memory_reserved(at) / 2**30, 2)
    return result


def measure_paths(member: Run, images: Images, device: Device, effort: Effort, at: torch.device) -> dict[str, float] | None:
    """How often faster a pack of one steps in C++ than by torch's own operations: of steps by turns, the median of the ratios,
    the lowest and the highest. None where it has no C++ step."""
    native, eager = (ResidentSteps([member], images, device) for _ in range(2))
    if native.path == "eager":
        return None
    eager.go_eager()
    both = (eager, native)
    for steps in both:
        warm_up(steps, at)
    ratios = []
    for _ in range(PAIRS):
        of_eager, of_native = (times(partial(steps.train_batch, 0, steps.batches()[0]), effort.steps, 1, at)[0] for steps in both)
        ratios.append(of_eager / of_native)
    return {"pairs": PAIRS, "ratio": round(median(ratios), 3), "low": round(min(ratios), 3), "high": round(max(ratios), 3)}


def warm_up(steps: ResidentSteps, at: torch.device) -> None:
    """On CUDA a whole epoch, so that the graphs of both batch sizes exist as in training; on the CPU one step."""
    if steps.pack.device.cuda:
        train_epoch(steps, 0)
    else:
        steps.begin_epoch(0)
        steps.train_batch(0, steps.batches()[0])
    drain(at)


def measure_evaluation(steps: ResidentSteps, epoch_ms: float, effort: Effort, at: torch.device) -> dict[str, float]:
    """What testing costs as fractions of the training epoch it follows: whole set, strided, and the protocol's average."""
    scale = SETS[COLUMN.dataset].test / len(steps.feed.test_labels)
    strides, share = [evaluation_stride(steps.pack, epoch) for epoch in range(PROTOCOL.epochs)], {}
    for stride in sorted(set(strides)):
        steps.evaluate(stride)  # compiles, or chooses its kernels
        repeats = effort.repeats if steps.pack.device.cuda else 1
        share[stride] = scale * median(times(partial(steps.evaluate, stride), 1, repeats, at)) / epoch_ms
    return {"stride": max(strides), "whole": share[1], "strided": share[max(strides)],
            "protocol": sum(share[s] for s in strides) / len(strides)}


def release(device: Device) -> None:
    """Give back what the pack before has left. A compiled function keeps at most 8 shapes, then it runs uncompiled."""
    gc.collect()
    if device.compile:
        torch.compiler.reset()
    if device.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


# Rows, ratios, files


def row(name: str, runs: int, precision: str, measured: Sequence[float], extra: float = 0.0) -> dict[str, Any]:
    """A measurement: median, lowest and highest milliseconds a step; `extra` is added to each."""
    ms, low, high = (round(f(measured) + extra, 4) for f in (median, min, max))
    return {"name": name, "runs": runs, "precision": precision, "ms": ms, "low": low, "high": high}


def with_ratios(rows: Sequence[dict[str, Any]], floors: dict[str, float]) -> list[dict[str, Any]]:
    """Each row with its time a run, how often faster than the two usual ways that is (None: not measured yet), and its
    share of the bandwidth floor. floors: milliseconds a run and step by precision."""
    base = {r["name"]: r["ms"] for r in rows}
    done = []
    for r in rows:
        per_run = r["ms"] / r["runs"]
        ratios = {key: round(base[name] / per_run, 3) if name in base else None
                  for key, name in (("times_recipe", RECIPE), ("times_eager", EAGER))}
        done.append({**r, "ms_per_run": round(per_run, 4), **ratios, "floor_share": round(floors[r["precision"]] / per_run, 4)})
    return done


def sentence(r: dict[str, Any]) -> str:
    """A row for the terminal, as it is measured."""
    cells = dict(zip(HEADER, table_row(r), strict=True))
    return f"{r['name']}: " + "; ".join(f"{name}: {cell}" for name, cell in list(cells.items())[1:] if cell != "-")


HEADER = ("way", "ms a step (lowest to highest)", "ms a step and run", "speed, × common recipe", "speed, × plain eager",
          "share of the floor", "evaluation / epoch: whole, strided, protocol", "GiB: allocated, reserved", "ready after")


def table_row(r: dict[str, Any]) -> list[str]:
    """The cells of a row under HEADER."""
    e = r.get("evaluation")
    ratios = ["-" if r[key] is None else f"{r[key]:.2f}" for key in ("times_recipe", "times_eager")]
    return [
        r["name"], f"{digits(r['ms'])} ({digits(r['low'])} to {digits(r['high'])})", digits(r["ms_per_run"]), *ratios,
        f"{100 * r['floor_share']:.1f} %",
        f"{100 * e['whole']:.1f} %, {100 * e['strided']:.1f} %, {100 * e['protocol']:.1f} %" if e else "-",
        f"{r['allocated_gib']:.1f}, {r['reserved_gib']:.1f}" if "allocated_gib" in r else "-",
        f"{r['ready_seconds']:.0f} s" if "ready_seconds" in r else "-",
    ]


def page(result: dict[str, Any]) -> str:
    """A result as Markdown: where it was measured, then its table."""
    compiled = "compiled" if result["compiled"] else "not compiled"
    head = (f"**{result['device']}**, torch {result['torch']}, packs in {result['precision']}, {compiled}; {result['data']}; "
            f"batch {result['batch']}; median of {result['repeats']} times {result['steps']} step(s); load average "
            f"{result['load']} on {result['cores']} cores at the start; commit {result['commit']}. "
            f"Measured again after the packs, the eager step took {result['drift']:.2f} times as long. "
            f"Copy bandwidth {result['bandwidth'] / 1e9:.4g} GB/s, so the floor is "
            f"{result['floors'][result['precision']]:.3g} ms a run and step.")
    if p := result.get("paths"):
        head += (f" Packs of one step in C++: in {p['pairs']} pairs of steps by turns {p['ratio']:.2f} times as fast "
                 f"({p['low']:.2f} to {p['high']:.2f}) as torch's own operations.")
    return f"{head}\n\n{markdown_table(HEADER, map(table_row, result['rows']))}"


def benchmark(device: Device, effort: Effort, images: Images, data: str, out: Path | None) -> Path:
    """Measure, print and store every row; returns the result's file."""
    at = torch.device(device.name)
    images = Images(images.x_train, images.y_train, *every(images, effort.tested), images.classes, images.archive_order)
    single = ResidentSteps(members(1), images, device)  # lends its feed to the eager loop
    result = {**conditions(single, effort, at), "data": f"{COLUMN.name}, {data}"}
    name = file_stem(f"{result['device_type']}-{result['device']}")
    out, rows = out or RESULTS / f"{name}.json", []
    print(f"{result['device']}, {device.precision}; {result['data']}; the floor is "
          f"{digits(result['floors'][device.precision])} ms a run and step.", flush=True)
    work = [partial(measure_recipe, images, effort, at), partial(measure_eager, single.feed, effort, at)]
    work += [partial(measure_pack, runs, images, device, effort, at) for runs in effort.runs]
    del single
    while work:
        try:
            rows.append(work.pop(0)())
        except torch.cuda.OutOfMemoryError:
            print(f"The next row does not fit into the memory of {result['device']}; it and what follows are left out.")
            break
        result["rows"] = with_ratios(rows, result["floors"])
        print(sentence(result["rows"][-1]), flush=True)
        save(out, result)
    if paths := measure_paths(members(1)[0], images, device, effort, at):
        result["paths"] = paths
        save(out, result)
    if len(rows) > 1:
        again = measure_eager(ResidentSteps(members(1), images, device).feed, effort, at)
        result["drift"] = round(again["ms"] / rows[1]["ms"], 3)
        save(out, result)
        print(f"\n{page(result)}\nStored in {out}.")
    return out


def conditions(steps: ResidentSteps, effort: Effort, at: torch.device) -> dict[str, Any]:
    """What the rows of a result have in common. bytes, floors: of a run and step, by precision; bandwidth: bytes a second."""
    facts, batch, bandwidth = SETS[COLUMN.dataset], PROTOCOL.batch_size, copy_bandwidth(at)
    shape = (batch, facts.channels, facts.side, facts.side)
    moved = {p: step_bytes(plain_network("cpu"), shape, ITEM[p]) for p in ("float32", steps.pack.device.precision)}
    about = {name: value for name, value in surroundings(steps.pack.device).items() if name != "runs_in_pack"}
    return {**about, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2), "batch": batch, "steps": effort.steps,
            "repeats": effort.repeats, "bandwidth": round(bandwidth), "bytes": moved,
            "floors": {p: 1000 * n / bandwidth for p, n in moved.items()}}


def every(images: Images, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """About `wanted` test images, evenly over the classes."""
    stride = max(1, len(images.y_test) // wanted)
    return images.x_test[::stride], images.y_test[::stride]


# Command line


def run(arguments: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cpu or cuda (default: cuda where it is)")
    parser.add_argument("--runs", help="sizes of packs (default: 1,4,16,32,64 on CUDA, 1,2,4 on a CPU)")
    parser.add_argument("--data", type=Path, help="a cifar10.npz (default: data/cifar10.npz, or random images without it)")
    parser.add_argument("--steps", help="steps a repeat (default: 48 on CUDA, 1 on a CPU)")
    parser.add_argument("--out", type=Path, help="the file to write (default: benchmarks/results/<device>.json)")
    parser.add_argument("--readme", action="store_true", help="measure nothing; put the stored results into the README")
    options = parser.parse_args(arguments)
    if options.readme:
        return fill_readme(RESULTS, "packs", page)
    if options.device not in (None, "cpu", "cuda"):
        raise UserError(f"--device {options.device!r} is not cpu or cuda.")
    device = choose_device(options.device, None, None)
    usual = EFFORTS["cuda" if device.cuda else "cpu"]
    runs = tuple(whole(text.strip(), "--runs") for text in options.runs.split(",")) if options.runs is not None else usual.runs
    steps = whole(options.steps, "--steps") if options.steps is not None else usual.steps
    images, data = read_images(options.data)
    benchmark(device, Effort(runs, steps, usual.repeats, usual.warm, usual.tested), images, data, options.out)


def main(arguments: Sequence[str] | None = None) -> int:
    return exit_code(partial(run, arguments))


if __name__ == "__main__":
    sys.exit(main())
