"""Simulated records of the papers' real plans: every method, column and seed of the published protocol, near what is printed.

Numbers are drawn from a generator that each run's key seeds, so they are the same every time. The records are not sealed: nothing
that draws a page looks at their digest. No torch.
"""

import atexit
import random
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from common.data.sets import SETS
from common.paper import Paper
from common.plan import Run, merged, plan
from common.report.groups import WHOLE
from common.report.page.page import build_page
from common.report.published import columns_shown_for, published
from common.report.results import results_of
from tests.records import class_counts, made_hits, make_record

ROOT = Path(__file__).resolve().parents[1]
DEVICES = ("NVIDIA H200", "NVIDIA A100-SXM4-80GB")


def simulated(papers: Sequence[Paper], profile: str = "paper", every: int = 1, seeds: int | None = None
              ) -> dict[str, dict[str, Any]]:
    """A record for every `every`-th planned run of all papers; one in 97 has diverged."""
    found, printed = {}, {}
    for paper in papers:
        printed |= {(column.name, row.method): row for row in published(paper).itertuples() if row.group in WHOLE
                    for column in columns_shown_for(paper, profile).get(row.column, ())}
    for i, item in enumerate(merged(item for paper in papers for item in plan(paper, profile, seeds=seeds)).values()):
        if i % every == 0:
            row = printed.get((item.spec.column.name, item.method.name))
            centre = 55.0 if row is None else row.number if row.metric == "top1_accuracy" else 100 - row.number
            record = simulate(item, centre, diverges=i % 97 == 96)
            found[record["key"]] = record
    return found


def simulate(item: Run, centre: float, diverges: bool = False) -> dict[str, Any]:
    """A record with curves, per-class accuracy and made of its own, its accuracy about `centre`."""
    draw = random.Random(item.spec.key)
    method = random.Random(str(item.spec.as_json()["method"]))
    accuracy = round(min(99.5, max(5.0, centre + method.gauss(0, 0.9) + draw.gauss(0, 0.25))), 2)
    made = {"device": DEVICES[draw.random() < 0.02], "device_type": "cuda", "precision": "bfloat16", "compiled": True,
            "seconds": round(draw.uniform(12, 30), 3), "torch": "2.15.0", "python": "3.11.7", "runs_in_pack": 64}
    data, epochs = SETS[item.spec.column.dataset], item.spec.protocol.epochs
    changes: dict[str, Any] = {"made": made, "counts": class_counts(item, data.train // data.classes)}
    if diverges:
        some = epochs // 4 + 1
        changes["curves"] = {"train_loss": [*falling(draw, some - 1), None], "test_accuracy": rising(draw, some, 30.0),
                             "tested": [1000] * some}
        return make_record(item, None, **changes | {"made": made | {"diverged_in_epoch": some - 1}})
    per_class = [accuracy + 25 * (0.5 - k / data.classes) + draw.gauss(0, 4) for k in range(data.classes)]
    changes |= {
        "per_class_accuracy": [round(min(100.0, max(0.0, value)), 1) for value in per_class],
        "calibration": {"ece": round(draw.uniform(2, 20), 2)},
        "groups": {"many": round(min(100.0, accuracy + 9), 2), "medium": accuracy, "few": round(max(0.0, accuracy - 12), 2)},
        "curves": {"train_loss": falling(draw, epochs), "test_accuracy": rising(draw, epochs, accuracy),
                   "tested": [1000] * epochs},
    }
    best = round(min(100.0, accuracy + abs(draw.gauss(0, 0.3))), 2)
    return make_record(item, accuracy, **changes) | {
        "accuracy": {"last": accuracy, "best": best, "best_epoch": epochs - 1 - epochs // 9}}


def rising(draw: random.Random, epochs: int, last: float) -> list[float]:
    """Test accuracies that approach `last`, with noise that dies out."""
    parts = [(e + 1) / epochs for e in range(epochs)]
    return [round(max(0.0, last * part ** 0.25 - abs(draw.gauss(0, 4 * (1 - part)))), 2) for part in parts]


def falling(draw: random.Random, epochs: int) -> list[float]:
    return [round(2.4 / (1 + 9 * e / max(1, epochs)) + draw.uniform(0, 0.05), 6) for e in range(epochs)]


@cache
def full_page() -> tuple[Path, str, int]:
    """The page of all papers with four seeds of everything, once a process: its file, `build_page`'s line, number of records."""
    from papers.catalog import PAPERS

    records = simulated(PAPERS, seeds=4) | simulated(PAPERS, "quick", every=7)
    hits = made_hits(records, images=10_000)
    folder = tempfile.TemporaryDirectory(prefix="page-")
    atexit.register(folder.cleanup)
    target = Path(folder.name) / "index.html"
    begun = time.perf_counter()
    line = build_page(results_of(PAPERS, records, "paper", hits), ROOT / "figures", {}, target)
    print(f"{len(records)} records: {line}, in {time.perf_counter() - begun:.1f} s")
    return target, line, len(records)
