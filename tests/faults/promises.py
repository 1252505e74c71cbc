"""`docs/promises.md` and `tests/faults/results.json`, from what the trials found: no figure in them is typed.

    python -m tests.faults.promises [--progress FILE]
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.report.text import markdown_table
from common.store import write_atomically
from tests.faults.fuzz import TARGETS
from tests.faults.trials import KINDS, PROGRESS, done_already

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results.json")
MENDED = Path(__file__).with_name("mended.json")
PAGE = ROOT / "docs" / "promises.md"
NOT_SHOWN = "not shown yet"
PROMISES = (  # what is changed, on a CPU, on CUDA, what shows it on a CPU, what on CUDA
    ("killed and started again (SIGKILL, SIGTERM, Ctrl-C)", "same bits", "same bits", "tests/faults/trials.py", NOT_SHOWN),
    ("killed and started again under torchrun, as many processes", "same bits", "same bits",
     "tests/common/train/test_kill.py::test_a_killed_process_costs_nothing_but_time", NOT_SHOWN),
    ("the same command twice", "same bits", "same bits", "tests/faults/trials.py", NOT_SHOWN),
    ("two trainings at once in one folder", "same bits", "same bits",
     "tests/faults/test_faults.py::test_two_trainings_in_one_folder_end_with_the_bits_of_one", NOT_SHOWN),
    ("two campaigns at once on one machine", "same bits", "same bits",
     "tests/faults/test_faults.py::test_two_campaigns_on_one_machine_end_with_the_bits_of_one_alone", NOT_SHOWN),
    ("a neighbour in the pack diverges", "same bits", "same bits",
     "tests/faults/test_stress.py::test_a_run_that_is_not_a_number_changes_no_bit_of_the_others", NOT_SHOWN),
    ("another size of pack", "same to rounding", "same to rounding", "tests/common/train/test_kinds.py", NOT_SHOWN),
    ("one device or several (campaign)", "same bits", "same bits",
     "tests/common/train/test_engines.py::test_a_killed_process_gives_its_pack_back_and_the_weights_are_those_of_an_"
     "undisturbed_run", NOT_SHOWN),
    ("another number of processes under torchrun", "same to rounding", "same to rounding",
     "tests/common/train/test_two_processes.py::test_two_processes_train_as_one", NOT_SHOWN),
    ("another precision", "same in distribution", "same in distribution", NOT_SHOWN, NOT_SHOWN),
    ("CPU or CUDA", "same in distribution", "same in distribution", NOT_SHOWN, NOT_SHOWN),
    ("another version of torch", "same in distribution", "same in distribution", NOT_SHOWN, NOT_SHOWN),
)


def summarise(lines: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The trials by kind: how many there are to be, how many were made, how, and how many found something."""
    kinds = {kind.name: kind.trials + kind.signals for kind in KINDS}
    kinds |= {f"damaged {target.name}": target.cases for target in TARGETS}
    found = {}
    for name, planned in kinds.items():
        mine = [entry for entry in lines.values() if entry["kind"] == name]
        found[name] = {"planned": planned, "made": len(mine), "how": dict(sorted(Counter(e["how"] for e in mine).items())),
                       "found": sum(bool(e["faults"]) for e in mine)}
    commits = sorted({entry["commit"] for entry in lines.values()})
    return {"kinds": found, "commits": commits, "mended": json.loads(MENDED.read_text())}


def page(results: Mapping[str, Any]) -> str:
    """The promise in words and figures."""
    kills = {name: kind for name, kind in results["kinds"].items() if not name.startswith("damaged")}
    damaged = {name.removeprefix("damaged "): k for name, k in results["kinds"].items() if name.startswith("damaged")}
    made, planned = (sum(kind[what] for kind in kills.values()) for what in ("made", "planned"))
    rows = [[name, f"{k['made']} of {k['planned']}", ", ".join(f"{n} {how}" for how, n in k["how"].items()), k["found"]]
            for name, k in kills.items()]
    shown = [(change, f"{cpu} ({_test(on_cpu)})", f"{cuda} ({_test(on_cuda)})")
             for change, cpu, cuda, on_cpu, on_cuda in PROMISES]
    return "\n\n".join([
        "# What is promised, and how it was tried",
        "This file is written by `python -m tests.faults.promises` from `tests/faults/results.json`. `make faults` makes the "
        "trials; it goes on where it was stopped.",
        "## What stays equal",
        "*Same bits*: weights, predictions and numbers of a record, of runs in float32 on the same machine with as many threads. "
        "*Same to rounding*: the same sums in another order. *Same in distribution*: other runs of the same kind, as of other "
        "seeds.",
        markdown_table(["what changes", "on a CPU", "on CUDA"], shown).strip(),
        "## What is never lost",
        f"Commands are killed with SIGKILL at every write, rename and fsync and at random moments: {made} of {planned} trials "
        f"were made, of commit {' and '.join(results['commits']) or 'none'}. After each, every file is whole or as it was, and "
        "the next start ends as if nothing had happened: the same bits, every record once. *Found* are the trials in which that "
        "was not so, all mended since (below). SIGTERM and Ctrl-C end "
        "a training within seconds (`GRACE` in `common/stopping.py`) after the end of its epoch (on large sets of its batch), "
        "which is saved; a longer epoch is begun again from the last saved state.",
        markdown_table(["command", "trials", "killed at (moment: a random one)", "found"], rows).strip(),
        "## What damaged files do",
        "Files are damaged by Hypothesis, the same way every time. Each command ends as ever where the damage does not matter, "
        "else in one sentence, with exit code 2 and nothing changed (`merge` takes what is good).",
        markdown_table(["file", "cases", "found"], [[name, f"{k['made']} of {k['planned']}", k["found"]]
                                                    for name, k in damaged.items()]).strip(),
        "Full disks, folders that may only be read, folders and files in each other's place, clocks that go backwards, two "
        "campaigns in one folder, machines that disagree and records of newer versions: `tests/faults/test_faults.py`. Hostile "
        "tars, states, lists and records: `tests/faults/test_hostile.py`. Not-a-number, classes without images, thousands of "
        "records: `tests/faults/test_stress.py`.",
        f"## Found and mended: {len(results['mended'])}",
        "\n".join(f"- {one['fault']} ({one['by']})" for one in results["mended"]),
    ]) + "\n"


def _test(name: str) -> str:
    return name if name == NOT_SHOWN else f"`{name}`"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--progress", type=Path, default=PROGRESS, help="what the trials left; without it the page alone is made")
    options = parser.parse_args(arguments)
    if options.progress.exists():
        write_atomically(RESULTS, json.dumps(summarise(done_already(options.progress)), indent=1).encode() + b"\n")
    write_atomically(PAGE, page(json.loads(RESULTS.read_text())).encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
