"""Tiny-ImageNet (200 classes of ImageNet at 64 x 64, Stanford's CS231n): its official folder, or the zip as it is.

The test split is the official validation split (the official test images have no labels), re-foldered by class or not.
Classes are numbered in alphabetical order of their wnid. No torch.
"""

import io
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import NamedTuple

import numpy as np

from common.data.files import JPEG, all_visible, decode_text, is_image, is_visible, reason, some
from common.data.sets import SETS, Raw, canonical_order
from common.errors import UserError

NAME = "tiny-imagenet"
FOLDER = "tiny-imagenet-200"
ZIP = f"{FOLDER}.zip"
URL = f"https://cs231n.stanford.edu/{ZIP}"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"  # of the zip (248,100,043 bytes), as the loaders of many projects state it
UNREADABLE = (OSError, EOFError, RuntimeError, NotImplementedError, zlib.error, zipfile.BadZipFile)


class Tree(NamedTuple):
    """A copy, unpacked or not: where it is, the sorted names of the visible JPEG files of each of its folders, and how one
    of its files is read (None where it is not there). Folders and names are relative, with slashes."""

    origin: str
    jpegs: dict[str, list[str]]
    read: Callable[[str], bytes | None]

    def path(self, name: str) -> str:
        """How an error message names a file."""
        return f"{self.origin}: {name}" if self.origin.endswith(".zip") else os.path.join(self.origin, name)


def places(folder: Path) -> Iterator[Path]:
    """Where in a folder a copy may be, best first: the zip, the official folder, the folder itself."""
    files = sorted(entry.name for entry in os.scandir(folder) if is_visible(entry.name) and entry.is_file())
    yield from (folder / f for f in files if f.lower().startswith(FOLDER) and f.lower().endswith(".zip"))  # also "... (1).zip"
    if (folder / FOLDER).is_dir():
        yield folder / FOLDER
    if (folder / "wnids.txt").is_file() or (folder / "val").is_dir():
        yield folder


def read_tiny(name: str, path: Path) -> Raw:
    """Decode every image of the official folder or zip. Both splits come in canonical order.

    A missing file, a damaged image, one of another size, and a class with another number of images are UserErrors.
    """
    known = SETS[name]
    with _opened(path) as tree:
        wnids = sorted(set(_text(tree, "wnids.txt").split()))
        if len(wnids) != known.classes:
            raise UserError(f"{tree.path('wnids.txt')} lists {len(wnids)} classes, expected {known.classes}; take another copy.")
        classes = _class_names(tree, wnids)
        members = [m for split, images in (("train", known.train), ("val", known.test))
                   for m in _members(tree, split, wnids, images // known.classes)]
        x = np.empty((known.train + known.test, known.side, known.side, known.channels), np.uint8)
        _decode_all(tree, members, x)
    y = np.repeat(np.arange(2 * known.classes) % known.classes, [len(m) for m in members])
    train, test = np.split(x, [known.train]), np.split(y, [known.train])
    return Raw(train[0], test[0], train[1], test[1], classes, str(path))


@contextmanager
def _opened(path: Path) -> Iterator[Tree]:
    """The tree at `path`; a zip is kept open, and read from the folder in it that has wnids.txt."""
    if path.is_dir():
        yield Tree(str(path), _jpegs(_walk(path)), partial(_read_file, path))
        return
    try:
        archive = zipfile.ZipFile(path)
    except UNREADABLE as error:
        raise UserError(f"{path} is truncated or unreadable ({reason(error)}); take another copy.") from None
    with archive:
        inside = {n.replace("\\", "/"): n for n in archive.namelist()}  # some packers of Windows write backslashes
        root = next((n for n in inside if PurePosixPath(n).name == "wnids.txt"), "").removesuffix("wnids.txt")
        members = {n.removeprefix(root): member for n, member in inside.items() if n.startswith(root)}
        yield Tree(str(path), _jpegs(members), partial(_read_member, archive, Lock(), members))


def _walk(root: Path) -> Iterator[str]:
    for split in ("train", "val"):
        for folder, _, files in os.walk(root / split):
            place = Path(folder).relative_to(root).as_posix()
            yield from (f"{place}/{name}" for name in files)


def _jpegs(names: Iterable[str]) -> dict[str, list[str]]:
    """Folder -> its JPEG files, sorted; without what systems leave behind."""
    by_folder: dict[str, list[str]] = {}
    for folder, _, name in (n.rpartition("/") for n in names):
        if is_image(name, JPEG) and all_visible(folder):
            by_folder.setdefault(folder, []).append(f"{folder}/{name}")
    return {folder: sorted(files) for folder, files in by_folder.items()}


def _read_file(root: Path, name: str) -> bytes | None:
    path = root / name
    return path.read_bytes() if path.is_file() else None


def _read_member(archive: zipfile.ZipFile, lock: Lock, members: dict[str, str], name: str) -> bytes | None:
    """One member, against its checksum. The lock: threads share the zip's file."""
    if name not in members:
        return None
    with lock:
        return archive.read(members[name])


def _content(tree: Tree, name: str) -> bytes | None:
    try:
        return tree.read(name)
    except UNREADABLE as error:
        raise UserError(f"{tree.path(name)} is damaged or unreadable ({reason(error)}); take another copy.") from None


def _text(tree: Tree, name: str) -> str:
    content = _content(tree, name)
    if content is None:
        raise UserError(f"{tree.path(name)} is not here; expected the official folder {FOLDER}, or its zip, whole.")
    try:
        return decode_text(content)
    except ValueError as error:
        raise UserError(f"{tree.path(name)} is damaged ({reason(error)}); take another copy.") from None


def _class_names(tree: Tree, wnids: Sequence[str]) -> tuple[str, ...]:
    """What words.txt ("wnid, tab, words" a line) says of each wnid."""
    words = dict(line.split("\t", 1) for line in _text(tree, "words.txt").splitlines() if "\t" in line)
    if missing := [w for w in wnids if w not in words]:
        raise UserError(f"{tree.path('words.txt')} has no name for {missing[0]}; take another copy.")
    return tuple(words[w].strip() for w in wnids)


def _members(tree: Tree, split: str, wnids: Sequence[str], each: int) -> list[list[str]]:
    """The image files of every class of train or val, as many as each has to have."""
    by_class = _by_folder(tree, split, wnids)
    if f"{split}/images" in tree.jpegs:
        by_class = {wnid: sorted({_name(f): f for f in (*by_class[wnid], *flat)}.values())
                    for wnid, flat in _annotated(tree, split, wnids, by_class).items()}
    elif split == "val" and _content(tree, f"{split}/{split}_annotations.txt") is not None:
        _compare(tree, f"{split}/{split}_annotations.txt", by_class)
    strange = sorted({parts[1] for f in tree.jpegs if len(parts := f.split("/")) > 1 and parts[0] == split} - {*wnids, "images"})
    for wnid, files in by_class.items():
        if len(files) != each:
            folders = f", and folders {some(strange)}, which are no classes of wnids.txt" if strange else ""
            raise UserError(f"{tree.path(split)} has {len(files)} images of class {wnid}, expected {each}{folders}; take a whole "
                            "copy.")
    return [by_class[w] for w in wnids]


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _by_folder(tree: Tree, split: str, wnids: Sequence[str]) -> dict[str, list[str]]:
    """The images that lie in a folder of their class, in any of the usual layouts. Training images have the class in their
    names too, which has to be the same."""
    by_class = {w: [f for place in (f"{split}/{w}", f"{split}/{w}/images", f"{split}/images/{w}")
                    for f in tree.jpegs.get(place, [])] for w in wnids}
    for wnid, files in by_class.items():
        for file in files:
            by_name = _name(file).partition("_")[0]
            if by_name != wnid and by_name in by_class:
                raise UserError(f"{tree.path(file)} stands in the folder of class {wnid}, but its name says {by_name}; put it "
                                "back, or take another copy.")
    return by_class


def _annotations(tree: Tree, table: str) -> Iterator[tuple[int, str, str]]:
    """Line number, file name and wnid of every line ("file, tab, wnid, tab, box") that has any."""
    for number, line in enumerate(_text(tree, table).splitlines(), 1):
        if line.strip():
            name, wnid = ([*line.split("\t"), "", ""])[:2]
            yield number, name.strip(), wnid.strip()


def _annotated(tree: Tree, split: str, wnids: Sequence[str], placed: dict[str, list[str]]) -> dict[str, list[str]]:
    """The images of each class in <split>/images by <split>_annotations.txt. placed: those in folders of their class, where
    a copy that was re-foldered in part has the others."""
    table = f"{split}/{split}_annotations.txt"
    present, elsewhere = set(tree.jpegs[f"{split}/images"]), {_name(f) for files in placed.values() for f in files}
    by_class: dict[str, list[str]] = {w: [] for w in wnids}
    for number, name, wnid in _annotations(tree, table):
        if wnid not in by_class:
            raise UserError(f"{tree.path(table)}, line {number}: {wnid!r} is not a class of wnids.txt; take another copy.")
        if f"{split}/images/{name}" in present:
            by_class[wnid].append(f"{split}/images/{name}")
        elif name not in elsewhere:
            raise UserError(f"{tree.path(f'{split}/images/{name}')} is not here, but {table} names it; take a whole copy.")
    _compare(tree, table, placed)
    return {wnid: sorted(set(files)) for wnid, files in by_class.items()}


def _compare(tree: Tree, table: str, placed: dict[str, list[str]]) -> None:
    """Images in folders of their class have to be of the class that the annotations say."""
    folder_of = {_name(f): (wnid, f) for wnid, files in placed.items() for f in files}
    for _, name, wnid in _annotations(tree, table):
        folder, file = folder_of.get(name, (wnid, ""))
        if folder != wnid:
            raise UserError(f"{tree.path(file)} stands in the folder of class {folder}, but {table} says {wnid}; put it back, or "
                            "take another copy.")


def _decode_all(tree: Tree, members: Sequence[Sequence[str]], x: np.ndarray) -> None:
    """Fill x [images, side, side, channels] class by class, on all cores (Pillow decodes without the interpreter's lock), with
    a bar in a terminal."""
    from PIL import Image
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    Image.preinit()  # once, before threads ask for it
    parts = np.split(x, np.cumsum([len(m) for m in members])[:-1])
    with (
        Progress(TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True), transient=True,
                 disable=not sys.stdout.isatty()) as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        task = bar.add_task("", total=len(x))
        for done in pool.map(partial(_decode_class, tree), members, parts):
            bar.advance(task, done)


def _decode_class(tree: Tree, files: Sequence[str], x: np.ndarray) -> int:
    """Fill x with the images of one class, in canonical order; returns how many."""
    for row, name in zip(x, files, strict=True):
        row[:] = _decode(_content(tree, name) or b"", x.shape[1], tree.path(name))
    x[:] = x[canonical_order(x, np.zeros(len(x), np.uint8))]
    return len(x)


def _decode(content: bytes, side: int, where: str) -> np.ndarray:
    """uint8 [side, side, 3]; a grey image has three equal channels."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            size = image.size
            pixels = np.asarray(image.convert("RGB")) if size == (side, side) else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        fault = "not a JPEG file" if isinstance(error, Image.UnidentifiedImageError) else reason(error)
        raise UserError(f"{where} is damaged ({fault}); take another copy.") from None
    if pixels is None:
        raise UserError(f"{where} has {size[0]} x {size[1]} pixels, expected {side} x {side}; take another copy.")
    return pixels
