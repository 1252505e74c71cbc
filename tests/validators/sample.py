"""An export of made records for the validators: `python -m tests.validators.sample FOLDER` writes it into it."""

import sys
import tempfile
from pathlib import Path

import common.publish.crate
import common.publish.croissant
from common.cli.main import DATA
from common.paper import Paper
from common.plan import plan
from common.publish.export import export
from tests.common.publish.test_export import finish
from tests.records import toy_paper

ADDRESS = "https://example.org/longtail"


def write_sample(folder: Path, root: Path) -> Path:
    """Everything that `export` writes: runs with weights, with a record alone, and a diverged one; every list that is here."""
    paper: Paper = toy_paper(root / "papers" / "toy")
    planned = plan(paper, "paper", columns=("cifar10-lt-100", "cifar10-step-100"), seeds=2)
    for place, item in enumerate(planned):
        finish(item, None if place == 2 else 60.0 + place)
    planned[3].checkpoint.unlink()
    export(planned, folder, DATA, ("models", "lists", "crate"), print)
    return folder


if __name__ == "__main__":
    for module in (common.publish.crate, common.publish.croissant):
        module.repository = lambda: ADDRESS  # what a checkout with an address on the web says
    with tempfile.TemporaryDirectory() as place:
        write_sample(Path(sys.argv[1]), Path(place))
