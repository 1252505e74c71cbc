"""Trainings on the cores of a CPU: one process with all its threads, or a process of one thread a core; quiet, and while another
program takes cores.

    python benchmarks/cores.py               measure, print and store (ResNet-32, batch 128, real images where they are)
    python benchmarks/cores.py --readme      put benchmarks/results/cores/*.json into benchmarks/README.md

Every row is whole processes that train for some seconds from the same moment on; images a second are counted over all of them.
The first way is the baseline under the same load: one process, whose network is torch's own operations.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs by its path, with nothing installed

import torch

from benchmarks.measuring import RESULTS, fill_readme, save
from benchmarks.packs import COLUMN, PROTOCOL, members, read_images
from common.checkout import commit
from common.errors import exit_code
from common.report.text import markdown_table
from common.store import file_stem
from common.train.device import Device
from common.train.record import device_name
from common.train.resident import ResidentSteps

CPU = Device("cpu", "float32", False)
FOLDER = RESULTS / "cores"
SECONDS, ROUNDS = 12.0, 3
HEADER = ("way", "cores that others take", "images a second (lowest to highest)", "speed, × the first way")


class Way(NamedTuple):
    """So many processes of so many threads each, with the C++ step or with torch's own operations."""

    name: str
    processes: int
    threads: int
    native: bool


def ways(cores: int) -> list[Way]:
    return [Way("one process, torch's operations", 1, cores, False), Way("one process, C++ step", 1, cores, True),
            Way("a process a core, C++ step", cores, 1, True)]


def train(way: Way, ready, begin, seconds: float, answer) -> None:
    """The life of one training process: get ready, wait for the common moment, count the steps until the time is over."""
    torch.set_num_threads(way.threads)
    trained = ResidentSteps(members(1), read_images(None)[0], CPU)
    if not way.native:
        trained.go_eager()
    trained.begin_epoch(0)
    batches = cycle(trained.batches()[:trained.pack.batch_sizes.count(PROTOCOL.batch_size)])
    trained.train_batch(0, next(batches))
    ready.release()
    begin.wait()
    begun, steps = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        trained.train_batch(0, next(batches))
        steps += 1
    answer.put(steps * PROTOCOL.batch_size / (time.monotonic() - begun))


def spin(stop) -> None:
    """Another program, which takes one core."""
    while not stop.is_set():
        sum(range(100_000))


def images_a_second(way: Way, busy: int, seconds: float) -> float:
    """Of all processes together, while `busy` other processes take a core each."""
    context = multiprocessing.get_context("spawn")
    ready, begin, stop, answer = context.Semaphore(0), context.Event(), context.Event(), context.Queue()
    others = [context.Process(target=spin, args=(stop,), daemon=True) for _ in range(busy)]
    trainings = [context.Process(target=train, args=(way, ready, begin, seconds, answer), daemon=True)
                 for _ in range(way.processes)]
    for process in trainings:
        process.start()
    for _ in trainings:
        ready.acquire()
    for process in others:
        process.start()
    begin.set()
    rate = sum(answer.get() for _ in trainings)
    stop.set()
    for process in [*trainings, *others]:
        process.join()
    return rate


def measure(cores: int, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """A row for every way and load; the rounds of all ways take turns."""
    rows = []
    for busy in (0, 1):
        by_way: dict[Way, list[float]] = {way: [] for way in ways(cores)}
        for _ in range(rounds):
            for way, rates in by_way.items():
                rates.append(images_a_second(way, busy, seconds))
                print(f"{way.name}, {busy} core(s) busy: {rates[-1]:.0f} images/s", flush=True)
        base = sorted(by_way[ways(cores)[0]])[rounds // 2]
        for way, rates in by_way.items():
            rates.sort()
            rows.append({**way._asdict(), "busy": busy, "images": round(rates[rounds // 2], 1), "low": round(rates[0], 1),
                         "high": round(rates[-1], 1), "ratio": round(rates[rounds // 2] / base, 3)})
    return rows


def page(result: dict[str, Any]) -> str:
    """A result as Markdown."""
    head = (f"**{result['device']}**, {result['cores']} cores, torch {result['torch']}, {COLUMN.backbone}, batch "
            f"{PROTOCOL.batch_size}, {result['data']}; median of {result['rounds']} rounds of {result['seconds']:g} s; "
            f"load average {result['load']} at the start; commit {result['commit']}.")
    rows = [[r["name"], str(r["busy"]), f"{r['images']:.0f} ({r['low']:.0f} to {r['high']:.0f})", f"{r['ratio']:.2f}"]
            for r in result["rows"]]
    return f"{head}\n\n{markdown_table(HEADER, rows)}"


def run(arguments: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of a round (default: {SECONDS:g})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of every way (default: {ROUNDS})")
    parser.add_argument("--readme", action="store_true", help="measure nothing; put the stored results into the README")
    options = parser.parse_args(arguments)
    if options.readme:
        return fill_readme(FOLDER, "cores", page)
    cores, load = len(os.sched_getaffinity(0)), round(os.getloadavg()[0], 2)
    rows = measure(cores, options.seconds, options.rounds)
    result = {"device": device_name(CPU), "torch": torch.__version__, "commit": commit(), "cores": cores, "load": load,
              "data": read_images(None)[1], "seconds": options.seconds, "rounds": options.rounds, "rows": rows}
    FOLDER.mkdir(parents=True, exist_ok=True)
    out = FOLDER / f"{file_stem(result['device'])}.json"
    save(out, result)
    print(f"\n{page(result)}\nStored in {out}.")


if __name__ == "__main__":
    sys.exit(exit_code(partial(run, None)))
