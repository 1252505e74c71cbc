"""`export`: what others take: weights with their spec and a model card, index lists, and where all of it comes from. No torch.

A run's folder is what the Hugging Face Hub takes as a model: a card, README.md, whose front matter is the `model-index`, and
its headline in `.eval_results/`. `common.publish.croissant` and `common.publish.crate` describe the lists, and the whole.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from common.data.class_names import TURNS, class_names
from common.data.large_sets import LARGE
from common.data.sets import SETS
from common.errors import UserError
from common.plan import Run
from common.publish.about import pretty
from common.publish.crate import record_bytes, write_crate
from common.publish.croissant import export_lists
from common.report.protocols import protocol_words
from common.report.results import Record
from common.report.text import escape, markdown_table, number
from common.store import load_records, read_weights, record_path, weights_metadata, write_atomically

GROUPS = {"many": "over 100 training images", "medium": "20 to 100 training images", "few": "under 20 training images"}
WEIGHTS, CARD, RECORD, CONFIG = "model.safetensors", "README.md", "record.json", "config.json"
HUB = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "mnist": "ylecun/mnist",
       "tiny-imagenet": "zh-plus/tiny-imagenet", "imagenet": "ILSVRC/imagenet-1k"}  # what the Hub calls a dataset
Part = Literal["models", "lists", "crate"]


def export(planned: Sequence[Run], target: Path, data: Path, parts: Sequence[Part], say: Callable[[str], None]) -> None:
    """Write the parts that are asked for into `target`: a folder for each run, `croissant/` with the index lists, and the
    metadata that makes a crate of all. data: where images are prepared. What is left out is said.

    Models alone: a UserError where no run has its weights here; with a crate, its records are reason enough.
    """
    if "models" in parts:
        try:
            say(f"Runs with their weights in {target}: {len(export_runs(planned, target, data, say))}.")
        except NothingHere:
            if "crate" not in parts:
                raise
            say("No selected run has its weights here.")
    if "lists" in parts:
        lists = export_lists(dict.fromkeys(item.spec.column for item in planned), data, target / "croissant")
        say(f"{len(lists)} index lists, each with its Croissant description, are in {target / 'croissant'}.")
    if "crate" in parts:
        commands = {link.spec.key: command(item) for item in reversed(planned) for link in item.chain}
        commands |= {item.spec.key: command(item) for item in planned}
        say(f"What made them is in {write_crate(planned, commands, target)}.")


class NothingHere(UserError):
    """No selected run has its weights on this machine."""


def export_runs(planned: Sequence[Run], target: Path, data: Path, say: Callable[[str], None]) -> list[Path]:
    """Write a folder `<target>/<run>` for every run with a record and a checkpoint; returns the folders.

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
        folder = record_path(target, record).with_suffix("")
        for name, content in run_files(item, record, checkpoint, data).items():
            write_atomically(folder / name, content)
        written.append(folder)
    if absent:
        say(f"Not trained yet, so skipped: {len(absent)} of the {len(planned)} selected runs, first {absent[0].label}.")
    if not written:
        raise NothingHere("Nothing could be exported: no selected run has its weights here; train some on this machine, or "
                          "choose others with --column, --method, --seeds and --profile.")
    return written


def run_files(item: Run, record: Record, checkpoint: Path, data: Path) -> dict[str, bytes]:
    """Name -> content of all that is exported of a run."""
    results = eval_results(item, record)
    return {
        WEIGHTS: weights(item, record, checkpoint), CARD: model_card(item, record).encode(), RECORD: record_bytes(record),
        CONFIG: pretty(config(item, record, data)),
        **({f".eval_results/{item.spec.column.name}.yaml": yaml.safe_dump(results, sort_keys=False, width=1000).encode()}
           if results else {}),
    }


def config(item: Run, record: Record, data: Path) -> dict[str, Any]:
    """What a program needs to know of an image and of the classes."""
    column = item.spec.column
    facts = SETS.get(column.dataset) or LARGE[column.dataset]
    names = TURNS if item.method.task == "rotation" else class_names(column.dataset, data)[:len(record["counts"])]
    return {"column": column.name, "method": item.method.label, "seed": item.spec.seed, "backbone": column.backbone,
            "shape": list(shape_of(item)), "mean": list(facts.mean), "std": list(facts.std),
            "classes": list(names)}


def eval_results(item: Run, record: Record) -> list[dict[str, Any]]:
    """https://huggingface.co/docs/hub/eval-results: the headline, of a dataset that the Hub has; else nothing. The Hub lists it
    on a leaderboard where the dataset's owner has made it a benchmark with a task of that name."""
    column = item.spec.column
    if column.dataset not in HUB:
        return []
    finished = {"date": record["made"]["finished"]} if "finished" in record["made"] else {}
    return [{"dataset": {"id": HUB[column.dataset], "task_id": column.name}, "value": record["accuracy"]["last"], **finished,
             "notes": f"Top-1 accuracy in percent on the whole test set after the last epoch; trained on {column.name}, "
                      f"{sum(record['counts'])} images, by {item.method.label}, seed {item.spec.seed}"}]


def find_checkpoint(item: Run) -> Path | None:
    """Where the weights of a run are: with the paper that plans it, or with another that has trained it."""
    others = sorted(item.root.glob(f"*/checkpoints/*/*/{item.spec.key}.safetensors"))
    return item.checkpoint if item.checkpoint.exists() else next(iter(others), None)


def weights(item: Run, record: Record, checkpoint: Path) -> bytes:
    """The checkpoint's tensors as they are, with key, label, spec and the record's digest as metadata."""
    tensors = read_weights(checkpoint, item.spec.key)
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
        f"One run of the replication of the paper `{item.paper}`: {escape(method.label)} on {escape(item.spec.column.name)}, "
        f"seed {item.spec.seed}{start}. `written` follows the paper's text, `released` its authors' code.\n",
        "## Results\n", markdown_table(["metric", "value"], [(m["name"], number(m["value"])) for m in _metrics(record)]),
        "All on the untouched test set; the last epoch is the headline. The best epoch was chosen on the test set itself, so it "
        f"is no estimate of what to expect: {number(best['best'])} % in epoch {best['best_epoch']}, counted from 0. This is one "
        "seed; the spread over seeds is in the tables of the repository.\n",
        "## How it was made\n", markdown_table(["what", "value"], _facts(item, record)),
        "To make it again, in a checkout of the repository at that commit:\n", f"```sh\n{command(item)}\n```\n",
        "To use it, in a checkout of the repository or after `pip install` of it, with this folder at hand:\n",
        "```python\nfrom common.zoo import load\n\n"
        f"model = load({_zoo_name(item)!r}, seed={item.spec.seed}, source=FOLDER)\n```\n",
        f"`model` is a `torch.nn.Module`: images {' x '.join(map(str, shape_of(item)))}, float in 0 to 1 (it normalises them "
        "itself), to logits of `model.classes`.\n",
        "## The files\n",
        f"`{WEIGHTS}` holds the last epoch: `backbone.*` and `head.*` as a pack of one run has them, so tensors of the head have "
        "a first axis of one run. The one entry of its metadata, `run`, is JSON: the run's key, label and spec, and its record's "
        f"digest. `{RECORD}` is that record, `{CONFIG}` has classes and normalisation.\n",
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
        "dataset": {"type": HUB.get(column.dataset, column.dataset), "name": column.name, "config": column.name, "split": "test"},
        "metrics": _metrics(record),
    }
    return {
        "license": "apache-2.0", "pipeline_tag": "image-classification", "tags": ["long-tailed-recognition", column.backbone],
        **({"datasets": [HUB[column.dataset]]} if column.dataset in HUB else {}), "metrics": ["accuracy"],
        "model-index": [{"name": _name(item), "results": [result]}],
    }


def _metrics(record: Record) -> list[dict[str, Any]]:
    """The record's last-epoch numbers in percent; groups of classes that the column lacks are left out."""
    metrics = [{"type": "accuracy", "name": "Top-1 accuracy, last epoch, percent", "value": record["accuracy"]["last"]}]
    metrics += [{"type": "accuracy", "name": f"Top-1 accuracy, {name} ({what}), percent", "value": record["groups"][name]}
                for name, what in GROUPS.items() if record["groups"][name] is not None]
    return [*metrics, {"type": "ece", "name": "Expected calibration error, percent", "value": record["calibration"]["ece"]}]


def _name(item: Run) -> str:
    return f"{item.spec.column.name} {item.method.label} seed {item.spec.seed}"


def _zoo_name(item: Run) -> str:
    return f"{item.spec.column.name}/{item.method.label}"


def shape_of(item: Run) -> tuple[int, int, int]:
    """Channels, height and width of an image."""
    facts = SETS.get(item.spec.column.dataset) or LARGE[item.spec.column.dataset]
    return len(facts.mean), facts.side, facts.side


def command(item: Run) -> str:
    """What trains the run, in a checkout."""
    words = ["python", "-m", f"papers.{item.paper}.replicate", "train", "--profile", item.profile]
    words += ["--column", item.spec.column.name, "--method", item.method.label, "--seeds", str(item.spec.seed + 1)]
    return shlex.join(words)
