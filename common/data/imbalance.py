"""Which images a column keeps: class counts, the selection, and the committed index lists. No torch.

`python -m common.data.imbalance data` writes data/lists/*.json from the prepared datasets in data/.
"""

import base64
import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from common.data.sets import Images, content_digest, load
from common.errors import UserError
from common.spec import ARCHIVE_ORDER_KNOWN, Column

SEEDS = {"authors": 0, "seed-666": 666, "draw-1": 1, "draw-2": 2, "draw-3": 3, "draw-4": 4, "draw-5": 5}  # of NumPy's draws
RATIOS = [("lt", r) for r in (10, 50, 100, 200)] + [("step", r) for r in (10, 100)]  # of the columns whose lists are committed


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

    Of every class, the first ones as `rank` has them. The largest class of an imbalanced column is as large as the dataset's
    smallest. archive_order: as in `Images`; without it, a subset that goes by it is a UserError. held_out: images of each class
    that `set_aside` takes, so that the largest class is smaller by as many.
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
    if np.array_equal(counts, np.bincount(labels)):
        return np.arange(len(labels))
    ranks = rank(labels, column, archive_order)
    return np.sort(np.concatenate([ranked[:n] for ranked, n in zip(ranks, counts, strict=False)]))


def set_aside(labels: np.ndarray, column: Column, archive_order: np.ndarray | None, held_out: int) -> np.ndarray:
    """Ascending indices, int64, of the last `held_out` images of every class of the column, as `rank` has them.

    `select` with the same `held_out` keeps none of them.
    """
    if not held_out:
        return np.empty(0, np.int64)
    ranks = rank(labels, column, archive_order)[:len(column.counts) or None]
    return np.sort(np.concatenate([ranked[-held_out:] for ranked in ranks]))


def rank(labels: np.ndarray, column: Column, archive_order: np.ndarray | None) -> list[np.ndarray]:
    """The indices of every class in the order in which the column's subset takes them."""
    if column.subset == "hash":
        return [np.flatnonzero(labels == c) for c in range(labels.max() + 1)]
    if archive_order is None:
        raise UserError(f"{column.name} asks for subset {column.subset!r}, which goes by the order of the official archive; that "
                        f"is known of {' and '.join(ARCHIVE_ORDER_KNOWN)} only: write `subset: hash` for {column.dataset}.")
    return shuffle_as_numpy(labels, archive_order, SEEDS[column.subset])


def shuffle_as_numpy(labels: np.ndarray, archive_order: np.ndarray, seed: int) -> list[np.ndarray]:
    """The routine of the authors' scripts (Cao et al., 2019, and all who follow them): the indices of every class, shuffled.

    `np.random.seed(seed)`; then for every class, in increasing order, `np.random.shuffle` of its positions in the archive. A
    class is shuffled whole whatever a column keeps of it, so the subsets of all ratios are nested.
    """
    generator = np.random.RandomState(seed)  # the stream of np.random.seed(seed), without touching the global state
    at = np.argsort(archive_order)  # index of the image at each position
    ranks = []
    for c in range(labels.max() + 1):
        positions = np.sort(archive_order[labels == c])
        generator.shuffle(positions)
        ranks.append(at[positions])
    return ranks


@dataclass(frozen=True)
class IndexList:
    """A committed selection, in terms of the official archive.

    counts: images of every class; total: their sum. kept: a bit mask in base64, whose bit p (a byte's highest bit comes first)
    says whether training image p of the archive is kept. positions_sha256: `positions_digest` of these positions.
    content_sha256: `content_digest` of the images.
    """

    dataset: str
    imbalance: str
    ratio: int
    subset: str
    total: int
    counts: list[int]
    kept: str
    positions_sha256: str
    content_sha256: str

    @property
    def positions(self) -> np.ndarray:
        """Ascending positions in the official archive, int64 [total]."""
        return np.flatnonzero(np.unpackbits(np.frombuffer(base64.b64decode(self.kept, validate=True), np.uint8)))


def positions_digest(positions: np.ndarray) -> str:
    """SHA-256 of ascending positions as little-endian int64."""
    return hashlib.sha256(np.sort(positions).astype("<i8").tobytes()).hexdigest()


def make_list(images: Images, column: Column) -> IndexList:
    """The index list of a column whose dataset has a known archive order."""
    indices = select(images.y_train, column, images.archive_order)
    labels, positions = images.y_train[indices], images.archive_order[indices]
    mask = np.zeros(len(images.y_train), bool)
    mask[positions] = True
    return IndexList(
        column.dataset, column.imbalance, column.ratio, column.subset, len(indices), np.bincount(labels).tolist(),
        base64.b64encode(np.packbits(mask)).decode(), positions_digest(positions),
        content_digest(images.x_train[indices], labels),
    )


def write_list(path: Path, listed: IndexList) -> None:
    """Write an index list as JSON, one line a key."""
    lines = [f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in asdict(listed).items()]
    Path(path).write_text("{\n" + ",\n".join(lines) + "\n}\n")


def read_list(path: Path) -> IndexList:
    """Read an index list; a missing or inconsistent one is a UserError."""
    try:
        listed = IndexList(**json.loads(Path(path).read_text()))
        positions, counted = listed.positions, sum(listed.counts)
    except FileNotFoundError:
        raise UserError(f"{path} is not here; restore it from git.") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not an index list ({error}); restore it from git.") from None
    if not len(positions) == listed.total == counted or positions_digest(positions) != listed.positions_sha256:
        raise UserError(f"{path} contradicts itself: its mask does not give its total and digest; restore it from git.")
    return listed


def listed_columns(dataset: str) -> list[Column]:
    """The columns whose lists are committed."""
    subsets = [(*kind, subset) for subset in ("authors", "hash") for kind in RATIOS]
    subsets += [("lt", 100, subset) for subset in SEEDS if subset != "authors"]
    return [Column(dataset, imbalance, ratio, "resnet32", subset) for imbalance, ratio, subset in subsets]


def write_lists(folder: Path, datasets: tuple[str, ...] = ARCHIVE_ORDER_KNOWN) -> list[Path]:
    """Write `<folder>/lists/<column>.json` for every listed column of the prepared datasets in `folder`."""
    written = []
    for dataset in datasets:
        images = load(dataset, folder)
        for column in listed_columns(dataset):
            written.append(Path(folder) / "lists" / f"{column.name}.json")
            written[-1].parent.mkdir(parents=True, exist_ok=True)
            write_list(written[-1], make_list(images, column))
    return written


if __name__ == "__main__":
    print(*write_lists(Path(sys.argv[1] if len(sys.argv) > 1 else "data")), sep="\n")
