"""Make `<folder>/<name>.npz` of a large set: find its lists and images, check them, say what is wrong. No torch at import.

Images stay where they are; what is written is where that is, and which of them are trained and tested on.
"""

import hashlib
import os
from functools import partial
from pathlib import Path

import numpy as np

from common.data.files import first_whole
from common.data.folders import check_files, image_root, numbered_only, read_folders, settle
from common.data.large_sets import LargeSet, Split, find_large
from common.data.lists import (
    LargeImages,
    Listed,
    check_list,
    check_together,
    class_folder,
    class_labels,
    in_order,
    list_digest,
    load_large,
    prepare_command,
    read_list,
    save,
    summarise,
    wnid,
)
from common.data.miniature import make_miniature
from common.data.sources import VARIABLE
from common.errors import UserError

LISTS = "LONGTAIL_LISTS"  # environment variable: a folder of list files
PARETO_START = 0.2  # of the first class's quantile, in classes: brings ImageNet-LT's sum nearest (116,079; official 115,846)


def prepare_large(name: str, folder: Path, source: Path | None = None, check_images: bool = False) -> Path:
    """Make `<folder>/<name>.npz` from the folder `source` (or LONGTAIL_DATA/<name>), which holds the images; print a line on it.

    Lists are looked for in `source`, `source`/lists and LONGTAIL_LISTS, with or without .gz; where a set allows it, class
    folders stand in for one that is missing. The images may lie some folders deeper. Without a source, a set that is here is
    only looked at. Every image has to exist; with `check_images` each is decoded too. All that is wrong is a UserError, and
    leaves what was there before.
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
        from common.data.decoding import check_decodable

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
    folder = Path(given).expanduser() / name if given else None
    return folder if folder and folder.is_dir() else None


def read_source(facts: LargeSet, root: Path) -> LargeImages:
    """The two lists of a set whose images are below `root`, checked and in order."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; name the one that holds {facts.archive}: {prepare_command(facts.name)}.")
    places, root = _places(root), image_root(facts, root)
    places += [p for p in (root, root / "lists") if p not in places]
    train, official = _training_list(facts, root, places)
    test = _test_list(facts, root, places, train)
    check_together(facts, train, test)
    train, test = settle(root, train, train), settle(root, test, train)
    digest = hashlib.sha256(f"{list_digest(train)}:{list_digest(test)}".encode()).hexdigest()[:16]
    train, test = in_order(train), in_order(test)
    return LargeImages(facts.name, root, train.paths, train.labels, test.paths, test.labels, facts.classes, official, digest)


def _training_list(facts: LargeSet, root: Path, places: list[Path]) -> tuple[Listed, bool]:
    """The training list, and whether it is the official one."""
    files = find_lists(facts, 0, places)
    if listed := first_whole(partial(_read_checked, facts, facts.train, file) for file in files):
        return listed, True
    if not (facts.folders and (root / "train").is_dir()):
        raise _no_list(facts, facts.train, "train", root, places)
    whole = read_folders(facts, root, "train")
    if facts.pareto:
        _check_whole(facts, root / "train", whole)
        return draw_pareto(facts, whole), False
    check_list(facts, facts.train, whole, str(root / "train"))
    return whole, True


def _test_list(facts: LargeSet, root: Path, places: list[Path], train: Listed) -> Listed:
    """The test list. Where it is read from folders, these get the labels that training gives to their names."""
    attempts = [partial(_read_checked, facts, facts.test, file) for file in find_lists(facts, 1, places)]
    from_list = len(attempts)
    if facts.folders and (root / "val").is_dir():
        attempts.append(partial(_read_test_folders, facts, root, train))
    if not attempts:
        raise _no_list(facts, facts.test, "val", root, places)
    test = first_whole(attempts)
    nameless = from_list and not any(map(class_folder, test.paths.tolist()))
    if nameless and numbered_only(train) and not find_lists(facts, 0, places):
        raise UserError(f"{root / 'train'} has numbers for class folders, and nothing says that they are the labels of "
                        f"{facts.test.file}; give the folders the wnids as names.")
    return test


def _read_checked(facts: LargeSet, split: Split, file: Path) -> Listed:
    listed = read_list(file, facts.classes)
    check_list(facts, split, listed, str(file))
    return listed


def _read_test_folders(facts: LargeSet, root: Path, train: Listed) -> Listed:
    listed = read_folders(facts, root, "val", class_labels(facts, train))
    check_list(facts, facts.test, listed, str(root / "val"))
    return listed


def _check_whole(facts: LargeSet, folder: Path, listed: Listed) -> None:
    """A drawn subset is the same on every machine only if it is drawn from all images, under their own names."""
    whole, remedy = find_large(facts.whole), f"unpack the whole archive, or bring {facts.train.file}"
    if len(listed.labels) != whole.train.images:
        raise UserError(f"{folder} has {len(listed.labels):,} images, all of {whole.name} are {whole.train.images:,}: what is "
                        f"drawn from a part is another subset than elsewhere; {remedy}.")
    counts = np.bincount(listed.labels, minlength=facts.classes)
    if (counts.max(), counts.min()) != (whole.train.largest, whole.train.smallest):
        raise UserError(f"{folder} has {counts.max():,} to {counts.min():,} images a class, {whole.name} has "
                        f"{whole.train.largest:,} to {whole.train.smallest:,}; {remedy}.")
    if numbered_only(listed):
        raise UserError(f"{folder} has numbers for class folders, and the images' names say no wnids, by which {facts.name} is "
                        f"drawn; give the folders the wnids as names, or bring {facts.train.file}.")


def _no_list(facts: LargeSet, split: Split, part: str, root: Path, places: list[Path]) -> UserError:
    if facts.name == "miniature":
        return UserError(f"{root} holds no miniature; leave --from out, and its images are drawn.")
    instead = f", and no folder {part}/ of classes in {root}" if facts.folders else ""
    also = f" or {facts.annotations[part != 'train']}" if facts.annotations else ""
    return UserError(f"{facts.name}: there is no {split.file or 'list'} (.gz or not){also} in {', '.join(map(str, places))}"
                     f"{instead}; put the list of facebookresearch/classifier-balancing there, or set {LISTS} to its folder.")


def _places(root: Path) -> list[Path]:
    given = os.environ.get(LISTS)
    return [root, root / "lists", *([Path(given).expanduser()] if given else [])]


def find_lists(facts: LargeSet, part: int, places: list[Path]) -> list[Path]:
    """The list files of a split (part 0: training, 1: test) that are here, best first."""
    split, annotations = (facts.train, facts.test)[part], facts.annotations
    names = [f"{split.file}{end}" for end in ("", ".gz") if split.file]
    names += [f"{annotations[part]}{end}" for end in ("", ".gz", ".tar.gz") if annotations]
    return [place / name for name in names for place in places if (place / name).is_file()]


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

    Classes are taken in the order of the SHA-256 of their name (the wnid, else the folder), the largest number first; a class
    with fewer images than that waits for one that it has. In a class, images come in the order of the SHA-256 of "name/file
    name".
    """
    order = np.array([hashlib.sha256(b"%s/%s" % (_class_name(p), p.rpartition(b"/")[2])).digest() for p in whole.paths.tolist()])
    ranked = [index[np.argsort(order[index])] for index in _by_class(whole.labels, facts.classes)]
    folders = [hashlib.sha256(_class_name(whole.paths[index[0]])).digest() if len(index) else b"" for index in ranked]
    waiting, kept = sorted(range(facts.classes), key=folders.__getitem__), []
    for target in pareto_counts(facts).tolist():
        taken = next((c for c in waiting if len(ranked[c]) >= target), None)
        if taken is None:
            raise UserError(f"{facts.name} cannot be drawn: no class is left with {target:,} training images; unpack the whole "
                            f"archive, or bring {facts.train.file}.")
        waiting.remove(taken)
        kept.append(ranked[taken][:target])
    index = np.concatenate(kept)
    return Listed(whole.paths[index], whole.labels[index])


def _class_name(path: bytes) -> bytes:
    return wnid(path) or class_folder(path)


def _by_class(labels: np.ndarray, classes: int) -> list[np.ndarray]:
    """The indices of every class's images."""
    return np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels, minlength=classes))[:-1])
