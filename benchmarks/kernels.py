"""One training step of a pack, kernel by kernel: time, bytes moved, bandwidth.

    python benchmarks/kernels.py [--device cuda] [--runs 32] [--batch 128] [--out FILE]      # at most 150 s on a GPU
    python benchmarks/kernels.py --readme       # put benchmarks/results/kernels/*.json into benchmarks/README.md

The step is that of benchmarks/packs.py (CE and LDAM-DRW by turns, ResNet-32, CIFAR-10-LT 100), compiled where it would be, but
launched kernel by kernel, so that each can be told from the others. Bytes are those of every tensor that an operator reads or
writes, once each, as the profiler saw their shapes; what a kernel reads again, or keeps in a cache, is not known.
"""

import argparse
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs by its path, with nothing installed

from benchmarks import measuring, packs
from common.errors import exit_code
from common.report.text import markdown_table
from common.store import file_stem
from common.train.device import Device, choose_device
from common.train.record import surroundings
from common.train.resident import ResidentSteps

RESULTS = measuring.RESULTS / "kernels"
WARM, PROFILED = 4, 2  # steps
SHOWN = 25  # rows of the table
ITEM = {"float": 4, "double": 8, "c10::BFloat16": 2, "c10::Half": 2, "long int": 8, "long": 8, "int": 4, "unsigned char": 1,
        "bool": 1}


def profile_steps(device: Device, runs: int, batch: int) -> dict[str, Any]:
    """Profile PROFILED steps; returns the result that `page` shows."""
    images, data = packs.read_images(None)
    members = [packs.with_batch(m, batch) for m in packs.members(runs)]
    begun = time.perf_counter()
    steps = ResidentSteps(members, images, device)
    steps.begin_epoch(0)
    batches = steps.batches()
    for drawn in batches[:WARM]:
        steps.train_batch(0, drawn)
    measuring.drain(steps.pack.rate.device)
    ready = time.perf_counter() - begun
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.cuda else [])]
    begun = time.perf_counter()
    with profile(activities=activities, record_shapes=True) as trace:
        for drawn in batches[WARM:WARM + PROFILED]:
            steps.train_batch(0, drawn)
        measuring.drain(steps.pack.rate.device)
    took = (time.perf_counter() - begun) / PROFILED
    kinds = {event.correlation_id(): event.dtypes() for event in trace.profiler.kineto_results.events() if event.shapes()}
    rows = kernel_rows(trace.events(), kinds, device.cuda)
    about = {k: v for k, v in surroundings(steps.pack.device).items() if k != "runs_in_pack"}
    bandwidth = round(measuring.copy_bandwidth(steps.pack.rate.device))
    steps.close()
    return {**about, "data": data, "runs": runs, "batch": batch, "ready_seconds": round(ready, 1),
            "step_ms": round(1e3 * took, 3), "bandwidth": bandwidth, "rows": rows}


def kernel_rows(events: Iterable[Any], kinds: Mapping[int, Sequence[str]], cuda: bool) -> list[dict[str, Any]]:
    """Calls, milliseconds and bytes of one step by operator and kernel, the longest first; without CUDA by operator alone.

    kinds: id of an event -> types of what the operator was given."""
    rows: dict[str, dict[str, Any]] = {}
    for event in events:
        if cuda:
            timed = [(kernel.name, kernel.duration / 1e3) for kernel in event.kernels]
        else:
            timed = [("", event.self_cpu_time_total / 1e3)] if event.input_shapes is not None else []
        moved = tensor_bytes(event, kinds.get(event.id, ())) if timed else 0.0
        for kernel, ms in timed:
            name = f"{event.name} {shorten(kernel)}".strip()
            row = rows.setdefault(name, {"name": name, "calls": 0.0, "ms": 0.0, "bytes": 0.0})
            row["calls"] += 1 / PROFILED
            row["ms"] += ms / PROFILED
            row["bytes"] += moved / len(timed) / PROFILED
    return sorted(rows.values(), key=lambda row: -row["ms"])


def tensor_bytes(event: Any, kinds: Sequence[str]) -> float:
    """Bytes of the tensors that an operator was given, and of a convolution's result."""
    shapes = event.input_shapes or []
    sizes = [size(shape) * ITEM.get(kind, 0) for shape, kind in zip(shapes, kinds, strict=False)]
    return float(sum(sizes) + result_bytes(event.name, shapes, kinds, getattr(event, "concrete_inputs", None) or []))


def size(shape: Sequence[int]) -> int:
    """Numbers in a tensor; a list of no numbers is what the profiler has for what is no tensor."""
    product = 1
    for n in shape:
        product *= n
    return product if shape else 0


def result_bytes(name: str, shapes: Sequence[Sequence[int]], kinds: Sequence[str], given: Sequence[Any]) -> int:
    """Of a convolution's forward pass, [batch, out, rows, columns] by its stride; of its backward pass the two gradients, which
    are as large as what they are the gradients of; of others nothing, as compiled kernels get their results as arguments."""
    if "convolution_backward" in name and len(shapes) > 2:
        return sum(size(shape) * ITEM.get(kind, 0) for shape, kind in zip(shapes[1:3], kinds[1:3], strict=False))
    if "convolution" not in name or len(shapes) < 2 or len(shapes[0]) != 4 or len(shapes[1]) != 4:
        return 0
    stride = next((v for v in given if isinstance(v, list) and len(v) == 2 and v[0] in (1, 2)), [1, 1])[0]
    batch, _, rows, columns = shapes[0]
    return batch * shapes[1][0] * (rows // stride) * (columns // stride) * ITEM.get(kinds[0], 0)


def shorten(kernel: str) -> str:
    """A kernel's name without its template arguments."""
    return re.sub(r"<.*|\(.*", "", kernel.removeprefix("void "))[:60]


def page(result: dict[str, Any]) -> str:
    """A result as Markdown: where, then the longest kernels, then the rest in one row."""
    total = sum(row["ms"] for row in result["rows"])
    shown, rest = result["rows"][:SHOWN], result["rows"][SHOWN:]
    if rest:
        shown = [*shown, {"name": f"{len(rest)} others", **{k: sum(r[k] for r in rest) for k in ("calls", "ms", "bytes")}}]
    compiled = "compiled" if result["compiled"] else "not compiled"
    head = (f"**{result['device']}**, torch {result['torch']}, {result['precision']}, {compiled}; {result['runs']} runs, batch "
            f"{result['batch']}; a step took {result['step_ms']:.3g} ms under the profiler, its kernels {total:.3g} ms; ready "
            f"after {result['ready_seconds']:.0f} s; copy bandwidth {result['bandwidth'] / 1e9:.4g} GB/s; commit "
            f"{result['commit']}.")
    header = ("operator and kernel", "calls a step", "ms a step", "share", "MB", "GB/s")
    return f"{head}\n\n" + markdown_table(header, ([
        row["name"].replace("|", "/"), f"{row['calls']:.0f}", f"{row['ms']:.3f}", f"{100 * row['ms'] / total:.1f} %",
        f"{row['bytes'] / 1e6:.0f}", f"{row['bytes'] / row['ms'] / 1e6:.3g}" if row["ms"] else "-"] for row in shown))


def run(arguments: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cpu or cuda (default: cuda where it is)")
    parser.add_argument("--runs", type=int, default=32)
    parser.add_argument("--batch", type=int, default=packs.PROTOCOL.batch_size)
    parser.add_argument("--out", type=Path, help="the file to write (default: benchmarks/results/kernels/<device>.json)")
    parser.add_argument("--readme", action="store_true", help="measure nothing; put the stored results into the README")
    options = parser.parse_args(arguments)
    if options.readme:
        return measuring.fill_readme(RESULTS, "kernels", page)
    device = choose_device(options.device, None, None, graph=False)
    result = profile_steps(device, options.runs, options.batch)
    out = options.out or RESULTS / f"{file_stem(result['device'])}.json"
    measuring.save(out, result)
    print(f"{page(result)}\nStored in {out}.")


def main(arguments: Sequence[str] | None = None) -> int:
    return exit_code(partial(run, arguments))


if __name__ == "__main__":
    sys.exit(main())
