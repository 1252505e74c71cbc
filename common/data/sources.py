"""Make `<folder>/<name>.npz` from whatever copy of a dataset a machine has, or from the internet. No torch at import.

`prepare` looks for a source, `read_source` finds out its form, `check` compares it with SETS, and the result is written
in canonical order. Nothing is taken on trust: the digest tells a genuine copy whatever it was unpacked from.
"""

import gzip
import io
import os
import pickle
import socket
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from common.data import tiny
from common.data.pixels import eight_bit
from common.data.sets import SETS, Images, Raw, archive_order, canonical_order, content_digest, find_set, load, read_arrays
from common.errors import UserError
from common.store import write_atomically

VARIABLE = "LONGTAIL_DATA"
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer; a firewall that drops packets would otherwise hang for ever


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
DOWNLOADS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST"}


def prepare(name: str, folder: Path, source: Path | None = None) -> Path:
    """Make `<folder>/<name>.npz`, checked and in canonical order, and print where it came from; return its path.

    Order of sources: `source`, the environment's LONGTAIL_DATA, the official download; digits are scikit-learn's.
    Does nothing where the file is there already. A source that is missing, truncated or not the genuine dataset is a
    UserError, and leaves what was there before.
    """
    find_set(name)
    path = Path(folder) / f"{name}.npz"
    if source and not Path(source).exists():
        raise UserError(f"{source} does not exist; give {forms(name)}.")
    present = _present(name, path)
    if present:
        print(f"{summarise(name, present)}, already in {path}.")
        return path
    raw = _obtain(name, path.parent, source)
    digests = check(name, raw)
    images = to_canonical(name, raw, digests)
    save(path, images)
    print(f"{summarise(name, images)}, from {raw.origin}, now in {path}.")
    if raw.official and images.archive_order is not None and (difference := compare_order(raw, images)):
        print(difference)
    return path


def _present(name: str, path: Path) -> Images | None:
    """What `path` holds, or None where it is missing or has to be made anew."""
    if not path.exists():
        return None
    try:
        return load(name, path.parent)
    except UserError as error:
        print(f"{error} Making it now.")
        return None


def _obtain(name: str, folder: Path, source: Path | None) -> Raw:
    if name == "digits":
        return read_digits()
    if source is not None:
        return read_source(name, Path(source))
    if given := os.environ.get(VARIABLE):
        return read_source(name, Path(given).expanduser())
    return download(name, folder)


def summarise(name: str, images: Images) -> str:
    """One line: counts and digest, and the order of the official archive where it is known."""
    known = SETS[name]
    order = ", archive order known" if images.archive_order is not None else ""
    digest = f"digest {known.digest}" if known.digest_train else (
        "digest of train {:.16} and of test {:.16} (none of the genuine pixels is known to compare with)".format(*images.digests))
    return (f"{name}: {len(images.x_train):,} train and {len(images.x_test):,} test images of {len(images.classes)} classes, "
            f"{digest}{order}")


def forms(name: str) -> str:
    """The accepted forms of a source, for error messages."""
    if name == tiny.NAME:
        return f"{name}.npz, the official {tiny.ZIP}, or its folder with wnids.txt, words.txt, train/ and val/"
    official = f"the official {ARCHIVES[name].tar} or its folder" if name in ARCHIVES else "the four official idx files"
    return f"{name}.npz, {official}, or PNGs in train/<class>/ and test/<class>/"


def read_source(name: str, source: Path) -> Raw:
    """Read a file or a folder in any accepted form; else a UserError that lists the forms."""
    if not source.exists():  # LONGTAIL_DATA may name it too
        raise UserError(f"{source} does not exist; give {forms(name)}.")
    for reader, path in _candidates(name, source):
        return reader(name, path)
    raise UserError(f"{source} holds no {name}; it may be, or hold, {forms(name)}.")


def _candidates(name: str, source: Path) -> Iterator[tuple[Callable[[str, Path], Raw], Path]]:
    """The readers that fit what is at `source`, best first. A folder may hold several datasets, each in its own folder."""
    archive = ARCHIVES.get(name)
    if source.is_file():
        if source.suffix == ".npz":
            yield read_npz, source
        elif name == tiny.NAME and source.suffix == ".zip":
            yield tiny.read_tiny, source
        elif archive and {".tar", ".tgz"} & set(source.suffixes):
            yield read_archive, source
        elif name == "mnist" and "idx" in source.name:
            yield read_idx_files, source.parent
        return
    for folder in (source, source / name):
        if (folder / f"{name}.npz").is_file():
            yield read_npz, folder / f"{name}.npz"
        if archive:
            places = (folder / archive.tar, folder / archive.folder, folder)
            yield from ((read_archive, p) for p in places if p.is_file() or any((p / f).is_file() for f in archive.train))
        if name == "mnist":
            places = (folder, folder / "MNIST" / "raw", folder / "raw")
            yield from ((read_idx_files, p) for p in places if any(_idx_path(p, f).is_file() for f in IDX.values()))
        if name == tiny.NAME:
            yield from ((tiny.read_tiny, p) for p in tiny.places(folder))
        elif (folder / "train").is_dir():
            yield read_class_folders, folder


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn every way in which a file can be truncated or unreadable into one UserError."""
    try:
        yield
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"{path} is truncated or unreadable ({_reason(error)}); take another copy.") from None


def _reason(error: Exception) -> str:
    """The first line of an error's message (tarfile and Pillow add more), or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(":. ")


def read_npz(name: str, path: Path) -> Raw:
    """An .npz with x_train, y_train, x_test, y_test and classes; images of one channel may lack the last axis."""
    arrays = read_arrays(path, "take another copy")
    if missing := [k for k in ("x_train", "y_train", "x_test", "y_test", "classes") if k not in arrays]:
        raise UserError(f"{path} has no array {missing[0]!r}; expected x_train, y_train, x_test, y_test and classes.")
    images = [x[..., None] if SETS[name].channels == 1 and x.ndim == 3 else x for x in (arrays["x_train"], arrays["x_test"])]
    classes = tuple(map(str, arrays["classes"]))
    return Raw(images[0], arrays["y_train"], images[1], arrays["y_test"], classes, str(path))


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
    found = {}
    with tarfile.open(path) as tar:
        for member in tar:
            place = PurePosixPath(member.name)
            if member.isfile() and place.parent.name == folder and place.name in wanted:
                found[place.name] = tar.extractfile(member).read()
    return found


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
        raise UserError(f"{where} is not a file of the official archive ({_reason(error)}); take another copy.") from None
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


def _idx_path(folder: Path, stem: str) -> Path:
    """The file as it is, with .gz, or with the dot that some unpackers put before "idx"."""
    names = [n + end for n in (stem, stem.replace("-idx", ".idx")) for end in ("", ".gz")]
    return next((folder / n for n in names if (folder / n).is_file()), folder / stem)


def read_idx_files(name: str, folder: Path) -> Raw:
    """The four official files of MNIST in one folder, packed (.gz) or not."""
    arrays = {key: _read_idx(_idx_path(folder, stem)) for key, stem in IDX.items()}
    images = {key: value[..., None] if key[0] == "x" else value for key, value in arrays.items()}
    classes = tuple(map(str, range(SETS[name].classes)))
    return Raw(**images, classes=classes, origin=str(folder), official=True)


def _read_idx(path: Path) -> np.ndarray:
    """One idx file: two zero bytes, type 8 (uint8), number of axes, big-endian lengths, then the bytes."""
    if not path.is_file():
        raise UserError(f"{path} is not here; expected the four official idx files of MNIST side by side, .gz or not.")
    with _readable(path):
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    axes = content[3] if len(content) > 3 else 0
    if content[:3] != b"\0\0\x08" or not 1 <= axes <= 3 or len(content) < 4 + 4 * axes:
        raise UserError(f"{path} is not an idx file of bytes; take another copy.")
    shape = struct.unpack_from(f">{axes}I", content, 4)
    expected, found = int(np.prod(shape)), len(content) - 4 - 4 * axes
    if found != expected:
        raise UserError(f"{path} is truncated: it has {found:,} bytes of data, expected {expected:,}; take another copy.")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def read_class_folders(name: str, folder: Path) -> Raw:
    """train/<class>/*.png and test/<class>/*.png; the classes are numbered in alphabetical order."""
    splits = {s: {p.name for p in (folder / s).glob("[!.]*") if p.is_dir()} for s in ("train", "test")}
    classes = sorted(splits["train"] | splits["test"])
    for split, names in splits.items():
        if missing := [c for c in classes if c not in names]:
            raise UserError(f"{folder / split} has no folder for {missing[0]!r}; expected {SETS[name].classes} classes.")
    if len(classes) != SETS[name].classes:
        raise UserError(f"{folder / 'train'} has {len(classes)} class folders; {name} has {SETS[name].classes} classes.")
    arrays = [a for split in splits for a in _read_pngs(name, folder / split, classes)]
    return Raw(*arrays, classes=tuple(classes), origin=str(folder))


def _read_pngs(name: str, folder: Path, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    paths = [(path, label) for label, c in enumerate(classes) for path in sorted((folder / c).glob("*.png"))]
    shape = (SETS[name].side, SETS[name].side, SETS[name].channels)
    images = [_read_png(path, shape) for path, _ in paths]
    return np.array(images, np.uint8).reshape(-1, *shape), np.array([label for _, label in paths], np.uint8)


def _read_png(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = eight_bit(image, "RGB" if shape[2] == 3 else "L")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow reports a broken PNG as a SyntaxError
        raise UserError(f"{path} is damaged ({_reason(error)}); take another copy.") from None
    if pixels.shape[:2] != shape[:2]:
        raise UserError(f"{path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, expected {shape[1]} x {shape[0]}.")
    return pixels.reshape(shape)


def read_digits(test_images: int = 36) -> Raw:
    """scikit-learn's handwritten digits; in canonical order, the first `test_images` of every class are the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images * 15).astype(np.uint8)[..., None]  # 0..16 become 0..240, exactly
    labels = bunch.target.astype(np.uint8)
    order = canonical_order(images, labels)
    images, labels = images[order], labels[order]
    test = np.arange(len(labels)) - np.searchsorted(labels, labels) < test_images  # rank within the class
    names = tuple(map(str, bunch.target_names))
    return Raw(images[~test], labels[~test], images[test], labels[test], names, "scikit-learn")


def download(name: str, folder: Path) -> Raw:
    """The official archive, through torchvision into a temporary folder; every failure is one UserError with the way out."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        import torchvision.datasets

        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-download-") as temporary:
            if name == tiny.NAME:
                torchvision.datasets.utils.download_url(tiny.URL, temporary, md5=tiny.MD5)
            else:
                getattr(torchvision.datasets, DOWNLOADS[name])(temporary, download=True)
            return read_source(name, Path(temporary))._replace(origin="torchvision's download")
    except (OSError, EOFError, RuntimeError, ImportError, tarfile.TarError) as error:
        raise UserError(f"{name} could not be downloaded ({_reason(error)}); "
                        f"give --from or set {VARIABLE} to a copy: {forms(name)}.") from None
    finally:
        socket.setdefaulttimeout(timeout)


def check(name: str, raw: Raw) -> tuple[str, ...]:
    """Compare both splits with SETS: shape, classes, count and, where it is known, digest. The first difference is a
    UserError. Returns the digests found, of train and test."""
    known, digests = SETS[name], []
    image = (known.side, known.side, known.channels)
    if len(raw.classes) != known.classes:
        raise UserError(f"{raw.origin} names {len(raw.classes)} classes; {name} has {known.classes}.")
    for split, x, y, count, digest in (
        ("train", raw.x_train, raw.y_train, known.train, known.digest_train),
        ("test", raw.x_test, raw.y_test, known.test, known.digest_test),
    ):
        if x.shape[1:] != image or x.dtype != np.uint8 or y.shape != x.shape[:1] or y.dtype.kind not in "iu":
            raise UserError(f"{raw.origin}: the {split} images of {name} are {x.dtype} {x.shape} with {y.dtype} labels "
                            f"{y.shape}, expected uint8 {(count, *image)} and as many whole numbers.")
        found = set(np.unique(y).tolist())
        if missing := sorted(set(range(known.classes)) - found):
            raise UserError(f"{raw.origin} has no {split} image of {len(missing)} of the {known.classes} classes of {name}, "
                            f"the first is {raw.classes[missing[0]]!r}; take a whole copy.")
        if len(x) != count:
            raise UserError(f"{raw.origin} has {len(x):,} {split} images of {name}, expected {count:,}; take a whole copy.")
        if strange := sorted(found - set(range(known.classes))):
            raise UserError(f"{raw.origin}: {split} label {strange[0]} of {name} is not one of 0 to {known.classes - 1}.")
        digests.append(content_digest(x, y))
        if digest and digests[-1] != digest:
            raise UserError(f"{raw.origin}: the {split} split of {name} has digest {digests[-1][:16]}, expected {digest[:16]}: "
                            "some labels or pixels are not those of the genuine dataset; take another copy.")
    return tuple(digests)


def to_canonical(name: str, raw: Raw, digests: tuple[str, ...]) -> Images:
    """Both splits in canonical order, with the known order of the archive. What is in order already is not copied."""
    train, test = canonical_order(raw.x_train, raw.y_train), canonical_order(raw.x_test, raw.y_test)
    x_train, x_test = (x if (np.diff(order) == 1).all() else x[order] for x, order in ((raw.x_train, train), (raw.x_test, test)))
    in_train, in_test = archive_order(name)
    return Images(x_train, raw.y_train[train].astype(np.uint8), x_test, raw.y_test[test].astype(np.uint8), raw.classes,
                  in_train, digests, in_test)


def compare_order(raw: Raw, images: Images) -> str | None:
    """What differs between the order of `raw`, which claims to be the official archive, and the known one: a sentence, or None.

    images: the same in canonical order, with the order of the archive. Equal images are not told apart.
    """
    for split, x, y, ours, labels, order in (
        ("train", raw.x_train, raw.y_train, images.x_train, images.y_train, images.archive_order),
        ("test", raw.x_test, raw.y_test, images.x_test, images.y_test, images.archive_order_test),
    ):
        at = np.argsort(order)
        other = (x != ours[at]).any((1, 2, 3)) | (y != labels[at])
        if other.any():
            return (f"The images of {raw.origin} are genuine, but {other.sum():,} of its {len(x):,} {split} images, the first "
                    f"at position {np.argmax(other):,}, stand elsewhere in the official archive: the known order is used, not "
                    "this one.")
    return None


def save(path: Path, images: Images) -> None:
    """Write checked images, with their digests, which `load` compares; the whole file or nothing."""
    arrays = {key: getattr(images, key) for key in ("x_train", "y_train", "x_test", "y_test")}
    arrays |= {"classes": np.array(images.classes)}
    arrays |= {f"digest_{s}": np.array(digest) for s, digest in zip(("train", "test"), images.digests, strict=True)}
    write_atomically(path, lambda file: np.savez(file, **arrays))
