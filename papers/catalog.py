"""All papers. A new paper is one more name here."""

from importlib import import_module

from common.errors import UserError
from common.paper import Paper

NAMES = ("icu", "mm", "two_head", "kps", "fbl", "gcl")


def load_papers() -> tuple[tuple[Paper, ...], tuple[UserError, ...]]:
    """The papers whose parameters are right, and what is wrong with those of the others."""
    papers, broken = [], []
    for name in NAMES:
        try:
            papers.append(import_module(f"papers.{name}.replicate").PAPER)
        except UserError as error:
            broken.append(error)
    return tuple(papers), tuple(broken)


PAPERS, BROKEN = load_papers()
