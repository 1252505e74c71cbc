"""Which images a column keeps: class counts, the selection, and the committed index lists. No torch.

`python -m common.data.imbalance data` writes data/lists/*.json from the prepared datasets in data/.
"""

import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from common.data.sets import Images, content_digest, load
from common.errors import UserError
from common.spec import Column

# The columns whose lists are committed.
LISTED = [("lt", r) for r in (10, 50, 100, 200)] + [("step", r) for r in (10, 100)]


def class_counts(imbalance: str, ratio: float, n_max: int, classes: int) -> np.ndarray:
    """Images per class, int64 [classes], largest first. ratio: largest over smallest class, at least 1.

    "lt": n_i = int(n_max * f^(i / (C - 1))) with f = 1 / ratio; "step": n_max for the first half of the classes,
    int(n_max * f) for the rest. A ratio below 1 or one that empties a class, or another kind, is a UserError.
    """
    if not ratio >= 1:
        raise UserError(f"The imbalance ratio {ratio} is below 1; it is the largest over the smallest class, as in 100.")
    f = 1.0 / ratio
    if imbalance == "lt":
        exact = [n_max * f ** (i / max(classes - 1, 1)) for i in range(classes)]
    elif imbalance == "step":
        exact = [n_max if i < classes // 2 else n_max * f for i in range(classes)]
    else:
        raise UserError(f"Unknown imbalance {imbalance!r}; known: lt, step.")
    # Rounding may leave 49 * (1 / 49) a hair below 1, and truncation would then lose an image.
    counts = np.array([int(n + 1e-9) for n in exact], dtype=np.int64)
    if counts.min() < 1:
        raise UserError(f"Imbalance {imbalance} of ratio {ratio} leaves a class of {n_max} images empty; use at most {n_max}.")
    return counts


def select(labels: np.ndarray, column: Column, archive_order: np.ndarray | None = None, held_out: int = 0) -> np.ndarray:
    """Ascending indices, int64, of the training images that `column` keeps; `labels` [count] are in canonical order.

    The largest class of an imbalanced column is as large as the dataset's smallest. archive_order: as in `Images`,
    needed where the column's subset is "archive", else a UserError. held_out: images of each class that are set aside
    first (`last_of_each`), so that the largest class is smaller by as many.
    """
    present = np.bincount(labels) - held_out
    if column.imbalance == "none":
        counts = present
    elif column.imbalance == "counts":
        counts = column.counts
        if len(counts) > len(present) or any(n > p for n, p in zip(counts, present, strict=False)):
            raise UserError(f"{column.name} asks for more images than the classes of {column.dataset} have.")
    else:
        counts = class_counts(column.imbalance, column.ratio, int(present.min()), len(present))
    if column.subset == "archive":
        return _select_as_archive(labels, counts, column, archive_order)
    return np.concatenate([np.flatnonzero(labels == c)[:n] for c, n in enumerate(counts)])


def last_of_each(labels: np.ndarray, held_out: int, classes: int) -> np.ndarray:
    """Ascending indices of the last `held_out` images of each of the first classes: those that no canonical subset keeps."""
    return np.concatenate([np.flatnonzero(labels == c)[len(np.flatnonzero(labels == c)) - held_out:] for c in range(classes)])


def _select_as_archive(labels: np.ndarray, counts: np.ndarray, column: Column, archive_order: np.ndarray | None) -> np.ndarray:
    """The authors' draw: with NumPy's seed 0, class by class, shuffle the class's positions in the archive, keep the first."""
    if archive_order is None:
        raise UserError(f"{column.name} needs the order of the official archive; prepare {column.dataset} --from that archive.")
    generator = np.random.RandomState(0)  # the same stream as np.random.seed(0), without touching the global state
    canonical = np.argsort(archive_order)
    kept = []
    for c, n in enumerate(counts):
        positions = np.sort(archive_order[labels == c]).astype(np.int64)
        generator.shuffle(positions)
        kept.append(canonical[positions[:n]])
    return np.sort(np.concatenate(kept))


@dataclass(frozen=True)
class IndexList:
    """A committed selection. ranges: the half-open [first, stop) of every class in the canonical train arrays.

    index_sha256: of the indices as little-endian int64. content_sha256: `content_digest` of the selected images.
    """

    dataset: str
    imbalance: str
    ratio: int
    total: int
    counts: list[int]
    ranges: list[list[int]]
    index_sha256: str
    content_sha256: str

    @property
    def indices(self) -> np.ndarray:
        return np.concatenate([np.arange(first, stop, dtype=np.int64) for first, stop in self.ranges])


def index_digest(indices: np.ndarray) -> str:
    """SHA-256 of the indices as little-endian int64."""
    return hashlib.sha256(np.asarray(indices).astype("<i8").tobytes()).hexdigest()


def make_list(images: Images, column: Column) -> IndexList:
    """The index list of a column with the canonical subset."""
    if column.subset != "canonical":
        raise UserError(f"{column.name}: lists hold canonical subsets only.")
    indices = select(images.y_train, column)
    labels = images.y_train[indices]
    ranges = [[int(i[0]), int(i[-1]) + 1] for i in (indices[labels == c] for c in np.unique(labels))]
    return IndexList(
        column.dataset, column.imbalance, column.ratio, len(indices), np.bincount(labels).tolist(), ranges,
        index_digest(indices), content_digest(images.x_train[indices], labels),
    )


def write_list(path: Path, listed: IndexList) -> None:
    """Write an index list as JSON, one line a key."""
    lines = [f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in asdict(listed).items()]
    Path(path).write_text("{\n" + ",\n".join(lines) + "\n}\n")


def read_list(path: Path) -> IndexList:
    """Read an index list; a missing or inconsistent one is a UserError."""
    try:
        listed = IndexList(**json.loads(Path(path).read_text()))
        indices, counts = listed.indices, [stop - first for first, stop in listed.ranges]
    except FileNotFoundError:
        raise UserError(f"{path} is not here; restore it from git.") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not an index list ({error}); restore it from git.") from None
    if counts != listed.counts or len(indices) != listed.total or index_digest(indices) != listed.index_sha256:
        raise UserError(f"{path} contradicts itself: its ranges do not give its counts, total and digest; restore it from git.")
    return listed


def write_lists(folder: Path, datasets: tuple[str, ...] = ("cifar10", "cifar100")) -> list[Path]:
    """Write `<folder>/lists/<column>.json` for every listed column of the prepared datasets in `folder`."""
    written = []
    for dataset in datasets:
        images = load(dataset, folder)
        for imbalance, ratio in LISTED:
            column = Column(dataset, imbalance, ratio, backbone="resnet32")
            written.append(Path(folder) / "lists" / f"{column.name}.json")
            written[-1].parent.mkdir(parents=True, exist_ok=True)
            write_list(written[-1], make_list(images, column))
    return written


if __name__ == "__main__":
    print(*write_lists(Path(sys.argv[1] if len(sys.argv) > 1 else "data")), sep="\n")
