"""Which test images have a near-duplicate among the training images that a column keeps, and how many a class. No torch.

`python -m common.data.near_duplicates data` writes the table of data/README.md anew, from the lists that `prepare second-tests`
has put into data/.
"""

import re
import sys
from pathlib import Path

import numpy as np

from common.data.imbalance import class_counts, listed_columns, select
from common.data.second_tests import SecondTests, has_partner, load_second_tests
from common.data.sets import SETS, archive_order
from common.errors import UserError
from common.metrics import FEW, MANY
from common.spec import ARCHIVE_ORDER_KNOWN, Column
from common.store import write_atomically

BLOCK = re.compile(r"(<!-- begin generated: near-duplicates -->\n).*?(<!-- end generated: near-duplicates -->)", re.DOTALL)
GROUPS = ("many", "medium", "few")


def real_labels(dataset: str, split: str = "train") -> np.ndarray:
    """The labels of a split in canonical order, which sorts by label; its classes are equally large. uint8 [images]."""
    known = SETS[dataset]
    return np.repeat(np.arange(known.classes, dtype=np.uint8), getattr(known, split) // known.classes)


def kept_images(column: Column) -> np.ndarray:
    """Whether a column keeps each training image, in canonical order: bool [training images]. It needs no image."""
    labels = real_labels(column.dataset)
    kept = np.zeros(len(labels), bool)
    kept[select(labels, column, archive_order(column.dataset)[0])] = True
    return kept


def group_of(counts: np.ndarray) -> np.ndarray:
    """Place in `GROUPS` of each class, by its training images [classes]."""
    return np.where(counts > MANY, 0, np.where(counts < FEW, 2, 1))


def pruned(tests: SecondTests, column: Column) -> np.ndarray:
    """Test images of each class that have a listed near-duplicate among those the column keeps: int64 [classes]."""
    labels = real_labels(column.dataset, "test")
    return np.bincount(labels[has_partner(tests, kept_images(column), len(labels))], minlength=SETS[column.dataset].classes)


def counts_markdown(folder: Path) -> str:
    """The table of data/README.md for the lists in `folder`: a row for all training images and one for every listed column."""
    lines = ["| training images | pruned test images | many | medium | few | of class 0, 1, 2, ... |", f"|{'---|' * 6}"]
    for dataset in ARCHIVE_ORDER_KNOWN:
        tests = load_second_tests(dataset, folder)
        if tests.duplicates is None:
            raise UserError(f"{folder} has no list of near-duplicates of {dataset}: prepare second-tests --from FOLDER.")
        for column in (Column(dataset, "none", 1, "resnet32"), *listed_columns(dataset)):
            lines.append(_row(tests, column))
    return "\n".join(lines) + "\n"


def _row(tests: SecondTests, column: Column) -> str:
    known, each = SETS[column.dataset], pruned(tests, column)
    largest = known.train // known.classes
    counts = np.full(known.classes, largest) if column.imbalance == "none" else class_counts(
        column.imbalance, column.ratio, largest, known.classes)
    group, per_class = group_of(counts), known.test // known.classes
    shares = []
    for place in range(len(GROUPS)):
        of = group == place
        shares.append(f"{each[of].sum()} ({100 * each[of].sum() / (per_class * of.sum()):.2f} %)" if of.any() else "-")
    name = f"all of `{column.dataset}`" if column.imbalance == "none" else f"`{column.name}`"
    return f"| {name} | {each.sum()} | {' | '.join(shares)} | {' '.join(map(str, each))} |"


def write_counts(folder: Path, readme: Path) -> None:
    """Put the table into its place in data/README.md."""
    text = readme.read_text(encoding="utf-8")
    write_atomically(readme, BLOCK.sub(lambda match: match[1] + counts_markdown(folder) + match[2], text).encode())


if __name__ == "__main__":
    data = Path(sys.argv[1] if len(sys.argv) > 1 else "data")
    write_counts(data, data / "README.md")
