"""Every run's answer to every test image, in one small file beside the records of the pack that it was trained in. No torch.

A file holds NumPy arrays (`.npz`, deflated) for the runs in `keys`: `last`, the predicted class in the last epoch; `best`,
that in the best epoch, 0 where it is the same and else one more than the class; `confidence`, the largest softmax probability
of the last epoch in 255ths, floored; for runs whose logits are adjusted at test time (`adjusted`) the same three without that
under `plain_*`; `labels`, the true classes of each task (a run that learns quarter turns has other ones), and which `task` each
run has. Images are in canonical order, which any copy of the data gives.
The classes that differ between two epochs are few, and zeros are nearly free, which keeps a run small. A pack is written
once and its file is never changed, so that neither two machines nor two branches can disagree.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError
from common.metrics import BINS, summary
from common.store import files_by_key, write_atomically

SUFFIX = ".predictions.npz"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the time that all members of a file bear, so that equal answers are equal bytes


class Answers(NamedTuple):
    """last, best: predicted classes [images], integers. confidence: uint8 [images], of `last`, in 255ths."""

    last: np.ndarray
    best: np.ndarray
    confidence: np.ndarray


class Predictions(NamedTuple):
    """Of one run. labels: true classes [images]. answers: as it is tested; plain: without the adjustment of its logits, or
    None where it has none."""

    labels: np.ndarray
    answers: Answers
    plain: Answers | None = None

    @property
    def digest(self) -> str:
        """SHA-256 over all of it, whatever file it lies in: what a record holds."""
        parts = [self.labels, *self.answers, *(self.plain or ())]
        content = b"".join(np.ascontiguousarray(part, dtype="<u2").tobytes() for part in parts)
        return hashlib.sha256(content).hexdigest()


def measure(predictions: Predictions, counts: np.ndarray, plain: bool = False) -> dict[str, Any]:
    """Accuracy, confusion, many / medium / few and calibration of the last epoch, as a record has them. counts: training images
    of each class. Confidence is known to a 255th: its mean in a bin is off by at most half of that."""
    answers = predictions.plain if plain else predictions.answers
    classes, labels = len(counts), predictions.labels.astype(np.int64)
    confusion = np.bincount(labels * classes + answers.last, minlength=classes**2).reshape(classes, classes)
    place = np.minimum(answers.confidence // (255 // BINS), BINS - 1)
    columns = np.ones(len(labels)), (answers.confidence + 0.5) / 255, answers.last == labels
    bins = np.stack([np.bincount(place, column, BINS) for column in columns], 1)
    return summary(confusion, bins, counts)


def encode(runs: Mapping[str, Predictions]) -> bytes:
    """The file of the runs, by key: the same bytes for the same answers."""
    each = list(runs.values())
    adjusted = [run.plain is not None for run in each]
    highest = max(int(part.max(initial=0)) for run in each for a in (run.answers, run.plain) if a for part in a[:2])
    small = np.uint8 if highest < 255 else np.uint16
    tasks = {run.labels.astype(small).tobytes(): run.labels.astype(small) for run in each}  # few: classes, or quarter turns
    task = [list(tasks).index(run.labels.astype(small).tobytes()) for run in each]
    arrays = {"keys": np.array(list(runs), dtype="S16"), "labels": np.stack(list(tasks.values())),
              "task": np.array(task, np.uint8), "adjusted": np.array(adjusted)}
    for name, answers in (("", [r.answers for r in each]), ("plain_", [r.plain for r in each if r.plain])):
        if answers:
            arrays[f"{name}last"] = np.stack([a.last for a in answers]).astype(small)
            arrays[f"{name}best"] = np.stack([np.where(a.best == a.last, 0, a.best + 1) for a in answers]).astype(small)
            arrays[f"{name}confidence"] = np.stack([a.confidence for a in answers])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            file.writestr(zipfile.ZipInfo(f"{name}.npy", EPOCH), member.getvalue(), zipfile.ZIP_DEFLATED, 9)
    return buffer.getvalue()


def decode(content: bytes, where: str) -> dict[str, Predictions]:
    """Key -> predictions of a file's content; a damaged one is a UserError naming `where`."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        own = _answers(arrays, "")
        plain = iter(_answers(arrays, "plain_") if arrays["adjusted"].any() else ())
        keys = [key.decode() for key in arrays["keys"].tolist()]
        return {key: Predictions(arrays["labels"][task], answers, next(plain) if is_adjusted else None)
                for key, task, answers, is_adjusted in zip(keys, arrays["task"], own, arrays["adjusted"], strict=True)}
    except Exception as error:  # whatever a damaged archive makes its reader raise
        raise UserError(f"{where} is damaged ({type(error).__name__}: {error}); fetch it again, from git or with merge, or train "
                        "its runs again with --retrain.") from None


def _answers(arrays: Mapping[str, np.ndarray], name: str) -> list[Answers]:
    last, changed, confidence = (arrays[f"{name}{part}"] for part in ("last", "best", "confidence"))
    if not last.shape == changed.shape == confidence.shape or last.shape[1:] != arrays["labels"].shape[1:]:
        raise ValueError("its arrays do not fit each other")
    best = np.where(changed == 0, last, changed - 1)
    return list(map(Answers, last, best, confidence))


def write_predictions(folder: Path, runs: Mapping[str, Predictions]) -> dict[str, dict[str, str]]:
    """Write one file for all runs, named by its content. Returns of each key what its record holds: the file and the digest of
    the run's own part."""
    content = encode(runs)
    name = hashlib.sha256(content).hexdigest()[:16] + SUFFIX
    write_atomically(folder / name, content)
    return {key: {"file": name, "digest": run.digest} for key, run in runs.items()}


def check_predictions(record: Mapping[str, Any], predictions: Predictions | None, where: str) -> Predictions:
    """The predictions that a record speaks of, if they are its own; else a UserError naming `where`."""
    if predictions is None or predictions.digest != record["predictions"]["digest"]:
        raise UserError(f"{where} does not hold the predictions of {record['label']} seed {record['spec']['seed']}; fetch it "
                        "again, from git or with merge, or train the run again with --retrain.")
    return predictions


class Library:
    """The predictions of the records under `root`, the folder of all papers: each file is read once, when it is asked for."""

    def __init__(self, root: Path):
        self._places = files_by_key(root)
        self._files: dict[Path, dict[str, Predictions]] = {}

    def of(self, record: Mapping[str, Any]) -> Predictions | None:
        """Of a record; None where it has none, as of a run that diverged, or where the record itself is not a file here."""
        place = self._places.get(record["key"])
        if not record["predictions"] or place is None:
            return None
        path = place.parent / record["predictions"]["file"]
        if path not in self._files:
            try:
                self._files[path] = decode(path.read_bytes(), str(path))
            except FileNotFoundError:
                raise UserError(f"{path} is not here, but {place.name} speaks of it; fetch it from git or with merge.") from None
        return check_predictions(record, self._files[path].get(record["key"]), str(path))
