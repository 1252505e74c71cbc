"""What others have published about a test set: near-duplicates in training, votes of people, further images.

Public lists speak of positions in the official archive; here they are put into canonical order (`common.data.sets`), so they
hold for any genuine copy. Nothing of them is in this repository: `prepare second-tests --from FOLDER` reads a folder of the
user's and writes `second-tests-<dataset>.npz`, and a `second-test-<name>.npz` for every further set of images. No torch.

A list of near-duplicates has one partner for each test image, the nearest training image. Where a subset lacks that one, a test
image counts as clean, though the subset may keep another that is like it: a clean test may still hold a few duplicates.
"""

import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.data.sets import SETS, archive_order, canonical_order, content_digest, read_arrays
from common.errors import UserError
from common.store import write_atomically

AGREE = 0.95  # share of the people whose vote is the same, from which on an image is clear
HEADER = ["TestID", "TrainID", "Distance", "Judgment"]
JUDGMENTS = ("exact", "near", "very similar")  # 0, 1, 2; the authors of the lists call all three duplicates
CIFAIR = "github.com/cvjena/cifair, folder meta (Barz and Denzler, Do we train on test data?, Journal of Imaging 6, 2020)"
REMEDY = "make it anew: python -m papers prepare second-tests --from FOLDER"


@dataclass(frozen=True)
class PublicList:
    """A list that others publish. part: which array of the prepared file it becomes. digest: SHA-256 of its content, whatever the
    order of its rows and the spelling of its numbers (`rows_digest`)."""

    file: str
    dataset: str
    part: str
    what: str
    source: str
    licence: str
    digest: str


LISTS = (
    PublicList("duplicates_cifar10.csv", "cifar10", "duplicates", "test images with a near-duplicate in training", CIFAIR,
               "none stated", "4d51fad905937b76a07088c28106e90be1a0d29638cdb58a87b3140b2b81c9d4"),
    PublicList("duplicates_cifar10_test.csv", "cifar10", "within", "pairs of near-duplicates within the test set", CIFAIR,
               "none stated", "003242b1b28ac4cc68ce9fad17ba943b4744b27f5db00e3f300ac4b81a34a68f"),
    PublicList("duplicates_cifar100.csv", "cifar100", "duplicates", "test images with a near-duplicate in training", CIFAIR,
               "none stated", "4e4a4962e6373136b4619d5be4c0e848dbaccd9403edc558991b3cda3c56a61b"),
    PublicList("duplicates_cifar100_test.csv", "cifar100", "within", "pairs of near-duplicates within the test set", CIFAIR,
               "none stated", "8e1c5e9d1023d839a38cfdf6d58aa6f97f6b25ca4896520da8d41b2785a5a6b5"),
    PublicList("cifar10h-counts.npy", "cifar10", "votes", "about 51 votes of people on every test image",
               "github.com/jcpeterson/cifar-10h (Peterson et al., Human uncertainty makes classification more robust, ICCV 2019)",
               "CC BY-NC-SA 4.0", "e3a314fdecb1f8aeb680f50fde8682d83065d5191d8fc76f0bdc86333bd7fefe"),
)


class SecondTests(NamedTuple):
    """What is known of a test set, in canonical order. duplicates: int64 [pairs, 3], test image, training image and judgment;
    within: the same with two test images. votes: int64 [test images, classes]. A list that is not here is None."""

    duplicates: np.ndarray | None = None
    within: np.ndarray | None = None
    votes: np.ndarray | None = None


class FurtherImages(NamedTuple):
    """A further test set in canonical order: images uint8 NHWC, labels uint8, and the `content_digest` of both."""

    name: str
    dataset: str
    images: np.ndarray
    labels: np.ndarray
    digest: str

    @property
    def title(self) -> str:
        """Name and the beginning of the digest: what its predictions are kept under."""
        return f"{self.name}-{self.digest[:8]}"


# ---------------------------------------------------------------- reading what others publish


def rows_digest(rows: np.ndarray) -> str:
    """SHA-256 of integers [rows, columns] as little-endian int64, in C order."""
    return hashlib.sha256(np.ascontiguousarray(rows, dtype="<i8").tobytes()).hexdigest()


def read_pairs(path: Path, dataset: str, part: str) -> np.ndarray:
    """A list of near-duplicates: int64 [pairs, 3], positions in the archive and judgment, by test image."""
    try:
        table = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
        rows = np.array([[int(row[0]), int(row[1]), int(row[3])] for row in table[1:]], dtype=np.int64).reshape(-1, 3)
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{path} is not a list of near-duplicates ({error}); its columns are {', '.join(HEADER)}.") from None
    limits = SETS[dataset].test, SETS[dataset].test if part == "within" else SETS[dataset].train, len(JUDGMENTS)
    if table[0] != HEADER or not len(rows) or (rows < 0).any() or (rows >= limits).any():
        raise UserError(f"{path} is not a list of near-duplicates of {dataset}: its columns are {', '.join(HEADER)}, and its "
                        f"numbers below {limits[0]}, {limits[1]} and {limits[2]}.")
    return rows[np.lexsort(rows.T[::-1])]


def read_votes(path: Path, dataset: str, part: str) -> np.ndarray:
    """Votes by position in the archive: int64 [test images, classes]."""
    votes, shape = _read_npy(path), (SETS[dataset].test, SETS[dataset].classes)
    if votes.shape != shape or votes.dtype.kind not in "iu" or (votes < 0).any() or not votes.sum(1).all():
        raise UserError(f"{path} holds {votes.dtype} {votes.shape}; votes are whole numbers {shape}, some for every image.")
    return votes.astype(np.int64)


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not a NumPy array ({error}).") from None


def read_list(listed: PublicList, folder: Path) -> np.ndarray | None:
    """The content of a list in `folder`, by position in the archive; None where it is not there. One whose digest is another is a
    UserError: numbers on unlike lists cannot be compared."""
    path = folder / listed.file
    if not path.exists():
        return None
    rows = (read_votes if listed.part == "votes" else read_pairs)(path, listed.dataset, listed.part)
    if (digest := rows_digest(rows)) != listed.digest:
        raise UserError(f"{path} has the digest {digest[:16]}, that of {listed.source} is {listed.digest[:16]}: it is another "
                        "version or damaged; take the file from there.")
    return rows


def to_canonical(rows: np.ndarray, part: str, dataset: str) -> np.ndarray:
    """A list by position in the archive as one of images in canonical order."""
    at_train, at_test = (np.argsort(order) for order in archive_order(dataset))  # the image at each position
    if part == "votes":
        return rows[archive_order(dataset)[1]]
    partner = at_test if part == "within" else at_train
    pairs = np.stack([at_test[rows[:, 0]], partner[rows[:, 1]], rows[:, 2]], 1)
    return pairs[np.lexsort(pairs.T[::-1])]


# ---------------------------------------------------------------- further test sets


def read_further(data: Path, labels: Path) -> FurtherImages:
    """A further test set from the user's two .npy files: images uint8 [count, side, side, channels] and whole-number labels
    [count], in any order. Its name is the file's, and begins with the dataset whose networks it tests."""
    name = image_files_name(data)
    dataset = max((s for s in SETS if name.startswith(s)), key=len, default="")
    if not dataset or not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise UserError(f"{data}: a further test set is named after the dataset whose networks it tests, as in "
                        f"cifar10.1_v6_data.npy; its name begins with {', '.join(SETS)}.")
    images, truth, known = _read_npy(data), _read_npy(labels), SETS[dataset]
    shape = (known.side, known.side, known.channels)
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        raise UserError(f"{data} holds {images.dtype} {images.shape}; images of {dataset} are uint8 (count, {known.side}, "
                        f"{known.side}, {known.channels}).")
    if truth.shape != images.shape[:1] or truth.dtype.kind not in "iu" or not ((truth >= 0) & (truth < known.classes)).all():
        raise UserError(f"{labels} holds {truth.dtype} {truth.shape}; it has a whole number from 0 to {known.classes - 1} for "
                        f"each of the {len(images)} images.")
    truth = truth.astype(np.uint8)
    order = canonical_order(images, truth)
    return FurtherImages(name, dataset, images[order], truth[order], content_digest(images, truth))


def image_files_name(data: Path) -> str:
    """`cifar10.1_v6` of cifar10.1_v6_data.npy."""
    return re.sub(r"[_-]data\.npy$", "", data.name).lower()


def find_further(folder: Path) -> list[tuple[Path, Path]]:
    """The pairs `<name>_data.npy` and `<name>_labels.npy` (or with hyphens) in a folder; one alone is a UserError."""
    pairs = []
    for data in sorted(p for p in folder.iterdir() if re.search(r"[_-]data\.npy$", p.name)):
        labels = data.with_name(re.sub(r"data\.npy$", "labels.npy", data.name))
        if not labels.exists():
            raise UserError(f"{data} is here without {labels.name}, which has its labels.")
        pairs.append((data, labels))
    return pairs


# ---------------------------------------------------------------- what prepare makes, and its reading


def prepare_second_tests(source: Path | None, folder: Path, say: Callable[[str], None]) -> list[Path]:
    """Write what `source` holds into `folder`, a file a dataset (beside the lists that are in it already) and one a further test
    set, and say of each list its digest, source and licence. A folder that holds nothing of the kind is a UserError; nothing is
    written before all of it is read."""
    if source is None or not source.is_dir():
        raise UserError(f"prepare second-tests reads a folder of yours: --from FOLDER, which holds some of "
                        f"{', '.join(listed.file for listed in LISTS)}, or <name>_data.npy with <name>_labels.npy.")
    lists = {listed: rows for listed in LISTS if (rows := read_list(listed, source)) is not None}
    further = [read_further(*files) for files in find_further(source)]
    if not lists and not further:
        raise UserError(f"{source} holds none of {', '.join(listed.file for listed in LISTS)}, and no <name>_data.npy.")
    written = []
    for dataset in dict.fromkeys(listed.dataset for listed in lists):
        mine = {listed: rows for listed, rows in lists.items() if listed.dataset == dataset}
        here = {part: rows for part, rows in load_second_tests(dataset, folder)._asdict().items() if rows is not None}
        arrays = here | {listed.part: to_canonical(rows, listed.part, dataset) for listed, rows in mine.items()}
        written.append(_write(folder / f"second-tests-{dataset}.npz", arrays))
        for listed, rows in mine.items():
            say(f"{listed.file}: {listed.what}, {len(rows)} rows, digest {listed.digest[:16]}; {listed.source}; licence: "
                f"{listed.licence}.")
    for tests in further:
        written.append(_write(folder / f"second-test-{tests.name}.npz", {"x": tests.images, "y": tests.labels}))
        say(f"{tests.name}: {len(tests.images)} test images for networks of {tests.dataset}, digest {tests.digest[:16]}.")
    say(f"In {', '.join(path.name for path in written)}, which git ignores: lists and images stay their authors'.")
    return written


def _write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())
    return path


def load_second_tests(dataset: str, folder: Path) -> SecondTests:
    """What `prepare second-tests` has made of a dataset; each list that is not here is None. A damaged file is a UserError."""
    path = Path(folder) / f"second-tests-{dataset}.npz"
    if not path.exists():
        return SecondTests()
    arrays = read_arrays(path, REMEDY)
    return SecondTests(**{part: arrays.get(part) for part in SecondTests._fields})


def load_further(folder: Path) -> list[FurtherImages]:
    """Every further test set that `prepare second-tests` has made, by name."""
    tests = []
    for path in sorted(Path(folder).glob("second-test-*.npz")):
        arrays, name = read_arrays(path, REMEDY), path.name.removeprefix("second-test-").removesuffix(".npz")
        dataset = max((s for s in SETS if name.startswith(s)), key=len)
        tests.append(FurtherImages(name, dataset, arrays["x"], arrays["y"], content_digest(arrays["x"], arrays["y"])))
    return tests


# ---------------------------------------------------------------- which test images are clean


def has_partner(tests: SecondTests, kept: np.ndarray, test_images: int) -> np.ndarray:
    """Whether the listed near-duplicate of a test image is among the training images `kept` (bool [training images]): bool
    [test_images]."""
    partnered = np.zeros(test_images, bool)
    test, train, _ = tests.duplicates.T
    partnered[test[kept[train]]] = True
    return partnered


def is_clear(votes: np.ndarray) -> np.ndarray:
    """Whether at least `AGREE` of the people agree on an image: bool [images]. In whole numbers, so that 19 of 20 are enough."""
    return 100 * votes.max(1) >= round(100 * AGREE) * votes.sum(1)


def missing_lists(tests: SecondTests, dataset: str) -> Iterable[PublicList]:
    """The lists about a dataset that are not here."""
    return (listed for listed in LISTS if listed.dataset == dataset and getattr(tests, listed.part) is None)
