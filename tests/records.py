"""Records as a run would leave them, for tests of everything that reads records. No torch."""

import zlib
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from common.data.sets import SETS
from common.methods.digest import ENGINE
from common.methods.method import Method, digest_of
from common.paper import Paper, Table
from common.plan import Run, plan
from common.predictions import Answers, Predictions
from common.report.paired import Hits
from common.spec import Column, ProfileName, Protocol, canonical_json
from common.store import SCHEMA, seal

MADE = {"seconds": 30.0, "device": "test device", "device_type": "cpu", "precision": "float32", "compiled": False,
        "torch": "2.11.0", "commit": "0" * 12, "runs_in_pack": 1, "finished": "2026-01-01T00:00:00+00:00"}


def class_counts(planned: Run, largest: int = 100) -> list[int]:
    """Training images per class of a long-tailed, step or balanced column."""
    column, classes = planned.spec.column, SETS[planned.spec.column.dataset].classes
    if column.imbalance == "lt":
        return [int(largest * column.ratio ** (-i / (classes - 1))) for i in range(classes)]
    tail = largest // column.ratio if column.imbalance == "step" else largest
    return [largest] * (classes - classes // 2) + [tail] * (classes // 2)


def make_record(planned: Run, accuracy: float | None, **changes: Any) -> dict[str, Any]:
    """A sealed record of `planned` with this last-epoch accuracy in percent; None is a run that diverged.

    changes replace fields; a dictionary adds to the field of that name (`made={"device": "H200"}`).
    """
    epochs = max(1, planned.spec.protocol.epochs)  # what is only tested is tested once
    record = {
        "schema": SCHEMA, "key": planned.spec.key, "method_digest": digest_of(planned.method, planned.spec.column),
        "engine": ENGINE, "predictions": {}, "label": f"{planned.spec.column.name} {planned.method.label}",
        "spec": planned.spec.as_json(), "counts": class_counts(planned), "made": MADE,
        "curves": {"train_loss": [1.0] * epochs, "test_accuracy": [accuracy or 10.0] * epochs, "tested": [1000] * epochs},
        **(_diverged() if accuracy is None else _done(accuracy, SETS[planned.spec.column.dataset].classes, epochs)),
    }
    for name, value in changes.items():
        record[name] = {**record[name], **value} if isinstance(value, dict) else value
    return seal(record)


def _done(accuracy: float, classes: int, epochs: int) -> dict[str, Any]:
    right = round(accuracy)
    rows = [[right if i == j else (100 - right) * (j == (i + 1) % classes) for j in range(classes)] for i in range(classes)]
    return {
        "status": "done",
        "accuracy": {"last": accuracy, "best": min(100.0, accuracy + 0.25), "best_epoch": epochs - 1},
        "per_class_accuracy": [accuracy] * classes, "confusion": rows,
        "groups": {"many": accuracy, "medium": None, "few": accuracy},
        "calibration": {"ece": 1.0, "bins": [[0, 0.0, 0]] * 15},
        "norms": {"classifier": [1.0] * classes, "feature_epochs": [epochs - 1], "feature": [[1.0] * classes]},
    }


def _diverged() -> dict[str, Any]:
    return {
        "status": "diverged", "accuracy": {"last": None, "best": None, "best_epoch": None},
        "per_class_accuracy": [], "confusion": [], "groups": {"many": None, "medium": None, "few": None},
        "calibration": {"ece": None, "bins": []}, "norms": {"classifier": [], "feature_epochs": [], "feature": []},
    }


# ---------------------------------------------------------------- answers that go with a record

def made_predictions(record: Mapping[str, Any], images: int = 1000, alike: float = 0.7, taste: float = 0.1,
                     is_adjusted: bool = False) -> Predictions:
    """Answers whose accuracy is the record's, to an image. An image is hard for all runs of a dataset (`alike` of the variance
    of how hard it is), for all seeds of a method beside (`taste`), and else for the run alone."""
    spec, (labels, others) = record["spec"], true_and_false(SETS[record["spec"]["column"]["dataset"]].classes, images)
    method = canonical_json([spec["method"], spec["protocol"], spec["column"]])
    hard = alike**0.5 * normal(canonical_json(spec["column"]["dataset"]), images) + taste**0.5 * normal(method, images)
    hard += (1 - alike - taste) ** 0.5 * normal.__wrapped__(method + canonical_json(spec["seed"]), images)
    right = np.zeros(images, bool)
    right[np.argsort(hard)[:round(images * record["accuracy"]["last"] / 100)]] = True
    last = np.where(right, labels, others)
    best = np.where(np.arange(images) % 9, last, labels)
    answers = Answers(last, best, np.where(right, hard.view(np.uint8)[::8], 120).astype(np.uint8))  # confidences do not deflate
    return Predictions(labels, answers, answers if is_adjusted else None)


@lru_cache(16)
def normal(words: bytes, images: int) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(words)).normal(size=images)


@cache
def true_and_false(classes: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels of a test set in the order of its classes, and for every image another class."""
    labels = np.arange(images) * classes // images
    return tuple(some.astype(np.uint8 if classes < 255 else np.uint16) for some in (labels, (labels + 1) % classes))


def made_hits(records: Mapping[str, Mapping[str, Any]], **how: Any) -> dict[str, Hits]:
    """What `hits_of` would find of the finished records, if they had `made_predictions`."""
    found = {key: made_predictions(r, **how) for key, r in records.items() if r["status"] == "done"}
    labels: dict[bytes, np.ndarray] = {}
    return {key: Hits(labels.setdefault(p.labels.tobytes(), p.labels), p.answers.last == p.labels) for key, p in found.items()}


# ---------------------------------------------------------------- a paper of three methods, and records of it

HEADER = ("paper,table,caption_short,dataset,imbalance_type,imbalance_ratio,backbone,"
          "method,method_ref,metric,unit,value,std,group,notes")
PUBLISHED = (  # table, dataset, imbalance, ratio, method, whose, value, notes
    "1,cifar10,lt,100,ce,[4],29.60,row=ERM", "1,cifar10,step,100,ce,[4],36.70,row=ERM", "1,imagenet,none,,ce,[4],44.40,row=ERM",
    "1,cifar10,lt,100,ghost,[5],28.00,", "1,cifar10,lt,100,rival,[4],22.10,", "1,cifar10,step,100,rival,[4],22.90,",
    "1,cifar10,lt,100,own,ours,22.00,", "1,cifar10,step,100,own,ours,23.00,",
    "2,cifar10,lt,100,own,ours,22.30,beta=1.0;delta=2.0", "2,cifar10,step,100,own,ours,23.00,beta=1.2;delta=2.0",
    "2,cifar10,lt,100,own,ours,22.00,beta=1.1;delta=2.0", "2,cifar10,step,100,own,ours,23.40,beta=1.3;delta=2.0",
)
SETTINGS = {"lt": ("beta=1.0;delta=2.0", "beta=1.1;delta=2.0"), "step": ("beta=1.2;delta=2.0", "beta=1.3;delta=2.0")}


def some_loss(outputs: Any, labels: Any, context: Any, *, kind: str) -> None:
    """Stands for a loss: only its name and keyword are ever looked at."""


def toy_methods(column: Column, protocols: Mapping[str, Protocol]) -> tuple[Method, ...]:
    """`ce` and `rival` have one reading, `own` has two, and an ablation of two settings."""
    rows = [("ce", "written", ""), ("rival", "written", "")]
    rows += [("own", reading, variant) for variant in ("", *SETTINGS[column.imbalance]) for reading in ("written", "released")]
    return tuple(Method(name, reading, partial(some_loss, kind=f"{name} {reading} {variant}"), variant=variant)
                 for name, reading, variant in rows)


def toy_paper(folder: Path, claims: str = "", published: tuple[str, ...] = PUBLISHED) -> Paper:
    """A paper in `folder`: two published columns, one stand-in, three seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [row.split(",", 6) for row in published]
    rows = [f"toy,{t},caption,{d},{i},{r},resnet-32,{m},{ref},top1_error,percent,{value},,,{notes}"
            for t, d, i, r, m, ref, rest in lines for value, notes in [rest.split(",", 1)]]
    (folder / "published.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    if claims:
        (folder / "claims.yaml").write_text(claims)
    protocol = Protocol(4, 32, 0.1, 0.9, 0.0002, 1, (2, 3), 0.1, False)
    columns = {"paper": (Column("cifar10", "lt", 100, "resnet32"), Column("cifar10", "step", 100, "resnet32")),
               "quick": (Column("digits", "lt", 20, "resnet8", "hash"),)}
    protocols = {name: {"written": protocol, "released": protocol} for name in ("paper", "quick")}
    return Paper("toy", "A toy paper", folder, columns, protocols, {"paper": 3, "quick": 2}, toy_methods, ("own",), ("1",),
                 (Table("1", "Errors"), Table("2", "Settings")), (), {"digits-lt-20": "cifar10-lt-100"})


def toy_records(paper: Paper, errors: Mapping[str, Sequence[float | None]], profile: ProfileName = "paper",
                columns: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Records of the methods in `errors`, by name or label: the error in percent of each seed, None for a diverged run."""
    found = {}
    for planned in plan(paper, profile, columns=columns, seeds=max(map(len, errors.values()))):
        values = errors.get(planned.method.label, errors.get(planned.method.name, ()))
        if planned.spec.seed < len(values):
            error = values[planned.spec.seed]
            record = make_record(planned, None if error is None else 100 - error)
            found[record["key"]] = record
    return found
