"""Which run is right on which test image, for the page's script: what "Where two methods differ" is counted from.

Of a column, the bits of all runs on an image stand together, as images that are easy or hard are so for most runs; deflated, a
run takes about a kilobyte of the page on CIFAR.
"""

import base64
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from common.report.boards import Entrant
from common.report.page.filters import planned_by
from common.report.paired import Hits

RULE = (
    "Counted from the predictions of the last epoch, on the seeds that both methods have. Interval and p (two-sided, of no "
    "difference) come from the analysis of variance over seeds and images of Dorfman, Berbaum and Metz with the degrees of "
    "freedom of Hillis (Statistics in Medicine 26, 2007): they hold for other seeds and another test set of the same kind. They "
    "are not corrected for how many pairs one looks at. Two single runs have neither, as one seed does not tell how seeds differ."
)
Share = Literal["all", "main", "none"]  # the runs on the page: all, those of ranked methods, none


class Compared(NamedTuple):
    """A method of a column: its name in the lists, its seeds and what they answer right, the training images of each class."""

    name: str
    seeds: tuple[int, ...]
    hits: tuple[Hits, ...]
    counts: Sequence[int]


def pair_data(entrants: Sequence[Entrant], hits: Mapping[str, Hits], share: Share) -> dict[str, Any]:
    """Of every column that has runs with predictions: name, `classes` as [class, images that follow each other], `counts` of
    training images, `methods` as [name, seeds], and `bits`: for every image, in bytes of its own, a bit for every run, as the
    methods have them. left_out: runs that `share` leaves out."""
    grouped: dict[str, list[Entrant]] = {}
    for entrant in entrants:
        grouped.setdefault(entrant.column.name, []).append(entrant)
    kept = {name: [one for one in some if share == "all" or (share == "main" and one.is_main)] for name, some in grouped.items()}
    several = {name: _compared(some, hits) for name, some in kept.items()}
    runs = sum(record["key"] in hits for entrant in entrants for record in entrant.runs.done)
    columns = [_column(name, methods) for name, methods in several.items() if methods]
    return {"columns": columns, "left_out": runs - sum(len(one.seeds) for some in several.values() for one in some)}


def _compared(entrants: Sequence[Entrant], hits: Mapping[str, Hits]) -> list[Compared]:
    """The methods by name, with their runs that have predictions. All runs of a column are tested on the same images."""
    methods = []
    for entrant in entrants:
        have = [record for record in entrant.runs.done if record["key"] in hits]
        if have:
            name = f"{entrant.runs.method.label} · {planned_by(entrant.sources, entrant.runs.method.label)}"
            methods.append(Compared(name, tuple(record["spec"]["seed"] for record in have),
                                    tuple(hits[record["key"]] for record in have), have[0]["counts"]))
    return sorted(methods, key=lambda one: one.name)


def _column(name: str, methods: Sequence[Compared]) -> dict[str, Any]:
    labels = methods[0].hits[0].labels
    edges = [0, *(np.flatnonzero(np.diff(labels.astype(np.int64))) + 1).tolist(), len(labels)]
    classes = [[int(labels[first]), stop - first] for first, stop in pairwise(edges)]
    right = np.stack([run.right for one in methods for run in one.hits], axis=1)
    return {"name": name, "classes": classes, "counts": list(methods[0].counts),
            "methods": [[one.name, one.seeds] for one in methods], "bits": deflate(np.packbits(right, axis=1).tobytes())}


def deflate(content: bytes) -> str:
    """In base64. Of such bits, matches of earlier text save nothing and take most of the time: so runs of equal bytes alone."""
    packer = zlib.compressobj(9, strategy=zlib.Z_RLE)
    return base64.b64encode(packer.compress(content) + packer.flush()).decode()
