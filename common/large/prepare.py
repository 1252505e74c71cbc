"""Make `<folder>/<name>.npz` of a large set: find its lists and images, check them, say what is wrong. No torch at import.

Images stay where they are; what is written is where that is, and which of them are trained and tested on.
"""

import hashlib
import os
from pathlib import Path

import numpy as np

from common.data.large_sets import LargeSet, Split, find_large
from common.data.sources import VARIABLE
from common.errors import UserError
from common.large.lists import (
    LargeImages,
    Listed,
    as_listed,
    check_list,
    check_together,
    class_folder,
    in_order,
    list_digest,
    load_large,
    prepare_command,
    read_list,
    save,
    summarise,
)
from common.large.miniature import make_miniature

LISTS = "LONGTAIL_LISTS"  # environment variable: a folder of list files
SUFFIXES = {".jpeg", ".jpg", ".png"}
PARETO_START = 0.2  # of the first class's quantile, in classes: brings ImageNet-LT's sum nearest (116,079; official 115,846)
SHOWN = 10


def prepare_large(name: str, folder: Path, source: Path | None = None, check_images: bool = False) -> Path:
    """Make `<folder>/<name>.npz` from the folder `source` (or LONGTAIL_DATA/<name>), which holds the images; print a line on it.

    Lists are looked for in `source`, `source`/lists and LONGTAIL_LISTS, with or without .gz; where a set allows it, class
    folders stand in for one that is missing. Without a source, a set that is here is only looked at. Every image has to
    exist; with `check_images` each is decoded too. All that is wrong is a UserError, and leaves what was there before.
    """
    facts, path = find_large(name), Path(folder) / f"{name}.npz"
    source = source or _given(name)
    if source is None and name == "miniature" and not _is_whole(name, folder):
        source = make_miniature(Path(folder) / name, facts)
    if source is None and not path.exists():
        raise UserError(f"{name} needs {facts.archive}; name the folder that holds them: {prepare_command(name)}.")
    images = load_large(name, folder) if source is None else read_source(facts, Path(source).expanduser().resolve())
    check_files(images)
    if check_images:
        from common.large.input import check_decodable

        check_decodable(images)
    if source is not None:
        save(path, images)
    print(f"{summarise(images)}, images in {images.root}, index in {path}.")
    return path


def _is_whole(name: str, folder: Path) -> bool:
    """Whether the prepared set and its images are here."""
    try:
        check_files(load_large(name, folder))
    except UserError:
        return False
    return True


def _given(name: str) -> Path | None:
    """The folder of the set's name in LONGTAIL_DATA."""
    given = os.environ.get(VARIABLE)
    found = Path(given).expanduser() / name if given else None
    return found if found and found.is_dir() else None


def read_source(facts: LargeSet, root: Path) -> LargeImages:
    """The two lists of a set whose images are below `root`, checked and in order."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; name the one that holds {facts.archive}: {prepare_command(facts.name)}.")
    train, official = _training_list(facts, root)
    test = _test_list(facts, root)
    test = settle(root, test, train)
    check_together(facts, train, test)
    digest = hashlib.sha256(f"{list_digest(train)}:{list_digest(test)}".encode()).hexdigest()[:16]
    train, test = in_order(train), in_order(test)
    return LargeImages(facts.name, root, train.paths, train.labels, test.paths, test.labels, facts.classes, official, digest)


def _training_list(facts: LargeSet, root: Path) -> tuple[Listed, bool]:
    """The training list, and whether it is the official one."""
    if found := find_list(facts.train, root):
        listed = read_list(found, facts.classes)
        check_list(facts, facts.train, listed, str(found))
        return listed, True
    if not (facts.folders and (root / "train").is_dir()):
        raise _no_list(facts, facts.train, "train", root)
    whole = read_folders(facts, root, "train")
    if facts.pareto:
        return draw_pareto(facts, whole), False
    check_list(facts, facts.train, whole, str(root / "train"))
    return whole, True


def _test_list(facts: LargeSet, root: Path) -> Listed:
    found = find_list(facts.test, root)
    if not found and not (facts.folders and (root / "val").is_dir()):
        raise _no_list(facts, facts.test, "val", root)
    listed = read_list(found, facts.classes) if found else read_folders(facts, root, "val")
    check_list(facts, facts.test, listed, str(found or root / "val"))
    return listed


def _no_list(facts: LargeSet, split: Split, part: str, root: Path) -> UserError:
    if facts.name == "miniature":
        return UserError(f"{root} holds no miniature; leave --from out, and its images are drawn.")
    instead = f", and no folder {part}/ of classes in {root}" if facts.folders else ""
    where = ", ".join(map(str, _places(root)))
    return UserError(f"{facts.name}: there is no {split.file or 'list'} (.gz or not) in {where}{instead}; put the list of "
                     f"facebookresearch/classifier-balancing there, or set {LISTS} to its folder.")


def _places(root: Path) -> list[Path]:
    given = os.environ.get(LISTS)
    return [root, root / "lists", *([Path(given).expanduser()] if given else [])]


def find_list(split: Split, root: Path) -> Path | None:
    """The list file of a split, or None."""
    names = (split.file, f"{split.file}.gz") if split.file else ()
    return next((place / name for place in _places(root) for name in names if (place / name).is_file()), None)


def read_folders(facts: LargeSet, root: Path, part: str) -> Listed:
    """Every image in `<root>/<part>/<class>/`; the alphabetical order of the classes is their number."""
    folders = sorted(entry.name for entry in os.scandir(root / part) if entry.is_dir())
    if len(folders) != facts.classes:
        raise UserError(f"{root / part} has {len(folders):,} class folders, {facts.name} has {facts.classes:,} classes; unpack "
                        f"the whole archive, {part} images into a folder for each class.")
    paths, labels = [], []
    for label, name in enumerate(folders):
        images = [e.name for e in os.scandir(root / part / name) if os.path.splitext(e.name)[1].lower() in SUFFIXES]
        paths += [f"{part}/{name}/{image}" for image in images]
        labels += [label] * len(images)
    return as_listed(paths, labels)


def pareto_counts(facts: LargeSet) -> np.ndarray:
    """Images per class of a Pareto truncation, int64 [classes], largest first.

    The class at rank c from below has the quantile p = (c + PARETO_START) / classes of a Pareto distribution of power
    `pareto`, x = (1 - p)^(-1 / pareto) - 1, stretched so that the ends are the set's smallest and largest class, rounded.
    For ImageNet-LT: 116,079 images, 388 / 469 / 143 classes many / medium / few, where the official list has 115,846.
    """
    p = (np.arange(facts.classes) + PARETO_START) / facts.classes
    x = (1 - p) ** (-1 / facts.pareto) - 1
    share = (x - x[0]) / (x[-1] - x[0])
    return np.rint(facts.train.smallest + (facts.train.largest - facts.train.smallest) * share).astype(np.int64)[::-1]


def draw_pareto(facts: LargeSet, whole: Listed) -> Listed:
    """A long-tailed part of `whole` (every training image of the balanced set), the same on every machine.

    Classes are taken in the order of the SHA-256 of their folder's name, the largest number first; a class with fewer
    images than that waits for one that it has. In a class, images come in the order of the SHA-256 of folder and file name.
    """
    order = np.array([hashlib.sha256(p.partition(b"/")[2]).digest() for p in whole.paths.tolist()])
    ranked = [found[np.argsort(order[found])] for found in _by_class(whole.labels, facts.classes)]
    folders = [hashlib.sha256(class_folder(whole.paths[found[0]])).digest() if len(found) else b"" for found in ranked]
    waiting, kept = sorted(range(facts.classes), key=folders.__getitem__), []
    for target in pareto_counts(facts).tolist():
        taken = next((c for c in waiting if len(ranked[c]) >= target), None)
        if taken is None:
            raise UserError(f"{facts.name} cannot be drawn: no class is left with {target:,} training images; unpack the whole "
                            f"archive, or bring {facts.train.file}.")
        waiting.remove(taken)
        kept.append(ranked[taken][:target])
    chosen = np.concatenate(kept)
    return Listed(whole.paths[chosen], whole.labels[chosen])


def _by_class(labels: np.ndarray, classes: int) -> list[np.ndarray]:
    """The indices of every class's images."""
    return np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels, minlength=classes))[:-1])


def settle(root: Path, test: Listed, train: Listed) -> Listed:
    """The test list under the paths that are in use here: as listed, all in one folder, or in class folders.

    ImageNet's validation images are unpacked both ways, and there is a list for each.
    """
    folder_of = {label: class_folder(path) for path, label in zip(train.paths.tolist(), train.labels.tolist(), strict=True)}
    pairs = [(path.partition(b"/")[0], path.rpartition(b"/")[2]) for path in test.paths.tolist()]
    flat = [b"/".join(pair) for pair in pairs]
    nested = [b"/".join((first, folder_of.get(label, b""), last)) for (first, last), label in zip(pairs, test.labels.tolist(),
                                                                                             strict=True)]
    for paths in (test.paths.tolist(), flat, nested):
        if (root / paths[0].decode()).is_file():
            return Listed(np.array(paths, dtype=np.bytes_), test.labels)
    return test


def check_files(images: LargeImages) -> None:
    """Every image has to be below the root: else a UserError with the first ten that are not. Reads each folder once."""
    here: dict[bytes, set[bytes] | None] = {}
    wrong, total = [], len(images.train_paths) + len(images.test_paths)
    for path in [*images.train_paths.tolist(), *images.test_paths.tolist()]:
        folder, _, file = path.rpartition(b"/")
        if folder not in here:
            here[folder] = _files(images.root / folder.decode())
        if here[folder] is None:
            wrong.append(f"{path.decode()} (there is no folder {folder.decode()})")
        elif file not in here[folder]:
            wrong.append(f"{path.decode()} (not in its folder, which has {len(here[folder]):,} files)")
    if wrong:
        first = "; ".join([*wrong[:SHOWN], *(["and so on"] if len(wrong) > SHOWN else [])])
        raise UserError(f"{len(wrong):,} of {total:,} images of {images.name} are not in {images.root}: {first}; bring them, or "
                        "name the folder in which these paths begin.")


def _files(folder: Path) -> set[bytes] | None:
    try:
        return {os.fsencode(entry.name) for entry in os.scandir(folder)}
    except (FileNotFoundError, NotADirectoryError):
        return None
