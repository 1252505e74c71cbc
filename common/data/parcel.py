"""A parcel: the images of a small set that some columns keep, in one small file for a machine that will not be kept. No torch.

It is an .npz with a lossless WebP mosaic of every class of both splits, all labels, and a description: the columns served, each
with the digest of its images, the commit that it was packed at, and the digest of the code of that commit.
"""

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.data.imbalance import select, set_aside
from common.data.sets import SETS, Images, archive_order, content_digest, load, read_arrays
from common.errors import UserError
from common.spec import Column, build
from common.store import write_atomically

ACROSS = 50  # images side by side in a mosaic
EFFORT = {"quality": 50, "method": 3}  # of the WebP encoder: a higher one takes forty times as long for one percent
MARK = "parcel"


class Need(NamedTuple):
    """Training images that runs want: those of a column, and so many of each class held out."""

    column: Column
    held_out: int = 0

    def images(self, images: Images) -> np.ndarray:
        """Ascending indices of the training images."""
        kept = select(images.y_train, self.column, images.archive_order, self.held_out)
        return np.union1d(kept, set_aside(images.y_train, self.column, images.archive_order, self.held_out))


def parcel_file(name: str, folder: Path) -> Path:
    """What says, beside `<name>.npz`, that this holds the images of some columns only."""
    return Path(folder) / f"{name}.{MARK}.json"


def is_parcel(path: Path) -> bool:
    """Whether a file is one of `pack_data`."""
    try:
        with zipfile.ZipFile(path) as file:
            return f"{MARK}.npy" in file.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def pack_data(name: str, needs: Sequence[Need], folder: Path, target: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write the images of `<folder>/<name>.npz` that `needs` name, and the test set, into one file; returns its description.

    about: what else it says, for example the commit.
    """
    images = load(name, folder)
    positions = {need: need.images(images) for need in dict.fromkeys(needs)}
    kept = np.unique(np.concatenate(list(positions.values())))
    described = {
        **about, "name": name, "digest_train": images.digests[0], "digest_test": images.digests[1],
        "test": content_digest(images.x_test, images.y_test), "train_images": len(kept),
        "serves": [{"column": asdict(need.column), "held_out": need.held_out, "digest": _digest(images, index)}
                   for need, index in positions.items()],
    }
    arrays = {
        MARK: np.frombuffer(json.dumps(described).encode(), np.uint8), "y_train": images.y_train, "y_test": images.y_test,
        "classes": np.array(images.classes), "kept": np.packbits(np.isin(np.arange(len(images.y_train)), kept)),
    }
    for label in range(len(images.classes)):
        arrays[f"train_{label}"] = _mosaic(images.x_train[kept[images.y_train[kept] == label]])
        arrays[f"test_{label}"] = _mosaic(images.x_test[images.y_test == label])
    write_atomically(Path(target), lambda file: np.savez(file, **arrays))
    return described


def _digest(images: Images, index: np.ndarray) -> str:
    return content_digest(images.x_train[index], images.y_train[index])


def _mosaic(images: np.ndarray) -> np.ndarray:
    """Images uint8 [count, side, side, channels] as the bytes of one lossless WebP, ACROSS wide, filled up with black."""
    from PIL import Image

    count, side, _, channels = images.shape
    rows = max(1, -(-count // ACROSS))
    grid = np.zeros((rows * ACROSS, side, side, channels), np.uint8)
    grid[:count] = images
    grid = grid.reshape(rows, ACROSS, side, side, channels).transpose(0, 2, 1, 3, 4).reshape(rows * side, ACROSS * side, channels)
    buffer = io.BytesIO()
    Image.fromarray(np.repeat(grid, 3, 2) if channels == 1 else grid).save(buffer, "WEBP", lossless=True, **EFFORT)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def _tiles(content: np.ndarray, count: int, side: int, channels: int) -> np.ndarray:
    """The images of `_mosaic`."""
    from PIL import Image

    with Image.open(io.BytesIO(content.tobytes())) as image:
        grid = np.asarray(image.convert("RGB"))[..., :channels]
    tiles = grid.reshape(-1, side, ACROSS, side, channels).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(-1, side, side, channels)[:count]


def unpack_data(name: str, source: Path, folder: Path) -> dict[str, Any]:
    """Make `<folder>/<name>.npz` from a parcel, black where it has no image, and say beside it which columns it serves; returns
    the description. A parcel that is damaged, of another set, or whose images differ from their digests is a UserError."""
    arrays = read_arrays(Path(source), "pack the data again")
    described = json.loads(arrays[MARK].tobytes())
    if described["name"] != name:
        raise UserError(f"{source} holds images of {described['name']}, not of {name}.")
    images = _images(name, arrays, described, source)
    for need, digest in needs_of(described):
        if _digest(images, need.images(images)) != digest:
            raise UserError(f"{source}: the images of {need.column.name} are not those that were packed; pack the data again.")
    known = SETS[name].digest_test
    if content_digest(images.x_test, images.y_test) != (known or described["test"]):
        raise UserError(f"{source}: the test images are not the genuine ones of {name}; pack the data again.")
    saved = {"x_train": images.x_train, "y_train": images.y_train, "x_test": images.x_test, "y_test": images.y_test,
             "classes": np.array(images.classes), "digest_train": np.array(described["digest_train"]),
             "digest_test": np.array(described["digest_test"]), "kept": images.kept}
    with _without_images(name, folder):
        write_atomically(parcel_file(name, folder), json.dumps(described, indent=1).encode())
        write_atomically(Path(folder) / f"{name}.npz", lambda file: np.savez(file, **saved))
    return described


@contextmanager
def _without_images(name: str, folder: Path) -> Iterator[None]:
    """Put an earlier parcel's images away while a new one is written, and them and its description back where that fails: never
    does a description stand beside another parcel's images, which are black where it has none."""
    marker, file = parcel_file(name, folder), Path(folder) / f"{name}.npz"
    away, described = file.with_suffix(".npz.away"), marker.read_bytes() if marker.exists() else None
    if described is not None and file.exists():
        file.replace(away)
    try:
        yield
        away.unlink(missing_ok=True)
    except BaseException:
        if away.exists() and described is not None:
            write_atomically(marker, described)
            away.replace(file)
        raise


def _images(name: str, arrays: Mapping[str, np.ndarray], described: Mapping[str, Any], source: Path) -> Images:
    facts, y_train, y_test = SETS[name], arrays["y_train"], arrays["y_test"]
    kept = np.unpackbits(arrays["kept"], count=len(y_train)).astype(bool)
    x_train = np.zeros((facts.train, facts.side, facts.side, facts.channels), np.uint8)
    x_test = np.empty((facts.test, facts.side, facts.side, facts.channels), np.uint8)
    try:
        for label in range(facts.classes):
            for x, where, split in ((x_train, kept & (y_train == label), "train"), (x_test, y_test == label, "test")):
                x[where] = _tiles(arrays[f"{split}_{label}"], int(where.sum()), facts.side, facts.channels)
    except (KeyError, OSError, ValueError) as error:
        raise UserError(f"{source} is damaged ({' '.join(str(error).split())}); pack the data again.") from None
    train, test = archive_order(name)
    digests = described["digest_train"], described["digest_test"]
    return Images(x_train, y_train, x_test, y_test, tuple(map(str, arrays["classes"])), train, digests, test, kept)


def needs_of(described: Mapping[str, Any]) -> list[tuple[Need, str]]:
    """What a parcel serves, and the digest of each."""
    return [(Need(build(s["column"], Column, "column"), s["held_out"]), s["digest"]) for s in described["serves"]]


def served_columns(name: str, folder: Path) -> set[Column] | None:
    """The columns, without their backbones, of which `<name>.npz` holds the images, or None where it holds all."""
    path = parcel_file(name, folder)
    if not path.exists():
        return None
    return {replace(need.column, backbone="") for need, _ in needs_of(json.loads(path.read_text()))}


def _is_whole(file: Path) -> bool:
    """Whether an .npz has all images of its set."""
    try:
        with zipfile.ZipFile(file) as archive:
            return "kept.npy" not in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


@contextmanager
def instead_of_parcel(name: str, folder: Path) -> Iterator[None]:
    """Put what an earlier parcel left of a set away while the whole set is prepared, and back where that fails."""
    marker, file = parcel_file(name, folder), Path(folder) / f"{name}.npz"
    if not marker.exists():
        yield
        return
    if file.exists() and _is_whole(file):  # a kill came when the set was whole and the marker was to go
        marker.unlink()
        yield
        return
    away = file.with_suffix(".npz.away")
    if file.exists():
        file.replace(away)
    try:
        yield
        marker.unlink()
        away.unlink(missing_ok=True)
    except BaseException:
        if away.exists():
            away.replace(file)
        raise
