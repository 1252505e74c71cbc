"""The forms in which a small dataset comes, each read into a `Raw`: .npz, official archives, idx files, class folders of PNGs.

What can be told from a form alone is checked here, what is known of the dataset by `sources.check`. No torch at import.
"""

import io
import os
import pickle
import struct
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from common.data.files import (
    JPEG,
    PNG,
    UNREADABLE,
    all_visible,
    class_order,
    first_whole,
    is_image,
    reason,
    some,
    subfolders,
    unpack,
)
from common.data.pixels import eight_bit
from common.data.sets import SETS, Raw, read_arrays
from common.errors import UserError


class Archive(NamedTuple):
    """Layout of an official CIFAR archive: the tar, the folder in it, its files, and the keys of the pickled dictionaries."""

    tar: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: str
    names: str


ARCHIVES = {
    "cifar10": Archive(
        "cifar-10-python.tar.gz", "cifar-10-batches-py", tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",),
        "batches.meta", "labels", "label_names",
    ),
    "cifar100": Archive(
        "cifar-100-python.tar.gz", "cifar-100-python", ("train",), ("test",), "meta", "fine_labels", "fine_label_names",
    ),
}
IDX = {
    "x_train": "train-images-idx3-ubyte", "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte", "y_test": "t10k-labels-idx1-ubyte",
}
# All that the pickles of an official archive may import: what an array is made with, under its name before NumPy 2 and since.
PICKLED = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn every way in which a file can be truncated or unreadable into one UserError."""
    try:
        yield
    except (*UNREADABLE, tarfile.TarError) as error:
        raise UserError(f"{path} is truncated or unreadable ({reason(error)}); take another copy.") from None


def read_npz(name: str, path: Path) -> Raw:
    """An .npz with x_train, y_train, x_test, y_test and classes, which numbered classes may lack.

    Images may be [count, channels, side, side], or lack the axis of one channel; labels may be a column.
    """
    arrays, numbered = read_arrays(path, "take another copy"), name == "mnist"
    wanted = ("x_train", "y_train", "x_test", "y_test", *(() if numbered else ("classes",)))
    if missing := [k for k in wanted if k not in arrays]:
        raise UserError(f"{path} has no array {missing[0]!r}; expected x_train, y_train, x_test, y_test and classes.")
    given = arrays["classes"].tolist() if "classes" in arrays else range(SETS[name].classes)
    classes = tuple(c.decode("utf-8", "replace") if isinstance(c, bytes) else str(c) for c in given)
    images, labels = ([function(name, arrays[f"{key}_{split}"]) for split in ("train", "test")]
                      for key, function in (("x", _as_images), ("y", _as_labels)))
    return Raw(images[0], labels[0], images[1], labels[1], classes, str(path))


def _as_images(name: str, x: np.ndarray) -> np.ndarray:
    """Images with the channels last, as bytes where they are whole numbers of 0 to 255; anything else as it is."""
    known = SETS[name]
    if known.channels == 1 and x.ndim == 3:
        x = x[..., None]
    if x.shape[1:] == (known.channels, known.side, known.side) != (known.side, known.side, known.channels):
        x = x.transpose(0, 2, 3, 1)
    return x.astype(np.uint8) if x.dtype.kind in "iu" and x.size and x.min() >= 0 and x.max() <= 255 else x


def _as_labels(name: str, y: np.ndarray) -> np.ndarray:
    return y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y


def read_archive(name: str, path: Path) -> Raw:
    """The official CIFAR archive, as a tar that is read without unpacking it, or as its folder."""
    layout = ARCHIVES[name]
    wanted = (*layout.train, *layout.test, layout.meta)
    with _readable(path):
        files = _archive_files(path, layout.folder, wanted)
    if missing := [f for f in wanted if f not in files]:
        raise UserError(f"{path} lacks {', '.join(missing)}; expected the official archive of {name}, whole.")
    content = {f: _unpickle(files.pop(f), f"{path}: {f}") for f in wanted}
    splits = []
    for part in (layout.train, layout.test):
        batches = [_read_batch(name, content[f], layout.labels, f"{path}: {f}") for f in part]
        splits += [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]
    names = content[layout.meta].get(layout.names)
    if not isinstance(names, list):
        raise UserError(f"{path}: {layout.meta} has no {layout.names}; expected the official archive of {name}.")
    return Raw(*splits, classes=tuple(map(str, names)), origin=str(path), official=True)


def _archive_files(path: Path, folder: str, wanted: tuple[str, ...]) -> dict[str, bytes]:
    if path.is_dir():
        return {f: (path / f).read_bytes() for f in wanted if (path / f).is_file()}
    contents = {}
    with tarfile.open(path) as tar:
        for member in tar:
            place = PurePosixPath(member.name)
            if member.isfile() and all_visible(member.name) and place.parent.name == folder and place.name in wanted:
                contents[place.name] = tar.extractfile(member).read()
    return contents


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numbers, text, lists, dictionaries and NumPy arrays, and refuses to import anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PICKLED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which image data never needs")
        return PICKLED[module, name]


def _unpickle(content: bytes, where: str) -> dict[str, Any]:
    """The dictionary of an official CIFAR file, which Python 2 pickled; anything but plain data is refused."""
    try:
        value = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # broken pickles raise nearly every type
        raise UserError(f"{where} is not a file of the official archive ({reason(error)}); take another copy.") from None
    if not isinstance(value, dict):
        raise UserError(f"{where} holds {type(value).__name__}, expected the dictionary of the official archive.")
    return value


def _read_batch(name: str, batch: dict[str, Any], key: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [count, side, side, channels] and labels [count]; the file has one row of channel planes an image."""
    known = SETS[name]
    data, labels = batch.get("data"), batch.get(key)
    width = known.channels * known.side**2
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != width or not isinstance(labels, list):
        raise UserError(f"{where} has no data of {width} bytes an image with {key}; expected the official archive of {name}.")
    if len(labels) != len(data):
        raise UserError(f"{where} has {len(data):,} images but {len(labels):,} {key}; take another copy.")
    return data.reshape(-1, known.channels, known.side, known.side).transpose(0, 2, 3, 1), np.asarray(labels)


def idx_paths(folder: Path, stem: str) -> list[Path]:
    """The forms of a file that are here: as it is, with .gz, with the dot that some unpackers put before "idx", or in a
    folder of its own name, as others do."""
    plain = (stem, stem.replace("-idx", ".idx"))
    names = [n + end for n in plain for end in ("", ".gz")]
    return [p for place in (folder, *(folder / n for n in plain)) for n in names if (p := place / n).is_file()]


def read_idx_files(name: str, folder: Path) -> Raw:
    """The four official files of MNIST in one folder, packed (.gz) or not; of several forms of a file, one that is whole."""
    arrays = {}
    for key, stem in IDX.items():
        arrays[key] = first_whole(partial(_read_idx, path) for path in idx_paths(folder, stem))
        if arrays[key] is None:
            raise UserError(f"{folder / stem} is not here; expected the four official idx files of MNIST side by side, .gz or "
                            "not.")
    images = {key: value[..., None] if key[0] == "x" else value for key, value in arrays.items()}
    classes = tuple(map(str, range(SETS[name].classes)))
    return Raw(**images, classes=classes, origin=str(folder), official=True)


def _read_idx(path: Path) -> np.ndarray:
    """One idx file: two zero bytes, type 8 (uint8), number of axes, big-endian lengths, then the bytes. Its first bytes say
    whether it is packed, as some unpackers keep the name with .gz."""
    with _readable(path):
        content = unpack(path.read_bytes())
    axes = content[3] if len(content) > 3 else 0
    if content[:3] != b"\0\0\x08" or not 1 <= axes <= 3 or len(content) < 4 + 4 * axes:
        raise UserError(f"{path} is not an idx file of bytes; take another copy.")
    shape = struct.unpack_from(f">{axes}I", content, 4)
    expected, size = int(np.prod(shape)), len(content) - 4 - 4 * axes
    if size != expected:
        raise UserError(f"{path} is truncated: it has {size:,} bytes of data, expected {expected:,}; take another copy.")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def read_class_folders(name: str, folder: Path) -> Raw:
    """train/<class>/*.png and test/<class>/*.png; classes that are numbers are in the order of these, others in that of the
    alphabet."""
    splits = {s: set(subfolders(folder / s)) if (folder / s).is_dir() else set() for s in ("train", "test")}
    classes = class_order(splits["train"] | splits["test"], folder)
    if not splits["train"] & splits["test"] and all(splits.values()):
        raise UserError(f"{folder / 'train'} has the class folders {some(class_order(splits['train'], folder))} and "
                        f"{folder / 'test'} {some(class_order(splits['test'], folder))}: their names say the labels, so give "
                        "both the same ones.")
    for split, names in splits.items():
        if missing := [c for c in classes if c not in names]:
            raise UserError(f"{folder / split} has no folder for {missing[0]!r}; expected {SETS[name].classes} classes.")
    if len(classes) != SETS[name].classes:
        raise UserError(f"{folder / 'train'} has {len(classes)} class folders; {name} has {SETS[name].classes} classes.")
    arrays = [a for split in splits for a in _read_pngs(name, folder / split, classes)]
    return Raw(*arrays, classes=tuple(classes), origin=str(folder))


def _read_pngs(name: str, folder: Path, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    paths, shape = [], (SETS[name].side, SETS[name].side, SETS[name].channels)
    for label, c in enumerate(classes):
        files = sorted(os.listdir(folder / c))
        paths += [(folder / c / f, label) for f in files if is_image(f, PNG)]
        if lossy := [f for f in files if is_image(f, JPEG)]:
            raise UserError(f"{folder / c / lossy[0]} is a JPEG, which does not keep the pixels of {name}; take a copy in PNG.")
    images = [_read_png(path, shape) for path, _ in paths]
    return np.array(images, np.uint8).reshape(-1, *shape), np.array([label for _, label in paths], np.uint8)


def _read_png(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = eight_bit(image, "RGB" if shape[2] == 3 else "L")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow reports a broken PNG as a SyntaxError
        raise UserError(f"{path} is damaged ({reason(error)}); take another copy.") from None
    if pixels.shape[:2] != shape[:2]:
        raise UserError(f"{path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, expected {shape[1]} x {shape[0]}.")
    return pixels.reshape(shape)
