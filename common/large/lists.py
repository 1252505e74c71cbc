"""List files of the official splits, and what `prepare` made of them. No torch.

A list has one image a line: its path, a space, its label. Images are kept in an order of our own, by label, then by file
name, so that any copy of a list, whatever its lines' order and its folders' names, gives the same epochs.
"""

import gzip
import hashlib
import io
import json
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.data.large_sets import LargeSet, Split, find_large
from common.data.sets import read_arrays
from common.errors import UserError
from common.store import write_atomically


class Listed(NamedTuple):
    """A list of images: paths [images] as bytes (UTF-8, below a root), labels int64 [images]."""

    paths: np.ndarray
    labels: np.ndarray


class LargeImages(NamedTuple):
    """A prepared set. Paths are bytes (UTF-8) below `root`, labels int64, both [images].

    official: whether the training list is the official one, not one drawn by the same rule. digest: of both lists, 16
    hexadecimal digits; a record should hold both.
    """

    name: str
    root: Path
    train_paths: np.ndarray
    train_labels: np.ndarray
    test_paths: np.ndarray
    test_labels: np.ndarray
    classes: int
    official: bool
    digest: str

    @property
    def counts(self) -> np.ndarray:
        """Training images per class, int64 [classes]."""
        return np.bincount(self.train_labels, minlength=self.classes)


def read_list(path: Path, classes: int) -> Listed:
    """Read a list, .gz or not, in the order of its lines.

    A file that is empty, damaged or no list, a label outside 0 to classes - 1 and a path that stands twice are UserErrors.
    """
    paths, labels, seen = [], [], {}
    for number, line in enumerate(_lines(path), 1):
        if not line:
            continue
        name, _, label = line.rpartition(" ")
        if not name.strip() or not label.isdecimal():
            raise UserError(f"{path}: line {number} is {line[:80]!r}, expected a path, a space and a label; take another copy.")
        if int(label) >= classes:
            raise UserError(f"{path}: label {label} in line {number} is not one of 0 to {classes - 1}; take another copy.")
        name = name.strip()
        if name in seen:
            raise UserError(f"{path}: {name} stands in line {seen[name]} and in line {number}; take another copy.")
        seen[name] = number
        paths.append(name)
        labels.append(int(label))
    if not paths:
        raise UserError(f"{path} is empty; take another copy.")
    return as_listed(paths, labels)


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        return [line.strip() for line in content.decode().split("\n")]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no list of images ({error}); take another copy.") from None


def as_listed(paths: list[str], labels: list[int]) -> Listed:
    return Listed(np.array([p.encode() for p in paths], dtype=np.bytes_), np.array(labels, dtype=np.int64))


def file_names(paths: np.ndarray) -> np.ndarray:
    """The last part of every path, bytes [images]."""
    return np.array([p.rpartition(b"/")[2] for p in paths.tolist()], dtype=np.bytes_)


def in_order(listed: Listed) -> Listed:
    """The list by label, then by file name."""
    order = np.lexsort((file_names(listed.paths), listed.labels))
    return Listed(listed.paths[order], listed.labels[order])


def list_digest(listed: Listed) -> str:
    """SHA-256 over the sorted lines "label file-name": the same for any order of the lines and any names of the folders."""
    names = file_names(listed.paths).tolist()
    lines = sorted(b"%d %s" % pair for pair in zip(listed.labels.tolist(), names, strict=True))
    return hashlib.sha256(b"\n".join(lines)).hexdigest()


def check_list(facts: LargeSet, split: Split, listed: Listed, origin: str) -> None:
    """Compare a list with what is known of the split: images, classes, largest, smallest, digest. The first difference is
    a UserError that begins with `origin`."""
    counts = np.bincount(listed.labels, minlength=facts.classes)
    if (missing := np.flatnonzero(counts == 0)).size:
        raise UserError(f"{origin} has no image of {missing.size:,} of the {facts.classes:,} classes of {facts.name}, the first "
                        f"is {missing[0]}; take the official list.")
    for what, found, expected in (
        ("images", len(listed.labels), split.images),
        ("images in its largest class", int(counts.max()), split.largest),
        ("images in its smallest class", int(counts.min()), split.smallest),
    ):
        if found != expected:
            raise UserError(f"{origin} has {found:,} {what}, {facts.name} has {expected:,}; take the official list.")
    if split.digest and (found := list_digest(listed)) != split.digest:
        raise UserError(f"{origin} has the right counts but digest {found[:16]}, expected {split.digest[:16]}: some of its "
                        "images or labels are not the official ones; take the official list.")


def check_together(facts: LargeSet, train: Listed, test: Listed) -> None:
    """No image in both lists, and one label for each class folder throughout: else a UserError.

    The folder of a class is what stands between the first and the last part of a path; a test list may have none.
    """
    if both := sorted(set(train.paths.tolist()) & set(test.paths.tolist())):
        raise UserError(f"{facts.name}: {len(both):,} images stand in the training and in the test list, first "
                        f"{both[0].decode()}; take the official lists.")
    label_of: dict[bytes, int] = {}
    for listed in (train, test):
        for path, label in zip(listed.paths.tolist(), listed.labels.tolist(), strict=True):
            folder = class_folder(path)
            if folder and label_of.setdefault(folder, label) != label:
                raise UserError(f"{facts.name}: the lists give folder {folder.decode()} the labels {label_of[folder]} and "
                                f"{label}; take lists of one origin.")


def class_folder(path: bytes) -> bytes:
    """What names the class in a path: `n01440764` of `train/n01440764/x.JPEG`, nothing of `val/x.JPEG`."""
    return path.partition(b"/")[2].rpartition(b"/")[0]


def save(path: Path, images: LargeImages) -> None:
    """Write a checked set; the whole file or nothing."""
    facts = {"name": images.name, "root": str(images.root), "official": images.official, "digest": images.digest,
             "splits": _splits(find_large(images.name))}
    arrays = {key: getattr(images, key) for key in ("train_paths", "train_labels", "test_paths", "test_labels")}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays, facts=np.array(json.dumps(facts)))
    write_atomically(path, buffer.getvalue())


def _splits(facts: LargeSet) -> dict:
    """What a prepared file was checked against."""
    return {"classes": facts.classes, "train": asdict(facts.train), "test": asdict(facts.test)}


def load_large(name: str, folder: Path) -> LargeImages:
    """Read `<folder>/<name>.npz` as `prepare` made it. A missing, damaged or foreign file is a UserError, and so are images
    that are no longer where they were."""
    facts, path = find_large(name), Path(folder) / f"{name}.npz"
    if not path.is_file():
        raise UserError(f"{path} is not here; it needs {facts.archive}; make it with: {prepare_command(name)}.")
    arrays = read_arrays(path, f"make it anew: {prepare_command(name)}")
    stated = json.loads(str(arrays["facts"])) if "facts" in arrays else {}
    if stated.get("name") != name or stated.get("splits") != _splits(facts):
        raise UserError(f"{path} is not what this version's prepare makes of {name}; make it anew: {prepare_command(name)}.")
    images = LargeImages(name, Path(stated["root"]), *(arrays[k] for k in ("train_paths", "train_labels", "test_paths",
                                                                           "test_labels")),
                         facts.classes, stated["official"], stated["digest"])
    for first in (images.train_paths[0], images.test_paths[0]):
        if not (images.root / first.decode()).is_file():
            raise UserError(f"The images of {name} are no longer in {images.root} ({first.decode()} is missing); where they "
                            f"are now, run: {prepare_command(name)}.")
    return images


def prepare_command(name: str) -> str:
    """The command that makes `<name>.npz`, for messages."""
    return f"python -m papers prepare {name}" + ("" if name == "miniature" else " --from FOLDER")


def summarise(images: LargeImages) -> str:
    """One line: counts, the largest and the smallest class, and whether the split is the official one."""
    counts = images.counts
    split = f"lists {images.digest}" if images.official else f"lists {images.digest}, drawn here, NOT the official split"
    return (f"{images.name}: {len(images.train_labels):,} train and {len(images.test_labels):,} test images of "
            f"{images.classes:,} classes, {counts.max():,} to {counts.min():,} a class, {split}")
