"""Groups of classes under the names that papers give them, and what a record says of each."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from common.metrics import FEW, MANY
from common.report.intervals import mean_of

SHOTS = {"head": "many", "medium": "medium", "tail": "few"}  # by training images: over 100, 20 to 100, under 20
TENTHS = ("head1", "head2", "head3", "mid1", "mid2", "mid3", "mid4", "tail1", "tail2", "tail3")
SPANS = {"head1-3": TENTHS[:3], "mid1-4": TENTHS[3:7], "tail1-3": TENTHS[7:]}
WHOLE = ("", "all")


def is_group(name: str) -> bool:
    """Whether `group_accuracy` knows the name: "" or "all"; "head", "medium", "tail"; "class-<k>"; of `TENTHS` or `SPANS`."""
    return name in (*WHOLE, *SHOTS, *TENTHS, *SPANS) or re.fullmatch(r"class-\d+", name) is not None


def group_accuracy(record: Mapping[str, Any], group: str, epoch: str = "last") -> float | None:
    """Accuracy in percent over a group of classes; None where the column has no such class, or the record no such number.

    The best epoch is recorded for the whole test set only. Test sets have equally many images of every class, so that the
    mean over classes is the mean over images.
    """
    if group in WHOLE:
        return record["accuracy"][epoch]
    if epoch != "last":
        return None
    if group in SHOTS:
        return record["groups"][SHOTS[group]]
    classes = classes_of(record, group)
    return mean_of([record["per_class_accuracy"][i] for i in classes])


def classes_of(record: Mapping[str, Any], group: str) -> list[int]:
    """The classes of a group: one that `is_group` knows, "majority" or "minority"; empty where the column has none of it."""
    counts = record["counts"]
    if group in WHOLE:
        return list(range(len(counts)))
    if group in SHOTS:
        return [i for i, n in enumerate(counts) if group == ("head" if n > MANY else "tail" if n < FEW else "medium")]
    if group in ("majority", "minority"):
        return [i for i, is_large in enumerate(majority(counts)) if is_large == (group == "majority")]
    if group in (*TENTHS, *SPANS):
        parts = class_groups(counts, len(TENTHS))
        named = zip(TENTHS, parts, strict=True) if len(parts) == len(TENTHS) else ()
        return [i for name, part in named if name in SPANS.get(group, (group,)) for i in part]
    label = int(group.removeprefix("class-"))
    return [label] if label < len(counts) else []


def class_groups(counts: Sequence[int], number: int) -> list[list[int]]:
    """The classes in at most `number` groups of equally many (or one more), by their training images, largest first.

    >>> class_groups([5, 50, 20, 10], 2)
    [[1, 2], [3, 0]]
    """
    order = sorted(range(len(counts)), key=lambda i: (-counts[i], i))
    number = min(number, len(order))
    edges = [round(k * len(order) / number) for k in range(number + 1)]
    return [order[first:stop] for first, stop in pairwise(edges)]


def group_names(number: int) -> list[str]:
    """What the groups of `class_groups` are called: Head1 to Tail3 where there are ten."""
    return [name.capitalize() for name in TENTHS] if number == len(TENTHS) else [f"G{i + 1}" for i in range(number)]


def majority(counts: Iterable[float]) -> list[bool]:
    """Which classes are majority classes: those above the geometric mean of the largest and the smallest class.

    Under step imbalance these are exactly the frequent classes; balanced classes are all majority classes.
    """
    sizes = list(counts)
    bound = max(sizes, default=0) * min(sizes, default=0)
    return [size * size >= bound for size in sizes]
