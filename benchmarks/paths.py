"""Whether the C++ step trains as torch's own operations do: losses and accuracies of the first epochs, over several seeds; and
how much faster it is for each kind of network that it knows.

    python benchmarks/paths.py [--seeds N] [--epochs N]     measure, print and store (one thread; real images where they are)
    python benchmarks/paths.py --gains                      only how much faster (two minutes); the epochs stored before stay
    python benchmarks/paths.py --readme                     put benchmarks/results/paths/*.json into benchmarks/README.md

Each seed trains ResNet-32 on CIFAR-10-LT 100 once on either path: the same weights at first, the same images in the same order,
tested on the whole test set after each epoch. Rounding alone tells the two apart, and training makes of it what it makes of
another seed; so a fault of the C++ step would show as a mean difference that is large beside its standard error.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs by its path, with nothing installed

import torch

from benchmarks.measuring import RESULTS, fill_readme, save
from benchmarks.packs import COLUMN, EFFORTS, METHODS, PROTOCOL, measure_paths, read_images
from common.checkout import commit
from common.data.sets import Images
from common.errors import UserError, exit_code
from common.methods.method import Method, Net, run_spec
from common.plan import Run
from common.report.text import markdown_table
from common.spec import Column
from common.store import file_stem
from common.train.device import Device
from common.train.loop import train_epoch
from common.train.record import device_name
from common.train.resident import ResidentSteps

CPU = Device("cpu", "float32", False)
FOLDER = RESULTS / "paths"
PATHS = ("native", "eager")
HEADER = ("epoch", "training loss: C++ step", "torch's operations", "difference, ± its standard error",
          "test accuracy: C++ step", "torch's operations", "difference, ± its standard error")
CE = METHODS[0]
NETWORKS = {  # what it is, its column, and a method of it
    "ResNet-32": (COLUMN, CE),
    "ResNet-32, nine shifted means (two_head)": (COLUMN, replace(CE, net=Net("shifted"), head=replace(CE.head, groups="uneven"))),
    "ResNet-32, two branches (icu)": (COLUMN, replace(CE, net=Net("two-branch"))),
    "ResNet-110": (replace(COLUMN, backbone="resnet110"), CE),
    "ResNet-18, 64 to 512 channels, projections": (replace(COLUMN, backbone="resnet18"), CE),
}


def member(column: Column, method: Method, seed: int) -> Run:
    return Run(run_spec(column, PROTOCOL, method, seed), method, RESULTS)


def train(seed: int, path: str, images: Images, epochs: int) -> tuple[list[float], list[float]]:
    """Mean training loss and test accuracy in percent after each epoch of cross-entropy on one path."""
    steps = ResidentSteps([member(COLUMN, CE, seed)], images, CPU)
    if path == "eager":
        steps.go_eager()
    elif steps.path != path:
        raise UserError("The C++ step cannot be built here (see above), so there is nothing to compare.")
    losses, accuracies = [], []
    for epoch in range(epochs):
        losses.append(train_epoch(steps, epoch).item())
        accuracies.append(torch.cat([tally.accuracy() for tally in steps.evaluate()]).item())
        print(f"seed {seed}, {path}, epoch {epoch + 1}/{epochs}: loss {losses[-1]:.4f}, accuracy {accuracies[-1]:.2f} %",
              flush=True)
    return losses, accuracies


def measure(seeds: int, epochs: int, images: Images) -> list[dict[str, Any]]:
    """A row an epoch: loss and accuracy on both paths, one number a seed."""
    trained = {path: [train(seed, path, images, epochs) for seed in range(seeds)] for path in PATHS}
    return [{"epoch": epoch + 1} | {path: {"loss": [round(losses[epoch], 6) for losses, _ in runs],
                                           "accuracy": [round(accuracies[epoch], 4) for _, accuracies in runs]}
                                    for path, runs in trained.items()} for epoch in range(epochs)]


def measure_gains(images: Images) -> dict[str, dict[str, float]]:
    """Of each network by its name: how often faster a step is in C++, see `measure_paths`."""
    gains = {}
    for name, (column, method) in NETWORKS.items():
        gain = measure_paths(member(column, method, 0), images, CPU, EFFORTS["cpu"], torch.device("cpu"))
        if gain is None:
            raise UserError("The C++ step cannot be built here (see above), so there is nothing to compare.")
        gains[name] = gain
        print(f"{name}: {gain['ratio']:.2f} times as fast ({gain['low']:.2f} to {gain['high']:.2f})", flush=True)
    return gains


def difference(row: dict[str, Any], what: str) -> tuple[float, float]:
    """Mean over the seeds of C++ minus torch, and the standard error of that mean."""
    each = [a - b for a, b in zip(row["native"][what], row["eager"][what], strict=True)]
    return mean(each), stdev(each) / len(each) ** 0.5


def page(result: dict[str, Any]) -> str:
    """A result as Markdown."""
    head = (f"**{result['device']}**, torch {result['torch']}, {COLUMN.name}, {COLUMN.backbone}, batch {PROTOCOL.batch_size}, "
            f"{result['data']}; means over {result['seeds']} seeds; commit {result['commit']}.")
    rows = []
    for row in result["rows"]:
        cells = [str(row["epoch"])]
        for what, digits in (("loss", 4), ("accuracy", 2)):
            off, error = difference(row, what)
            cells += [f"{mean(row[path][what]):.{digits}f}" for path in PATHS] + [f"{off:+.{digits}f} ± {error:.{digits}f}"]
        rows.append(cells)
    faster = [[name, f"{g['ratio']:.2f} ({g['low']:.2f} to {g['high']:.2f})"] for name, g in result["gains"].items()]
    pairs = next(iter(result["gains"].values()))["pairs"]
    second = markdown_table(("a step of", f"times as fast in C++: median (lowest to highest) of {pairs} pairs"), faster)
    return f"{head}\n\n{markdown_table(HEADER, rows)}\nSteps by turns, commit {result['gains_commit']}:\n\n{second}"


def run(arguments: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="seeds 0 to N - 1, at least 2 (default: 4)")
    parser.add_argument("--epochs", type=int, default=2, help="of each training (default: 2)")
    parser.add_argument("--gains", action="store_true", help="measure only how much faster a step is")
    parser.add_argument("--readme", action="store_true", help="measure nothing; put the stored results into the README")
    options = parser.parse_args(arguments)
    if options.readme:
        return fill_readme(FOLDER, "paths", page)
    if options.seeds < 2 or not 1 <= options.epochs <= PROTOCOL.epochs:
        raise UserError(f"--seeds must be 2 or more, and --epochs from 1 to {PROTOCOL.epochs}.")
    torch.set_num_threads(1)
    images, data = read_images(None)
    out = FOLDER / f"{file_stem(device_name(CPU))}.json"
    if options.gains and not out.exists():
        raise UserError(f"{out} is not here: without --gains, it is made.")
    gains = {"gains": measure_gains(images), "gains_commit": commit()}
    if options.gains:
        result = {**json.loads(out.read_text()), **gains}
    else:
        rows = measure(options.seeds, options.epochs, images)
        result = {"device": device_name(CPU), "torch": torch.__version__, "commit": commit(), "data": data,
                  "seeds": options.seeds, "rows": rows, **gains}
    FOLDER.mkdir(parents=True, exist_ok=True)
    save(out, result)
    print(f"\n{page(result)}\nStored in {out}.")


if __name__ == "__main__":
    sys.exit(exit_code(partial(run, None)))
