"""List files of the official splits, and what `prepare` made of them. No torch.

A list has one image a line: its path, a space, its label; or it is a JSON file with images and annotations, as iNaturalist
has them. Images are kept in an order of our own, by label, then by file
name, so that any copy of a list, whatever its lines' order and its folders' names, gives the same epochs.
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.data.files import UNREADABLE, all_numbers, all_visible, decode_text, is_visible, reason, unpack
from common.data.large_sets import PLACES_ARCHIVES, LargeSet, Split, find_large
from common.data.sets import read_arrays
from common.errors import UserError
from common.store import write_atomically

TOPS = {"train_val2018", *PLACES_ARCHIVES}  # folders with which the paths of the official lists begin
WNID = re.compile(rb"(n\d{8})_\d+\.")  # how the name of an ImageNet training image begins: with its class


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
    """Read a list in the order of its lines, or annotations in JSON; packed or not, as the content says.

    A file that is empty, damaged or no list, a label outside 0 to classes - 1 and a path that stands twice are UserErrors.
    """
    text = _text(path)
    entries = _annotated(path, text, classes) if text.lstrip()[:1] == "{" else _in_lines(path, text)
    paths, labels, seen = [], [], {}
    for where, name, label in entries:
        name = below_root(name)
        if not all_visible("/".join(name.split("/")[-2:])):
            continue  # a system's leftover, which some tool listed
        if name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise UserError(f"{path}: {name!r} in {where} is outside of the folder of the images; take another copy.")
        if label >= classes:
            raise UserError(f"{path}: label {label} in {where} is not one of 0 to {classes - 1}; take another copy.")
        if name in seen:
            raise UserError(f"{path}: {name} stands in {seen[name]} and in {where}; take another copy.")
        seen[name] = where
        paths.append(name)
        labels.append(label)
    if not paths:
        raise UserError(f"{path} is empty; take another copy.")
    return as_listed(paths, labels)


def _text(path: Path) -> str:
    """The text of a file, out of gzip and tar where it is in these."""
    try:
        content = unpack(path.read_bytes())
        if content[257:262] == b"ustar":
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                files = [m for m in tar if m.isfile() and is_visible(m.name.rpartition("/")[2])]
                content = tar.extractfile(files[0]).read() if len(files) == 1 else b""
        return decode_text(content)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (*UNREADABLE, tarfile.TarError, ValueError) as error:
        raise UserError(f"{path} is no list of images ({reason(error)}); take another copy.") from None


def _in_lines(path: Path, text: str) -> Iterator[tuple[str, str, int]]:
    """Place, path and label of every line that has any."""
    for number, line in enumerate(map(str.strip, text.split("\n")), 1):
        if line:
            name, label = (["", *line.rsplit(None, 1)])[-2:]
            if not name or not (label.isascii() and label.isdecimal()):
                raise UserError(f"{path}: line {number} is {line[:80]!r}, expected a path, a space and a label; take another "
                                "copy.")
            yield f"line {number}", name, int(label)


def _annotated(path: Path, text: str, classes: int) -> Iterator[tuple[str, str, int]]:
    """Place, path and category of every image of a JSON file with `images` (`id`, `file_name`), `annotations` (`image_id`,
    `category_id`) and, where it has them, `categories`, whose `id` are 0 to classes - 1."""
    try:
        content = json.loads(text)
        files = [(image["id"], str(image["file_name"])) for image in content["images"]]
        pairs = [(a["image_id"], int(a["category_id"])) for a in content["annotations"]]
        known = sorted(int(c["id"]) for c in content.get("categories", ()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not hold images and annotations as iNaturalist 2018 has them ({type(error).__name__}: "
                        f"{reason(error)}); take train2018.json and val2018.json.") from None
    category = dict(pairs)
    if twice := next((image for image, label in pairs if category[image] != label), None):
        raise UserError(f"{path} gives image {twice} two categories; take another copy.")
    if known and known != list(range(classes)):
        raise UserError(f"{path} has {len(known):,} categories, {known[0]} to {known[-1]}, expected 0 to {classes - 1}; take the "
                        "file of iNaturalist 2018.")
    if bare := [file for number, file in files if number not in category]:
        raise UserError(f"{path} has no annotation of {len(bare):,} of its {len(files):,} images, first {bare[0]}; take "
                        "train2018.json and val2018.json.")
    if min(category.values(), default=0) < 0:
        raise UserError(f"{path} has category {min(category.values())}, expected 0 to {classes - 1}; take another copy.")
    yield from ((f"image {number}", file, category[number]) for number, file in files)


def below_root(name: str) -> str:
    """A listed path as it is below the folder of the images: with slashes, and from the folder with which the official lists
    begin where it has that, so that absolute paths of another machine and folders around it do not matter."""
    parts = name.replace("\\", "/").split("/")
    tops = [i for i, part in enumerate(parts[:-1]) if part in TOPS]
    return "/".join(parts[tops[-1]:]) if tops else "/".join(parts).removeprefix("./")


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
    for what, count, expected in (
        ("images", len(listed.labels), split.images),
        ("images in its largest class", int(counts.max()), split.largest),
        ("images in its smallest class", int(counts.min()), split.smallest),
    ):
        if count != expected:
            raise UserError(f"{origin} has {count:,} {what}, {facts.name} has {expected:,}; take the official list.")
    if split.digest and (digest := list_digest(listed)) != split.digest:
        raise UserError(f"{origin} has the right counts but digest {digest[:16]}, expected {split.digest[:16]}: some of its "
                        "images or labels are not the official ones; take the official list.")


def check_together(facts: LargeSet, train: Listed, test: Listed) -> None:
    """No image in both lists, one label for each class folder throughout, one folder for each label, and no class folder in
    the test list alone; wnids and numbers have to be in the order of the labels. Else a UserError.

    The class of an ImageNet training image is in its name too. A test list may have no class folders.
    """
    if both := sorted(set(train.paths.tolist()) & set(test.paths.tolist())):
        raise UserError(f"{facts.name}: {len(both):,} images stand in the training and in the test list, first "
                        f"{both[0].decode()}; take the official lists.")
    known = class_labels(facts, train)
    for name, label in class_labels(facts, test).items():
        if known.get(name, label) != label:
            raise UserError(f"{facts.name}: the lists give folder {name} the labels {known[name]} and {label}; take lists of one "
                            "origin.")
        if name not in known:
            raise UserError(f"{facts.name}: the test images are in class folders like {name!r}, those of training in others, "
                            f"like {next(iter(known), 'none')!r}, so nothing says that their labels mean the same; give both "
                            "the same folder names, or take lists of one origin.")
    _check_order(facts, known)


def class_labels(facts: LargeSet, listed: Listed) -> dict[str, int]:
    """Name -> label of every class folder, and of every wnid in a file name; a UserError where two labels share one, or two
    folders a label."""
    seen: dict[tuple[bytes, bytes], int] = {}
    label_of: dict[bytes, int] = {}
    for path, label in zip(listed.paths.tolist(), listed.labels.tolist(), strict=True):
        names = class_folder(path), wnid(path)
        if seen.setdefault(names, label) == label and all(label_of.get(n) == label for n in names if n):
            continue
        for name in filter(None, names):
            if label_of.setdefault(name, label) != label:
                raise UserError(f"{facts.name}: the lists give folder {name.decode()} the labels {label_of[name]} and {label}"
                                f"{_misplaced(path)}; take lists of one origin.")
    folder_of: dict[int, bytes] = {}
    for folder, label in ((names[0], label) for names, label in seen.items()):
        if folder_of.setdefault(label, folder) != folder:
            one, two = (name.decode() or "none" for name in (folder_of[label], folder))
            raise UserError(f"{facts.name}: the lists give label {label} to the folders {one} and {two}; take lists of one "
                            "origin.")
    return {name.decode(): label for name, label in label_of.items()}


def _misplaced(path: bytes) -> str:
    """That an image's name has another wnid than its folder, for a message."""
    folder, by_name = class_folder(path), wnid(path)
    return f" ({path.decode()} is an image of {by_name.decode()})" if by_name and folder and by_name != folder else ""


def _check_order(facts: LargeSet, known: dict[str, int]) -> None:
    """wnids number the classes in alphabetical order, and numbers in that of their value."""
    wnids = [name for name in known if re.fullmatch(r"n\d{8}", name)]
    numbers = {} if wnids else {last: name for name in known if all_numbers([last := name.rpartition("/")[2]])}
    for ordered in (sorted(wnids), [numbers[n] for n in sorted(numbers, key=int)]):
        for expected, name in enumerate(ordered) if len(ordered) == facts.classes else ():
            if known[name] != expected:
                raise UserError(f"{facts.name}: class {name} has label {known[name]}, which is {expected} in the official lists; "
                                "take these.")


def class_folder(path: bytes) -> bytes:
    """What names the class in a path: `n01440764` of `train/n01440764/x.JPEG`, nothing of `val/x.JPEG`."""
    return path.partition(b"/")[2].rpartition(b"/")[0]


def wnid(path: bytes) -> bytes:
    """The class in the name of an ImageNet training image, or nothing."""
    match = WNID.match(path, path.rfind(b"/") + 1)
    return match[1] if match else b""


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
