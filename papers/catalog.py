"""All papers. A new paper is one more line here."""

from papers.fbl.replicate import PAPER as FBL
from papers.gcl.replicate import PAPER as GCL
from papers.icu.replicate import PAPER as ICU
from papers.kps.replicate import PAPER as KPS
from papers.mm.replicate import PAPER as MM
from papers.two_head.replicate import PAPER as TWO_HEAD

PAPERS = (ICU, MM, TWO_HEAD, KPS, FBL, GCL)
