"""All papers. A new paper is one more line here."""

from papers.mm.replicate import PAPER as MM

PAPERS = (MM,)
