"""`python -m papers COMMAND`: the command line over all papers."""

from common.cli.main import main
from papers.catalog import BROKEN, PAPERS

if __name__ == "__main__":
    main(*PAPERS, broken=BROKEN)
