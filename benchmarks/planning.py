"""What a campaign would do on a card that is not here, and how long it thinks about that.

    python benchmarks/planning.py [--card "NVIDIA H100 80GB HBM3"] [--gib 79] [--minutes 8] [--records 3000] [--columns C,D]

Simulated records of the papers' real plans lie in a temporary folder beside nothing else. Printed: the packs that fit the
minutes; the number and sizes of all packs and the device-hours of all papers; the seconds of a first and a second reading of
the records, of a choice, and of the plan that a campaign ends with.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs by its path, with nothing installed

from rich.console import Console

from common.campaign.campaign import SHOWN, Campaign, CampaignPaths, Wanted, print_rest, show_plan
from common.campaign.priority import by_worth, schedule, wanted
from common.paper import Paper
from common.plan import missing_runs, plan
from common.store import record_files, save_record
from common.train.packing import LARGEST, memory_limit
from papers.catalog import PAPERS
from tests.page_records import simulated

ROOT = Path(__file__).resolve().parents[1]
console = Console(highlight=False, soft_wrap=True)


def moved(folder: Path) -> tuple[Paper, ...]:
    """The papers with their printed numbers, without any record, in another folder."""
    copies = []
    for paper in PAPERS:
        target = folder / "papers" / paper.name
        target.mkdir(parents=True)
        shutil.copy(paper.folder / "published.csv", target)
        copies.append(replace(paper, folder=target))
    return tuple(copies)


def write_records(papers: tuple[Paper, ...], most: int) -> int:
    """At most so many simulated records, of up to six seeds of everything; returns how many."""
    places = {m.spec.key: m.folder for paper in papers for m in plan(paper, "paper", seeds=6)} if most else {}
    made = list(simulated(papers, seeds=6).values())[:most] if most else []
    for record in made:
        save_record(places[record["key"]], record)
    return len(made)


def timed(what: str, function: Callable[[], Any]) -> Any:
    """Call it and print how long that took, in seconds of this process."""
    begun = time.process_time()
    result = function()
    console.print(f"{what}: {time.process_time() - begun:.2f} CPU-s")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", default="NVIDIA H100 80GB HBM3", help="as the card calls itself")
    parser.add_argument("--gib", type=float, default=79.0, help="its memory")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--records", type=int, default=0)
    parser.add_argument("--columns", default="", metavar="C,D", help="these only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="planning-") as name:
        simulate(Path(name), options)


def simulate(folder: Path, options: argparse.Namespace) -> None:
    papers = moved(folder)
    count = write_records(papers, options.records)
    console.print(f"{count} records; {options.minutes:g} minutes on {options.card} in bfloat16.")
    columns = [name for name in options.columns.split(",") if name]
    runs, worth = timed("what is wanted", lambda: wanted(papers, "paper", columns))
    selection = Wanted(runs, worth, timed("what all want", lambda: wanted(papers, "paper")[0]))
    place = {"device": options.card, "precision": "bfloat16", "compiled": True, "memory": options.gib * 2**30}
    paths = CampaignPaths(folder / "papers", folder / "work", ROOT / "benchmarks" / "results",
                    lambda m: memory_limit(m, "bfloat16", place["memory"]))
    deadline = time.monotonic() + 60 * options.minutes
    campaign = timed("reading the records", lambda: Campaign(paths, selection, place, console, deadline))
    timed("reading them again", campaign.read_costs)
    campaign.deadline = time.monotonic() + 60 * options.minutes
    show_plan(campaign, 1)
    missing = missing_runs(runs, record_files(folder / "papers"))
    choose = campaign.chooser(lambda ready: [])
    timed("a choice", lambda: choose(missing, lambda m: LARGEST))
    timed("the plan at the end", lambda: (schedule(campaign.missing(), campaign.offer, campaign.costs, float("inf"), most=SHOWN),
                                          print_rest(campaign)))
    packs = campaign.form(by_worth(missing, worth))
    sizes = ", ".join(f"{count} × {size}" for size, count in sorted(Counter(map(len, packs)).items(), reverse=True))
    console.print(f"{len(packs)} packs of the {len(missing)} missing runs: {sizes}.")


if __name__ == "__main__":
    main()
