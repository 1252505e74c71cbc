"""What this software is called and who made it, from CITATION.cff, for the files in which archives and catalogues look for it.

`python -m common.publish.about` writes codemeta.json (CodeMeta 3.0) and .zenodo.json anew. No torch.
"""

import json
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import yaml

from common.checkout import ROOT
from common.errors import UserError

LICENCE = "https://www.apache.org/licenses/LICENSE-2.0"


@cache
def citation(root: Path = ROOT) -> dict[str, Any]:
    """The fields of CITATION.cff; a UserError where this is no checkout."""
    path = root / "CITATION.cff"
    if not path.is_file():
        raise UserError(f"{path} is not here; run this in a checkout of the repository.")
    fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    return fields | {"date-released": str(fields["date-released"])}


def author() -> str:
    return citation()["authors"][0]["name"]


def repository(root: Path = ROOT) -> str | None:
    """The address of the remote `origin` of the checkout, without a user's name and password; None where it has no such."""
    done = subprocess.run(["git", "remote", "get-url", "origin"], cwd=root, capture_output=True, text=True)
    parts = urlsplit(done.stdout.strip())
    if done.returncode or parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.removesuffix(".git"), "", ""))


def codemeta() -> dict[str, Any]:
    """https://codemeta.github.io/terms/"""
    about, project = citation(), tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {
        "@context": "https://w3id.org/codemeta/3.0", "type": "SoftwareSourceCode", "name": about["title"],
        "description": about["abstract"], "version": about["version"], "datePublished": about["date-released"],
        "license": f"https://spdx.org/licenses/{about['license']}", "keywords": about["keywords"],
        "author": [{"type": "Organization", "name": one["name"]} for one in about["authors"]],
        "programmingLanguage": "Python", "runtimePlatform": f"Python {project['requires-python']}",
        "softwareRequirements": project["dependencies"], "developmentStatus": "active",
    }


def zenodo() -> dict[str, Any]:
    """What Zenodo takes for the record of a release, before what it reads in CITATION.cff."""
    about = citation()
    return {
        "title": about["title"], "description": about["abstract"], "version": about["version"], "upload_type": "software",
        "access_right": "open", "license": about["license"], "keywords": about["keywords"],
        "creators": [{"name": one["name"]} for one in about["authors"]],
    }


def pretty(value: Any) -> bytes:
    """JSON as a person reads it."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


FILES = {"codemeta.json": codemeta, ".zenodo.json": zenodo}

if __name__ == "__main__":
    for name, make in FILES.items():
        (ROOT / name).write_bytes(pretty(make()))
