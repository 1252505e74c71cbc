"""`answer`: let finished runs answer a further test set, whose predictions lie beside the records in the same form.

They are in `<paper>/second-tests/<name>-<digest>/`, in a file for each pack, under the first 16 digits of their record's digest:
so they belong to this very record, and to no later one of the same run.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from common.data.second_tests import FurtherImages, load_further
from common.data.sets import load
from common.errors import UserError
from common.paper import Paper
from common.plan import Run, plan_all, resolve_profile
from common.predictions import SUFFIX, Predictions, decode, write_predictions
from common.report.clean import FURTHER
from common.report.results import Record
from common.store import load_records
from common.train.packing import form_packs, memory_limit, together

if TYPE_CHECKING:
    from common.train.device import Device

ON_CPU = 8  # runs side by side


def command_answer(papers: Sequence[Paper], options: argparse.Namespace, data: Path, console: Console) -> None:
    """Every selected run on the test set's dataset that is finished, has its weights here and has not answered yet."""
    from common.train.device import choose_device, place_of

    tests = find_tests(options.name, data)
    profile = resolve_profile(papers, options.profile, options.column, data, console)
    planned = plan_all(papers, profile, options.column, options.method, options.seeds)
    records = load_records(papers[0].folder.parent, [item.spec.key for item in planned])
    ready, why = ready_to_answer(planned, records, tests)
    for sentence in why:
        console.print(sentence, markup=False)
    if not ready:
        return
    device = choose_device(options.device, None, False)
    memory = place_of(device)["memory"]
    packs = form_packs(ready, lambda item: memory_limit(item, device.precision, memory) if memory else ON_CPU)
    answer_packs(packs, records, tests, data, device)
    console.print(f"{len(ready)} runs have answered the {len(tests.images)} images of {tests.name} (digest {tests.digest[:16]}); "
                  "`report` shows what becomes of the ranking.", markup=False)


def find_tests(name: str, data: Path) -> FurtherImages:
    """The prepared test set of this name; another name is a UserError that lists the known ones."""
    known = {tests.name: tests for tests in load_further(data)}
    if name not in known:
        raise UserError(f"No further test set {name!r} is in {data.name}/; there is: {', '.join(known) or 'none'}. "
                        "`prepare second-tests --from FOLDER` reads <name>_data.npy with <name>_labels.npy.")
    return known[name]


def ready_to_answer(planned: Sequence[Run], records: Mapping[str, Record], tests: FurtherImages
                    ) -> tuple[list[Run], list[str]]:
    """The runs that can answer and have not, and a sentence on how many cannot, and why. A column that leaves classes out, and a
    run that does not classify, is no matter of a test set with all classes."""
    mine = [item for item in planned if item.spec.column.dataset == tests.dataset and item.spec.column.imbalance != "counts"
            and item.method.task == "classes"]
    finished = [item for item in mine if records.get(item.spec.key, {}).get("status") == "done"]
    have = answered(planned[0].root, tests)
    waiting = [item for item in finished if record_name(records[item.spec.key]) not in have]
    ready = [item for item in waiting if item.checkpoint.exists()]
    counts = (("have no finished run yet", len(mine) - len(finished)), ("have answered already", len(finished) - len(waiting)),
              ("have no weights here: these stay on the machine that trained them", len(waiting) - len(ready)))
    return ready, [f"Of {len(mine)} selected runs on {tests.dataset} {count} {what}." for what, count in counts if count]


def record_name(record: Record) -> str:
    """What the answers of a record are called."""
    return record["digest"][:16]


def answered(root: Path, tests: FurtherImages) -> set[str]:
    """The records that have answered a test set, by `record_name`."""
    files = sorted(root.glob(f"*/{FURTHER}/{tests.title}/*{SUFFIX}"))
    return {name for path in files for name in decode(path.read_bytes(), str(path))}


def answer_packs(packs: Sequence[Sequence[Run]], records: Mapping[str, Record], tests: FurtherImages, data: Path,
                 device: "Device") -> None:
    """Write the answers of each pack into the folders of the papers that hold its records."""
    from common.train.answer import answer

    images = load(tests.dataset, data)
    for pack in packs:
        members = together(pack)
        by_folder: dict[Path, dict[str, Predictions]] = {}
        for item, predictions in zip(members, answer(members, tests, images, device), strict=True):
            by_folder.setdefault(item.folder.parents[2], {})[record_name(records[item.spec.key])] = predictions
        for folder, mine in by_folder.items():
            write_predictions(folder / FURTHER / tests.title, mine)
