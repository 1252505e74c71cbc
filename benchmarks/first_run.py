"""The parts of benchmarks/gpu_first_run.sh: a check of captured steps before a campaign, and forty lines after it.

    python benchmarks/first_run.py smoke [--device cuda] [--column cifar10-lt-100] [--runs 32]
    python benchmarks/first_run.py summary [--column cifar10-lt-100] [--out FOLDER]
    python benchmarks/first_run.py compare [--device cuda] [--column cifar10-lt-100]      # one seed in float32, a minute or two
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs by its path, with nothing installed

from common.campaign.priority import offers, wanted
from common.cost import BACKWARD, Costs, Speed
from common.errors import exit_code
from common.models.sizes import multiplications
from common.plan import Run
from common.spec import ProfileName
from common.store import load_records
from common.train.packing import form_packs, together
from papers.catalog import PAPERS

ROOT = Path(__file__).resolve().parents[1]
STEPS, SMALL_BATCH = 2, 16
EXPECTED = {"cifar10-lt-100": (69.0, 73.0)}  # cross-entropy at the last epoch, in percent; the literature has 70.4 to 71.4
LINES = 40


def profile_of(column: str) -> ProfileName:
    return "quick" if column.startswith("digits") else "paper"


def best_runs(column: str, runs: int) -> list[Run]:
    """The pack with which a campaign on this column begins."""
    planned, worth = wanted(PAPERS, profile_of(column), [column])
    ready = [m for m in planned if not m.start]
    return list(offers(ready, worth, partial(form_packs, limit=lambda item: runs), Costs(Speed()))[0].pack)


def smoke(device: str, column: str, runs: int) -> None:
    """Two steps of the campaign's first pack in float64, captured where the device can, against the same on the CPU."""
    import torch

    from benchmarks.packs import with_batch
    from common.data.sets import load
    from common.train.device import Device
    from common.train.resident import ResidentSteps

    members = [with_batch(m, SMALL_BATCH) for m in together(best_runs(column, runs))]
    images, packs = load(members[0].spec.column.dataset, ROOT / "data"), []
    for name in (device, "cpu"):
        begun = time.perf_counter()
        steps = ResidentSteps(members, images, Device(name, "float64", False))
        steps.begin_epoch(0)
        for batch in steps.batches()[:STEPS]:
            steps.train_batch(0, batch)
        losses = steps.pack.loss_sum.cpu() / STEPS / SMALL_BATCH
        print(f"{STEPS} steps of {steps.pack.runs} runs in float64 on {name}: mean loss {losses.mean():.4f}, "
              f"{time.perf_counter() - begun:.1f} s", flush=True)
        packs.append(steps.pack)
        steps.close()
    for run, member in enumerate(members):
        theirs = packs[1].run_state(run)
        for part, tensor in packs[0].run_state(run).items():
            torch.testing.assert_close(tensor.cpu(), theirs[part], rtol=1e-4, atol=1e-6,
                                       msg=lambda m, at=f"{member.label}, {part}": f"{at} differs from the CPU's: {m}")
    print(f"All weights, statistics and momenta of the {len(members)} runs agree.")


def compare(device: str, column: str) -> None:
    """Train seed 0 of cross-entropy alone, in float32, not compiled, in a folder of its own, and say how it ends."""
    from common.data.sets import load
    from common.train.device import Device
    from common.train.loop import train_pack
    from common.train.state import Workspace

    planned, _ = wanted(PAPERS, profile_of(column), [column], seeds=1)
    member = next(m for m in planned if m.method.name == "ce")
    with tempfile.TemporaryDirectory(prefix="compare-") as name:
        alone = replace(member, folder=Path(name) / member.folder.relative_to(ROOT))
        train_pack([alone], load(member.spec.column.dataset, ROOT / "data"), Device(device, "float32", False),
                   Workspace(Path(name) / "work", None))
        record, = load_records(Path(name) / "papers").values()
    last, best = (record["accuracy"][kind] for kind in ("last", "best"))
    print(f"{member.label} alone in float32 on {device}: last {last:.2f}, best {best:.2f}")


def summary(column: str, out: Path | None) -> int:
    """At most LINES lines on what the campaign did. Returns 1 if cross-entropy is not where it belongs, or did not end."""
    records = [r for r in load_records(ROOT / "papers").values()
               if r["label"].split()[0] == column and r["made"]["finished"] >= started(ROOT / ".work")]
    files = [f"{p.name} {p.stat().st_size / 2**20:.1f} MiB" for p in sorted(out.iterdir())] if out and out.is_dir() else []
    lines = [*speed_lines(ROOT / ".work" / "probes"), f"To take home: {', '.join(files) or 'nothing'}.",
             f"{len(records)} records of {column}:"]
    code, verdict = judge(column, records)
    rows = result_lines(records)
    most = LINES - len(lines) - 1
    lines += rows[:most] if len(rows) <= most else [*rows[:most - 1], f"and {len(rows) - most + 1} more methods."]
    print("\n".join([*lines, verdict][-LINES:]))
    return code


def started(work: Path) -> str:
    """When the first run began, in ISO 8601; everything where that is not known."""
    file = work / "first-run-started"
    return file.read_text().strip() if file.exists() else ""


def speed_lines(folder: Path) -> list[str]:
    """Milliseconds a step and run of each size of pack, tests not counted apart, and the seconds until it trained."""
    lines = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        for row in result["rows"]:
            each = row["seconds_per_work"] * BACKWARD * multiplications("resnet32", 32, 3) / 1e12 * 128 * 1e3
            lines.append(f"{result['device']}, {result['precision']}, {row['backbone']}, {row['runs']} runs side by side: "
                         f"{each:.3f} ms a step and run (as of ResNet-32, batch 128); ready after {row['ready_seconds']:.0f} s.")
    return lines or ["No pack ran for long enough to be timed."]


def result_lines(records: Sequence[dict[str, Any]]) -> list[str]:
    """Last and best accuracy of each method, and of which seeds."""
    by_label: dict[str, list[dict[str, Any]]] = {}
    for record in sorted(records, key=lambda r: (r["label"], r["spec"]["seed"])):
        by_label.setdefault(record["label"].split(maxsplit=1)[1], []).append(record)
    lines = []
    for label, same in by_label.items():
        values = [" ".join("diverged" if r["accuracy"][k] is None else f"{r['accuracy'][k]:.2f}" for r in same) for k in
                  ("last", "best")]
        lines.append(f"  {label}: last {values[0]}; best {values[1]}")
    return lines


def judge(column: str, records: Sequence[dict[str, Any]]) -> tuple[int, str]:
    """0 and a sentence if the last epochs of cross-entropy have the mean that they should, else 1 and what to do."""
    plain = [r["accuracy"]["last"] for r in records if r["label"].split(maxsplit=1)[1].startswith("ce@")]
    values = [v for v in plain if v is not None]
    if not records or not values:
        return 1, "STOP: no run of cross-entropy ended; the log above and .work/log.jsonl say why."
    low, high = EXPECTED.get(column, (0.0, 100.0))
    if low <= mean(values) <= high:
        return 0, f"Cross-entropy ends at {mean(values):.2f} %, within {low:g} to {high:g}: go on."
    return 1, (f"STOP: cross-entropy ends at {mean(values):.2f} %, outside {low:g} to {high:g}. Compare one seed in float32: "
               f"python benchmarks/first_run.py compare --column {column}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("smoke", "summary", "compare"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--column", default="cifar10-lt-100")
    parser.add_argument("--runs", type=int, default=32)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    commands = {"summary": partial(summary, options.column, options.out),
                "compare": partial(compare, options.device, options.column),
                "smoke": partial(smoke, options.device, options.column, options.runs)}
    return exit_code(commands[options.part])


if __name__ == "__main__":
    sys.exit(main())
