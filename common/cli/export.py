"""`export`: the weights of finished runs as safetensors with their spec, each beside a model card made from its record.

A card is a README.md whose front matter is the `model-index` of the Hugging Face Hub. No torch.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from common.errors import UserError
from common.plan import Run
from common.report.protocols import protocol_words
from common.report.results import Record
from common.report.text import escape, markdown_table, number
from common.store import load_records, read_weights_metadata, record_path, weights_metadata, write_atomically

GROUPS = {"many": "over 100 training images", "medium": "20 to 100 training images", "few": "under 20 training images"}
WEIGHTS, CARD = "model.safetensors", "README.md"


def export_runs(planned: Sequence[Run], target: Path, say: Callable[[str], None]) -> list[Path]:
    """Write `<target>/<run>/model.safetensors` and README.md for every run with a record and a checkpoint; returns the folders.

    Of every other one it says in a sentence why not. A UserError if nothing is left, or a checkpoint is damaged.
    """
    root = planned[0].root
    records, written = load_records(root, [item.spec.key for item in planned]), []
    absent = [item for item in planned if item.spec.key not in records]
    for item in planned:
        record = records.get(item.spec.key)
        if record is None:
            continue
        checkpoint = find_checkpoint(item)
        if checkpoint is None or record["status"] != "done":
            why = "diverged, so it has no weights" if record["status"] != "done" else (
                "has a record but no checkpoint here: weights stay on the machine that trained them")
            say(f"Skipped: {item.label} ({item.spec.key}) {why}.")
            continue
        folder = target / record_path(target, record).stem
        contents = {WEIGHTS: weights(item, record, checkpoint), CARD: model_card(item, record).encode()}
        for name, content in contents.items():
            write_atomically(folder / name, content)
        written.append(folder)
    if absent:
        say(f"Not trained yet, so skipped: {len(absent)} of the {len(planned)} selected runs, first {absent[0].label}.")
    if not written:
        raise UserError("Nothing could be exported: no selected run has its weights here; train some on this machine, or "
                        "choose others with --column, --method, --seeds and --profile.")
    return written


def find_checkpoint(item: Run) -> Path | None:
    """Where the weights of a run are: with the paper that plans it, or with another that has trained it."""
    others = sorted(item.root.glob(f"*/checkpoints/*/*/{item.spec.key}.safetensors"))
    return item.checkpoint if item.checkpoint.exists() else next(iter(others), None)


def weights(item: Run, record: Record, checkpoint: Path) -> bytes:
    """The checkpoint's tensors as they are, with key, label, spec and the record's digest as metadata."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(checkpoint, framework="numpy") as file:
            about, tensors = read_weights_metadata(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{checkpoint} is damaged ({' '.join(str(error).split())}); delete it and its record, and train the run "
                        "again.") from None
    if about.get("key") != item.spec.key:
        raise UserError(f"{checkpoint} holds the weights of run {about.get('key')}; delete it and its record, and train the "
                        "run again.")
    return to_bytes(tensors, key=item.spec.key, label=item.method.label, spec=record["spec"], record=record["digest"])


def to_bytes(tensors: Mapping[str, np.ndarray], **about: Any) -> bytes:
    """A safetensors file of these arrays, the same bytes for equal ones.

    safetensors 0.8 writes an array's memory as it lies and its shape as it is seen, so that a transposed one comes back as
    other numbers: here it lies in C order first.
    """
    from safetensors.numpy import save

    return save({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}, weights_metadata(**about))


def model_card(item: Run, record: Record) -> str:
    """The model card of a run: model-index as front matter, then what it is, its numbers and how it was made."""
    front = yaml.safe_dump(_front_matter(item, record), sort_keys=False, allow_unicode=True, width=1000)
    method, best = item.method, record["accuracy"]
    start = f", starting from {escape(item.start.method.label)} of the same seed" if item.start else ""
    return "\n".join([
        f"---\n{front}---\n", f"# {escape(_name(item))}\n",
        f"One run of the replication of the paper `{_paper(item)}`: {escape(method.label)} on {escape(item.spec.column.name)}, "
        f"seed {item.spec.seed}{start}. `written` follows the paper's text, `released` its authors' code.\n",
        "## Results\n", markdown_table(["metric", "value"], [(m["name"], number(m["value"])) for m in _metrics(record)]),
        "All on the untouched test set; the last epoch is the headline. The best epoch was chosen on the test set itself, so it "
        f"is no estimate of what to expect: {number(best['best'])} % in epoch {best['best_epoch']}, counted from 0. This is one "
        "seed; the spread over seeds is in the tables of the repository.\n",
        "## How it was made\n", markdown_table(["what", "value"], _facts(item, record)),
        "To make it again, in a checkout of the repository at that commit:\n", f"```sh\n{_command(item)}\n```\n",
        "## The file\n",
        f"`{WEIGHTS}` holds the last epoch: `backbone.*` and `head.*` as a pack of one run has them, so tensors of the head have "
        "a first axis of one run. The one entry of its metadata, `run`, is JSON: the run's key, label and spec, and its record's "
        "digest.\n",
    ])


def _facts(item: Run, record: Record) -> list[tuple[str, Any]]:
    made, sizes = record["made"], [n for n in record["counts"] if n]
    images = f"{sum(sizes)} in {len(sizes)} classes, {max(sizes)} in the largest and {min(sizes)} in the smallest"
    return [
        ("column", item.spec.column.name), ("backbone", item.spec.column.backbone), ("training images", images),
        ("protocol", protocol_words(item.spec.protocol)), ("seed", item.spec.seed), ("run", record["key"]),
        *((name, made.get(name, "not recorded")) for name in ("device", "precision", "torch", "finished", "commit")),
        ("device-seconds", made.get("seconds", "not recorded")),
    ]


def _front_matter(item: Run, record: Record) -> Mapping[str, Any]:
    """https://github.com/huggingface/hub-docs/blob/main/modelcard.md: one result, on the test set of the column's dataset. The
    configuration keeps columns of one dataset apart: huggingface_hub merges results that differ in nothing but a name."""
    column = item.spec.column
    result = {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {"type": column.dataset, "name": column.name, "config": column.name, "split": "test"},
        "metrics": _metrics(record),
    }
    return {
        "license": "apache-2.0", "pipeline_tag": "image-classification", "tags": ["long-tailed-recognition", column.backbone],
        "datasets": [column.dataset], "metrics": ["accuracy"],
        "model-index": [{"name": _name(item), "results": [result]}],
    }


def _metrics(record: Record) -> list[dict[str, Any]]:
    """The record's last-epoch numbers in percent; groups of classes that the column lacks are left out."""
    found = [{"type": "accuracy", "name": "Top-1 accuracy, last epoch, percent", "value": record["accuracy"]["last"]}]
    found += [{"type": "accuracy", "name": f"Top-1 accuracy, {name} ({what}), percent", "value": record["groups"][name]}
              for name, what in GROUPS.items() if record["groups"][name] is not None]
    return [*found, {"type": "ece", "name": "Expected calibration error, percent", "value": record["calibration"]["ece"]}]


def _name(item: Run) -> str:
    return f"{item.spec.column.name} {item.method.label} seed {item.spec.seed}"


def _paper(item: Run) -> str:
    """The folder of the paper that plans the run: <paper>/results/<profile>/<column>."""
    return item.folder.parents[2].name


def _command(item: Run) -> str:
    words = ["python", "-m", f"papers.{_paper(item)}.replicate", "train", "--profile", item.folder.parent.name]
    words += ["--column", item.spec.column.name, "--method", item.method.label, "--seeds", str(item.spec.seed + 1)]
    return shlex.join(words)
