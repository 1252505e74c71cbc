"""The small datasets: what is known of each, the order of its images, and loading what `prepare` made. No torch.

`SETS` is the one place for counts, digests and normalisation; `load` reads `<folder>/<name>.npz` in a second or two.
"""

import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.checkout import ROOT
from common.data.large_sets import LARGE
from common.errors import UserError


@dataclass(frozen=True)
class ImageSet:
    """A dataset of square uint8 images.

    train, test: images in the split. digest_train, digest_test: `content_digest` of the split; both empty where nobody
    states that of the genuine pixels, and then the rest has to do.
    pixels_train, pixels_test: `content_digest` of the split with all labels 0, which tells wrong labels from wrong pixels.
    order_digest: `order_digest` of the order of the official archive, which data/lists/ holds; empty where it is not known.
    mean, std: per channel, as fractions of 255. pad: pixels of padding before a random crop. flip: mirror at random.
    """

    name: str
    side: int
    channels: int
    classes: int
    train: int
    test: int
    digest_train: str
    digest_test: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool
    order_digest: str = ""
    pixels_train: str = ""
    pixels_test: str = ""

    @property
    def digest(self) -> str:
        """Identity of both splits, 16 hexadecimal digits: what the key of a run holds. Without digests, that of the name."""
        identity = f"{self.digest_train}:{self.digest_test}" if self.digest_train else self.name
        return hashlib.sha256(identity.encode()).hexdigest()[:16]


LISTS = ROOT / "data" / "lists"  # in git: orders of archives and index lists

# The released codes normalise both CIFAR sets with these numbers, CIFAR-100 too.
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)

SETS: dict[str, ImageSet] = {s.name: s for s in (
    ImageSet(
        "cifar10", side=32, channels=3, classes=10, train=50_000, test=10_000,
        digest_train="d59acf989e068e709ce686cda292672c7b212c08d29d3d3e6d8c3aa99eba6a85",
        digest_test="899683d46c3a8c66fd56e1af12202e69fe5a4517be10b0f68e04c78fe585c57c",
        mean=CIFAR_MEAN, std=CIFAR_STD, pad=4, flip=True,
        order_digest="8bc677d155b688d08093ef524170d9ca3374e0ccd6f0d21bdd9ecae92cd44f35",
        pixels_train="96f32ee757fbbdcb14b0419003a52c66b2d182b0cdd96d92cc3ebad737413168",
        pixels_test="321c9f0208f7727555ff1e9971cebb6370881478606d898b9890f9f555ae0792",
    ),
    ImageSet(
        "cifar100", side=32, channels=3, classes=100, train=50_000, test=10_000,
        digest_train="36ce7a701fbea47796e570c34382aad50f2539687cfcbc6ae96e2f56530d29b6",
        digest_test="d3cd5d87a1b9317a0982c8ef5535fe3b86da8da90b13ce5e9b23ea06400dd5eb",
        mean=CIFAR_MEAN, std=CIFAR_STD, pad=4, flip=True,
        order_digest="872a33a2450110d3a6af8d6fd8742c2959071c92e25ca0f0672b1ba6c8ddf5bb",
        pixels_train="7649de8eec2c978d8af083a71ab238703fdda29d03defaf97700e38179835a1f",
        pixels_test="f049a9d4a8688485d5399ca2838c200a83dfd7847ee19ea79d5b6a5d89d0e15b",
    ),
    ImageSet(
        "mnist", side=28, channels=1, classes=10, train=60_000, test=10_000,
        digest_train="3655811c0e1223700a4714a92a51f55bd215ed7dc1fa2baa4326a2b58042d82d",
        digest_test="634538fb34c5277fce98470b8b285d1e8419eb87f328da42ef1faf690d2c3911",
        mean=(0.1307,), std=(0.3081,), pad=0, flip=False,
        pixels_train="4be0324620af9bcf69fd7c96592d735a93b0f5f648f3486aee3b727d1a560713",
        pixels_test="d4811703dcbb1639d98d61c2800de4667bafda4923f060f54aab6bdacd244f43",
    ),
    # scikit-learn's handwritten digits: the first 36 images of a class in canonical order are its test split.
    ImageSet(
        "digits", side=8, channels=1, classes=10, train=1_437, test=360,
        digest_train="1764531ee8426f6bbf14c0367f09eb4bcbb35fccff01a6cb07072414485f30fe",
        digest_test="5d10018fc83f0ed39c791933dbdf031a8a135d678569664cf27044ea951d3407",
        mean=(0.2872,), std=(0.3539,), pad=1, flip=False,
    ),
    # The test split is the official validation split. JPEG: decoders may differ in the last bit, so there is no digest.
    ImageSet(
        "tiny-imagenet", side=64, channels=3, classes=200, train=100_000, test=10_000, digest_train="", digest_test="",
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), pad=8, flip=True,
    ),
)}


@dataclass(frozen=True)
class Images:
    """A loaded dataset in canonical order: images uint8 [count, side, side, channels], labels uint8 [count].

    classes: the name of every label. archive_order, archive_order_test: position of each train and each test image in the
    official archive, int64 [count], or None where it is not known. digests: `content_digest` of train and test, or nothing if
    these were not computed. kept: which training images a parcel brought (bool [count]), or None where all are here.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[str, ...]
    archive_order: np.ndarray | None = None
    digests: tuple[str, ...] = ()
    archive_order_test: np.ndarray | None = None
    kept: np.ndarray | None = None


class Raw(NamedTuple):
    """A dataset as its source has it: images uint8 NHWC and labels, in the source's own order.

    origin: what the images were read from. official: whether that is an official archive, so that the order should be its own.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[str, ...]
    origin: str
    official: bool = False


def find_set(name: str) -> ImageSet:
    """The entry of SETS; an unknown name is a UserError that lists the known ones."""
    if name not in SETS:
        raise UserError(f"Unknown dataset {name!r}; known: {', '.join((*SETS, *LARGE))}.")
    return SETS[name]


def content_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 over the sorted SHA-256 of every (label byte + pixel bytes): the same for any order of the images."""
    each = sorted(hashlib.sha256(bytes([int(y)]) + x.tobytes()).digest() for x, y in zip(images, labels, strict=True))
    return hashlib.sha256(b"".join(each)).hexdigest()


def canonical_order(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Indices [count] that sort by label, then by the SHA-256 of the pixels; identical images keep their order."""
    keys = [(int(y), hashlib.sha256(x.tobytes()).digest()) for x, y in zip(images, labels, strict=True)]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def order_digest(train: np.ndarray, test: np.ndarray) -> str:
    """SHA-256 of the archive positions of the train images, then of the test images, as little-endian uint16."""
    return hashlib.sha256(np.concatenate([train, test]).astype("<u2").tobytes()).hexdigest()


def archive_order(name: str) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Position in the official archive of every train and every test image in canonical order, int64 [count].

    It is read from `<LISTS>/<name>-archive-order.npz`, so it holds for any genuine copy, whatever its order. None where it is
    not known. A file that is missing, or is not the one whose digest SETS holds, is a UserError.
    """
    if not SETS[name].order_digest:
        return None, None
    path, remedy = LISTS / f"{name}-archive-order.npz", "restore it from git"
    if not path.is_file():
        raise UserError(f"{path} is not here; {remedy}.")
    arrays = read_arrays(path, remedy)
    train, test = (arrays.get(split, np.empty(0)) for split in ("train", "test"))
    if order_digest(train, test) != SETS[name].order_digest:
        raise UserError(f"{path} does not hold the order of the official archive of {name}; {remedy}.")
    return train.astype(np.int64), test.astype(np.int64)


def prepare_hint(name: str) -> str:
    """The commands that make `<name>.npz`, for error messages."""
    if name == "digits":
        return "python -m papers prepare digits"
    return f"python -m papers prepare {name} --from FOLDER, or make data-{name} FROM=FOLDER"


def read_arrays(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """Every array of an .npz, each against its checksum. A truncated or damaged file is a UserError that ends in `remedy`."""
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("not a whole .npz")
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}); {remedy}.") from None


def load(name: str, folder: Path) -> Images:
    """Read `<folder>/<name>.npz` as `prepare` made it. A missing, damaged or foreign file is a UserError.

    The images are not hashed again: `prepare` did, and the file carries the digests and a checksum of every array. The order of
    the official archive is not in the file: it follows from the genuine images (`archive_order`).
    """
    path = Path(folder) / f"{name}.npz"
    find_set(name)
    if not path.is_file():
        raise UserError(f"{path} is not here; make it with: {prepare_hint(name)}.")
    arrays = read_arrays(path, f"delete it and make it anew: {prepare_hint(name)}")
    if problem := _problem(name, arrays):
        raise UserError(f"{path} is not what prepare makes: {problem}; make it anew: {prepare_hint(name)}.")
    train, test = archive_order(name)
    return Images(
        *(arrays[key] for key in ("x_train", "y_train", "x_test", "y_test")),
        classes=tuple(map(str, arrays["classes"])),
        archive_order=train,
        digests=(str(arrays["digest_train"]), str(arrays["digest_test"])),
        archive_order_test=test,
        kept=arrays.get("kept"),
    )


def _problem(name: str, arrays: dict[str, np.ndarray]) -> str | None:
    """What differs between the arrays of a file and the entry in SETS, or None."""
    known = SETS[name]
    image = (known.side, known.side, known.channels)
    expected = {
        "x_train": (known.train, *image), "y_train": (known.train,), "x_test": (known.test, *image), "y_test": (known.test,),
    }
    for split, digest in (("train", known.digest_train), ("test", known.digest_test)):
        stored = str(arrays.get(f"digest_{split}", "none"))
        if stored != (digest or stored) or stored == "none":
            return f"the digest of its {split} split is {stored[:16]}, expected {digest[:16] or 'one'}"
    for key, shape in expected.items():
        array = arrays.get(key)
        if array is None or array.shape != shape or array.dtype != np.uint8:
            form = "missing" if array is None else f"{array.dtype} {array.shape}"
            return f"{key} is {form}, expected uint8 {shape}"
    if len(arrays.get("classes", ())) != known.classes:
        return f"it names {len(arrays.get('classes', ()))} classes, expected {known.classes}"
    return None
