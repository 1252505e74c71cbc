"""Make `<folder>/<name>.npz` from whatever copy of a dataset a machine has, or from the internet. No torch at import.

`prepare` looks for a source, `read_source` finds out its form, `check` compares it with SETS, and the result is written
in canonical order. Nothing is taken on trust: the digest tells a genuine copy whatever it was unpacked from.
"""

import os
import socket
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from common.data import tiny
from common.data.files import GZIP, UNREADABLE, all_numbers, first_whole, is_visible, reason, subfolders
from common.data.forms import ARCHIVES, IDX, idx_paths, read_archive, read_class_folders, read_idx_files, read_npz
from common.data.sets import SETS, Images, Raw, archive_order, canonical_order, content_digest, find_set, load
from common.errors import UserError
from common.store import write_atomically

VARIABLE = "LONGTAIL_DATA"
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer; a firewall that drops packets would otherwise hang for ever
Checked = tuple[Raw, tuple[str, ...]]  # what was read, and the digests of train and test
TAR = (".tar", ".tgz", ".tar.gz")
DEPTH = 3  # of folders that hold nothing but one more folder
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
    raw, digests = _obtain(name, path.parent, source)
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


def _obtain(name: str, folder: Path, source: Path | None) -> Checked:
    if name == "digits":
        return checked(name, read_digits())
    if source is not None:
        return read_source(name, Path(source))
    if given := os.environ.get(VARIABLE):
        return read_source(name, Path(given).expanduser())
    return checked(name, download(name, folder))


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


def read_source(name: str, source: Path) -> Checked:
    """Read and check a file or a folder in any accepted form; of several forms in a folder, the first that is whole and
    genuine, with a line on those before it. Else a UserError, which lists the forms where there is none."""
    if not source.exists():  # LONGTAIL_DATA may name it too
        raise UserError(f"{source} does not exist; give {forms(name)}.")
    copy = first_whole(partial(_read_checked, name, reader, path) for reader, path in _candidates(name, source))
    if copy is None:
        raise UserError(f"{source} holds no {name}; it may be, or hold, {forms(name)}.")
    return copy


def _read_checked(name: str, reader: Callable[[str, Path], Raw], path: Path) -> Checked:
    return checked(name, reader(name, path))


def checked(name: str, raw: Raw) -> Checked:
    """`raw` with its digests, as `check` finds them."""
    return raw, check(name, raw)


Candidate = tuple[Callable[[str, Path], Raw], Path]


def _candidates(name: str, source: Path) -> Iterator[Candidate]:
    """The readers that fit what is at `source`, best first. A folder may hold several datasets, each in its own folder, or
    nothing but one more folder."""
    if source.is_file():
        yield from _of_file(name, source)
        return
    for folder in (source, source / name):
        if folder.is_dir():
            candidates = list(_in_folder(name, folder))
            for _ in range(DEPTH):
                inner = [] if candidates else subfolders(folder)
                if len(inner) != 1:
                    break
                folder /= inner[0]
                candidates = list(_in_folder(name, folder))
            yield from candidates


def _of_file(name: str, path: Path) -> Iterator[Candidate]:
    """The reader of a file: its first bytes decide, and its name where they are damaged."""
    kind, low = _first_bytes(path), path.name.lower()
    if name == tiny.NAME and (kind == "zip" or (not kind and low.endswith(".zip"))):
        yield tiny.read_tiny, path
    elif kind == "npz" or (not kind and low.endswith(".npz")):
        yield read_npz, path
    elif name in ARCHIVES and (kind == "tar" or (kind != "idx" and low.endswith(TAR))):
        yield read_archive, path
    elif name == "mnist" and (kind == "idx" or "idx" in low):
        yield read_idx_files, path.parent


def _first_bytes(path: Path) -> str:
    """"npz", "zip", "tar" or "idx" as the content says, or "" where it says none of these."""
    with suppress(OSError, zipfile.BadZipFile):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return "npz" if any(n.endswith(".npy") for n in archive.namelist()) else "zip"
    with suppress(*UNREADABLE, tarfile.TarError):
        if tarfile.is_tarfile(path):
            return "tar"
    with suppress(*UNREADABLE), open(path, "rb") as file:
        content = file.read(1 << 16)
        start = zlib.decompressobj(31).decompress(content, 4) if content[:2] == GZIP else content
        return "idx" if start[:3] == b"\0\0\x08" else ""
    return ""


def _in_folder(name: str, folder: Path) -> Iterator[Candidate]:
    files = sorted(entry.name for entry in os.scandir(folder) if is_visible(entry.name) and entry.is_file())
    yield from ((read_npz, folder / f) for f in files if f.lower() == f"{name}.npz")
    if archive := ARCHIVES.get(name):
        stem = archive.tar.removesuffix(".tar.gz")  # a browser unpacks the .gz, or adds " (1)"
        yield from ((read_archive, folder / f) for f in files if f.lower().startswith(stem) and f.lower().endswith(TAR))
        yield from ((read_archive, p) for p in (folder / archive.folder, folder)
                    if any((p / f).is_file() for f in archive.train))
    if name == "mnist":
        yield from ((read_idx_files, p) for p in (folder, folder / "MNIST" / "raw", folder / "raw")
                    if any(idx_paths(p, stem) for stem in IDX.values()))
    if name == tiny.NAME:
        yield from ((tiny.read_tiny, p) for p in tiny.places(folder))
    elif (folder / "train").is_dir():
        yield read_class_folders, folder


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
            return read_source(name, Path(temporary))[0]._replace(origin="torchvision's download")
    except (OSError, EOFError, RuntimeError, ImportError, tarfile.TarError) as error:
        raise UserError(f"{name} could not be downloaded ({reason(error)}); "
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
        labels = set(np.unique(y).tolist())
        if missing := sorted(set(range(known.classes)) - labels):
            raise UserError(f"{raw.origin} has no {split} image of {len(missing)} of the {known.classes} classes of {name}, "
                            f"the first is {raw.classes[missing[0]]!r}; take a whole copy.")
        if len(x) != count:
            raise UserError(f"{raw.origin} has {len(x):,} {split} images of {name}, expected {count:,}; take a whole copy.")
        if strange := sorted(labels - set(range(known.classes))):
            raise UserError(f"{raw.origin}: {split} label {strange[0]} of {name} is not one of 0 to {known.classes - 1}.")
        digests.append(content_digest(x, y))
        if digest and digests[-1] != digest:
            raise UserError(f"{raw.origin}: the {split} split of {name} has digest {digests[-1][:16]}, expected {digest[:16]}: "
                            f"{_difference(name, raw.classes, split, x)}.")
    return tuple(digests)


def _difference(name: str, classes: tuple[str, ...], split: str, x: np.ndarray) -> str:
    """Why a split has another digest than the genuine one: its pixels, or only its labels."""
    if content_digest(x, np.zeros(len(x), np.uint8)) != getattr(SETS[name], f"pixels_{split}"):
        return "some labels or pixels are not those of the genuine dataset; take another copy"
    rule = "value" if all_numbers(classes) else "the alphabet"
    return (f"its images are those of the genuine dataset, their labels are not: here class 0 is {classes[0]!r} and class 1 "
            f"{classes[1]!r}; if these come from folders, whose names are ordered by {rule}, give them the official names "
            "or numbers, else take another copy")


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
