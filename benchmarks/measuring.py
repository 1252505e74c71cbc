"""What the benchmarks share: times and bandwidth of a device, and where results are stored and shown."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from common.checkout import ROOT
from common.errors import UserError
from common.report.readme import fill
from common.store import write_atomically

RESULTS, README = ROOT / "benchmarks" / "results", ROOT / "benchmarks" / "README.md"


def copy_bandwidth(at: torch.device) -> float:
    """Bytes a second that a large copy on the device reads and writes: median of five."""
    size = 2**30 if at.type == "cuda" else 2**28
    source = torch.ones(size // 4, device=at)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * size / (median(times(partial(target.copy_, source), 4, 5, at)) / 1000)


def times(work: Callable[[], Any], steps: int, repeats: int, at: torch.device) -> list[float]:
    """Milliseconds a call of `work`: the mean over `steps` calls, `repeats` times; the device is drained around each."""
    milliseconds = []
    for _ in range(repeats):
        drain(at)
        begun = time.perf_counter()
        for _ in range(steps):
            work()
        drain(at)
        milliseconds.append((time.perf_counter() - begun) * 1000 / steps)
    return milliseconds


def drain(at: torch.device) -> None:
    if at.type == "cuda":
        torch.cuda.synchronize(at)


def digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def fill_readme(folder: Path, name: str, page: Callable[[dict[str, Any]], str]) -> None:
    """Put every result stored in a folder into the README's block of that name."""
    files = sorted(folder.glob("*.json"))
    try:
        pages = [page(json.loads(file.read_text())) for file in files]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"A file in {folder} is no result of this version ({error!r}); delete it, measure again.") from None
    fill(README, name, "\n\n".join(pages) or "No result is stored yet.")
    print(f"{len(files)} result(s) in {README}.")


def save(out: Path, result: dict[str, Any]) -> None:
    write_atomically(out, json.dumps(result, indent=1, allow_nan=False).encode() + b"\n")


def whole(text: str, what: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{what} {text!r} is not a whole number above 0.")
    return int(text)
