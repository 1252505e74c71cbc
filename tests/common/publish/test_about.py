"""What the software says of itself is said once: in CITATION.cff and pyproject.toml."""

import json
import tomllib
from pathlib import Path

import pytest

from common.errors import UserError
from common.publish.about import FILES, citation, pretty

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", FILES)
def test_a_committed_file_is_what_is_made_of_citation(name) -> None:
    assert (ROOT / name).read_bytes() == pretty(FILES[name]()), f"python -m common.publish.about writes {name} anew"


def test_package_and_citation_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (project["version"], project["license"]) == (citation()["version"], citation()["license"])


def test_the_files_have_what_their_readers_require() -> None:
    codemeta, zenodo = (json.loads((ROOT / name).read_text()) for name in FILES)
    assert codemeta["@context"] == "https://w3id.org/codemeta/3.0"
    assert codemeta["type"] == "SoftwareSourceCode"
    assert zenodo["upload_type"] == "software"
    assert zenodo["creators"][0]["name"]


def test_outside_a_checkout_it_says_so(tmp_path) -> None:
    with pytest.raises(UserError, match="run this in a checkout"):
        citation(tmp_path)
