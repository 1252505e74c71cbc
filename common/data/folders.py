"""Where the images of a large set are: class folders that say the labels, and the layouts of listed images. No torch."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from common.data.files import all_numbers, class_order, is_image, is_visible, some, subfolders
from common.data.large_sets import PLACES_ARCHIVES, LargeSet
from common.data.lists import TOPS, LargeImages, Listed, as_listed, class_folder, wnid
from common.errors import UserError

SHOWN = 10
DEPTH = 3  # folders between the one that is named and the images, as in ILSVRC/Data/CLS-LOC
FEW = 50  # folders among which they are looked for


def image_root(facts: LargeSet, root: Path) -> Path:
    """`root`, or the only folder in it that has the images: that of the set's name, or what an archive unpacks to."""
    level = [root]
    for _ in range(DEPTH + 1):
        if folders := [folder for folder in level if any((folder / top).is_dir() for top in TOPS)]:
            named = [folder for folder in folders if folder.name == facts.name]
            return (named or folders)[0] if len(named or folders) == 1 else root
        level = [folder / name for folder in level for name in subfolders(folder)]
        if len(level) > FEW:
            break
    return root


def read_folders(facts: LargeSet, root: Path, part: str, label_of: Mapping[str, int] | None = None) -> Listed:
    """Every image in `<root>/<part>/<class>/`.

    label_of: the labels by name of a class folder or wnid, as training has them; without it, classes are numbered in the order
    of the wnids in the files' names, else of their folders' names: numbers by value, others by the alphabet.
    """
    names = class_order(subfolders(root / part), root / part)
    if len(names) != facts.classes:
        raise UserError(f"{root / part} has {len(names):,} class folders, {facts.name} has {facts.classes:,} classes; unpack "
                        f"the whole archive, {part} images into a folder for each class.")
    files = {name: [e.name for e in os.scandir(root / part / name) if is_image(e.name)] for name in names}
    wnids = {name: _wnid_of(root / part / name, files[name]) for name in names}
    label_of = number(names, wnids, root / part) if label_of is None else _translate(facts, root / part, names, wnids, label_of)
    paths = [f"{part}/{name}/{file}" for name in names for file in files[name]]
    return as_listed(paths, [label_of[name] for name in names for _ in files[name]])


def _wnid_of(folder: Path, files: list[str]) -> str:
    """The wnid that names a class folder or all its files, or ""; a file with another one is a UserError."""
    wnids = {file: wnid(os.fsencode(file)).decode() for file in files}
    first = folder.name if is_wnid(folder.name) else next(filter(None, wnids.values()), "")
    if other := next((file for file, name in wnids.items() if name and name != first), None):
        raise UserError(f"{folder / other} is an image of class {wnids[other]} by its name, but its folder is that of {first}; "
                        "put it back, or unpack the archive again.")
    return first if is_wnid(folder.name) or all(wnids.values()) else ""


def is_wnid(name: str) -> bool:
    return bool(wnid(os.fsencode(f"{name}_0.")))


def number(names: list[str], wnids: Mapping[str, str], where: Path) -> dict[str, int]:
    """Labels of training's class folders."""
    if not all(wnids.values()):
        return {name: label for label, name in enumerate(names)}
    if len(set(wnids.values())) != len(names):
        raise UserError(f"{where} has images of {len(set(wnids.values())):,} classes in {len(names):,} folders, by their names; "
                        "unpack the archive again.")
    return {name: label for label, name in enumerate(sorted(names, key=wnids.__getitem__))}


def _translate(facts: LargeSet, where: Path, names: list[str], wnids: Mapping[str, str],
               label_of: Mapping[str, int]) -> dict[str, int]:
    """The labels that training gives to folders of these names."""
    labels = {name: label_of.get(name, label_of.get(wnids[name], -1)) for name in names}
    if unknown := [name for name in names if labels[name] < 0]:
        raise UserError(
            f"{where} has the class folders {some(names)}, training has {some(list(label_of))}: {len(unknown):,} of "
            f"{len(names):,} are not among these, and labels come from the names; the development kit numbers the classes in "
            "another order than the wnids. Give the folders the names that training has, or bring "
            f"{facts.test.file or 'a list'}, which says the class of every file.")
    if len(set(labels.values())) != len(names):
        raise UserError(f"{where} has two folders of one class; unpack the archive again.")
    return labels


def numbered_only(listed: Listed) -> bool:
    """Whether nothing but numbers names the classes of a list; these may follow any numbering."""
    first = {label: path for path, label in zip(listed.paths.tolist(), listed.labels.tolist(), strict=True)}
    return all_numbers(class_folder(path).decode() for path in first.values()) and not any(map(wnid, first.values()))


def settle(root: Path, listed: Listed, train: Listed) -> Listed:
    """A list under the paths that are in use here: as listed, all in one folder, in class folders of training's names, or
    wherever a file of this name is.

    ImageNet's validation images are unpacked in all these ways, and there is a list for most.
    """
    folder_of = {label: class_folder(path) for path, label in zip(train.paths.tolist(), train.labels.tolist(), strict=True)}
    pairs = [(path.partition(b"/")[0], path.rpartition(b"/")[2]) for path in listed.paths.tolist()]
    flat = [b"/".join(pair) for pair in pairs]
    nested = [b"/".join((first, folder_of.get(label, b""), last))
              for (first, last), label in zip(pairs, listed.labels.tolist(), strict=True)]
    for paths in (listed.paths.tolist(), flat, nested):
        if (root / os.fsdecode(paths[0])).is_file():
            return Listed(np.array(paths, dtype=np.bytes_), listed.labels)
    return _by_name(root, listed)


def _by_name(root: Path, listed: Listed) -> Listed:
    """The list with every path replaced by that of the file with the same name, whatever the case of its letters; as it is
    where some have none or several. Class folders that hold images of two labels are a UserError."""
    by_path: dict[bytes, bytes] = {}
    by_name: dict[bytes, bytes | None] = {}
    for top in {path.partition(b"/")[0] for path in listed.paths.tolist()}:
        for path in _walk(root, os.fsdecode(top)):
            by_path[path.lower()] = path
            name = path.rpartition(b"/")[2].lower()
            by_name[name] = None if name in by_name else path
    paths = [by_path.get(p.lower()) or by_name.get(p.rpartition(b"/")[2].lower()) for p in listed.paths.tolist()]
    if not all(paths):
        return listed
    label_of: dict[bytes, int] = {}
    for path, label in zip(paths, listed.labels.tolist(), strict=True):
        if (folder := class_folder(path)) and label_of.setdefault(folder, label) != label:
            raise UserError(f"{root / os.fsdecode(path)} has label {label} by the list, other images of its folder have "
                            f"{label_of[folder]}; images were moved between classes: unpack the archive again.")
    return Listed(np.array(paths, dtype=np.bytes_), listed.labels)


def _walk(root: Path, top: str) -> Iterator[bytes]:
    """Every image below `<root>/<top>`, as a path below the root."""
    for folder, inner, files in os.walk(root / top, followlinks=True):
        inner[:] = filter(is_visible, inner)
        place = os.path.relpath(folder, root)
        yield from (os.fsencode(f"{place}/{file}") for file in files if is_image(file))


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
                        f"name the folder in which these paths begin{_which_archive(images)}.")


def _which_archive(images: LargeImages) -> str:
    """Of Places, which archive the listed paths are those of, and which one is here."""
    if images.name != "places-lt":
        return ""
    listed = [paths[0].partition(b"/")[0].decode() for paths in (images.train_paths, images.test_paths)]
    needed = [top for top in listed if top in PLACES_ARCHIVES]
    others = [top for top, archive in PLACES_ARCHIVES.items() if archive not in map(PLACES_ARCHIVES.get, needed)]
    here = [top for top in others if (images.root / top).is_dir()]
    unfit = here or [top for top in others if "large" not in top]
    return f": the lists fit {_archives(needed)}, not {_archives(unfit)}{', which is here' * bool(here)}" if needed else ""


def _archives(tops: list[str]) -> str:
    return " and ".join(f"{PLACES_ARCHIVES[top]} ({top}/)" for top in tops)


def _files(folder: Path) -> set[bytes] | None:
    try:
        return {os.fsencode(entry.name) for entry in os.scandir(folder)}
    except (FileNotFoundError, NotADirectoryError):
        return None
