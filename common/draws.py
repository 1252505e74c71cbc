"""Which images a subset keeps: the headline rows of a paper once more, on other images than those of the authors' scripts.

A long-tailed column keeps the images that the authors' scripts draw. How much hangs on these very ones? Each paper's own methods,
cross-entropy and LDAM-DRW are planned at ratio 100 on seven other subsets of the same sizes too: the one that another released
code draws, the one by the hash of the pixels, and five further draws. A campaign takes them among the ablations; a command does
where it names the column, for example `--column cifar10-lt-100-draw-1`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from common.methods.method import Method
from common.paper import Paper
from common.spec import ARCHIVE_ORDER_KNOWN, FURTHER_DRAWS, Column, Protocol

BASELINES = ("ce", "ldam-drw")
OTHERS = ("seed-666", "hash", *FURTHER_DRAWS)
RATIO, BACKBONE = 100, "resnet32"


def with_draws(paper: Paper) -> Paper:
    """The paper with a column for each of `OTHERS` beside every long-tailed one of the published profile that keeps the authors'
    images at `RATIO`; the rows there are those of the authors' column that `is_headline` picks."""
    usual = [column for column in paper.columns["paper"] if has_draws(column)]
    drawn = tuple(replace(column, subset=subset) for column in usual for subset in OTHERS)
    rows = partial(rows_of, methods=paper.methods, own=paper.own)
    return replace(paper, columns={**paper.columns, "paper": paper.columns["paper"] + drawn}, methods=rows)


def has_draws(column: Column) -> bool:
    """Whether a column keeps the authors' images and has others beside it."""
    kind = (column.imbalance, column.ratio, column.backbone, column.subset)
    return kind == ("lt", RATIO, BACKBONE, "authors") and column.dataset in ARCHIVE_ORDER_KNOWN


def rows_of(column: Column, protocols: Mapping[str, Protocol], *, methods: Callable, own: tuple[str, ...]) -> tuple[Method, ...]:
    """`Paper.methods` with the columns of other images, where nothing is kept for a figure."""
    if not column.is_drawn:
        return methods(column, protocols)
    rows = methods(replace(column, subset="authors"), protocols)
    return tuple(replace(row, keep_features=False) for row in rows if is_headline(row, own))


def is_headline(method: Method, own: tuple[str, ...]) -> bool:
    """Whether a row is one of the paper's own methods, cross-entropy or LDAM-DRW, and no point of a grid."""
    return not method.variant and method.name in (*own, *BASELINES)
