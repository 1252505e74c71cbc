"""What `export` wrote, and CITATION.cff, judged by the validators of those who read it.

    python tests/validators/check.py FOLDER

`make validate` makes the environment, of the requirements.lock beside this file. Nothing is fetched: the
JSON-LD context of RO-Crate 1.1 is that of the package `rocrate`. Nothing of this project is imported.
"""

import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import mlcroissant
import yaml
from cffconvert import Citation
from huggingface_hub import ModelCard, eval_result_entries_to_yaml, parse_eval_result_entries
from requests import Response
from rocrate_validator.models import Severity, ValidationSettings
from rocrate_validator.services import validate
from rocrate_validator.utils.http import HttpRequester

CONTEXT = "https://w3id.org/ro/crate/1.1/context"


def croissants(folder: Path) -> Iterator[str]:
    """Every list loads, without an error or a warning, and has as many images of each class as it says."""
    for path in sorted(folder.glob("croissant/*.json")):
        dataset = mlcroissant.Dataset(path)
        yield from (f"{path.name}: {text}" for text in (*dataset.metadata.issues.errors, *dataset.metadata.issues.warnings))
        if "1.1" not in str(dataset.metadata.conforms_to):
            yield f"{path.name}: conforms to {dataset.metadata.conforms_to}"
        found: dict[int, int] = {}
        for row in dataset.records("images"):
            found[row["images/label"]] = found.get(row["images/label"], 0) + 1
        said = {row["classes/label"]: row["classes/images"] for row in dataset.records("classes")}
        if found != said:
            yield f"{path.name}: {found} images a class, {said} by its own word"


def crate(folder: Path) -> Iterator[str]:
    """The crate keeps all that its profile requires and recommends."""
    known = (files("rocrate") / "data" / "ro-crate.jsonld").read_bytes()
    assert json.loads(known)["@id"] == CONTEXT, "the package rocrate has the context of another version"

    def get(requester: HttpRequester, url: str, **named) -> Response:
        response = Response()
        response.status_code, response._content = (200, known) if url == CONTEXT else (404, b"")
        response.headers["Content-Type"] = "application/ld+json"
        return response

    HttpRequester.get = get
    found = validate(ValidationSettings(rocrate_uri=str(folder), profile_identifier="process-run-crate",
                                        requirement_severity=Severity.RECOMMENDED))
    for issue in found.get_issues():
        yield f"ro-crate-metadata.json: {issue.severity.name}: {issue.message} ({issue.violatingEntity})"


def hub(folder: Path) -> Iterator[str]:
    """The Hub's library reads every card and every result as it was written."""
    cards = sorted(folder.glob("*/README.md"))
    if not cards:
        yield "no model card"
    for path in cards:
        card = ModelCard.load(path)
        if not card.data.eval_results or not card.data.model_name:
            yield f"{path}: no model-index"
        for results in sorted(path.parent.glob(".eval_results/*.yaml")):
            written = yaml.safe_load(results.read_text())
            if eval_result_entries_to_yaml(parse_eval_result_entries(written)) != written:
                yield f"{results}: not what the library makes of it"


def citation(path: Path) -> Iterator[str]:
    """CITATION.cff keeps its schema, and says of title, version, licence and authors what .zenodo.json says."""
    found = Citation(path.read_text())
    found.validate()
    theirs, ours = json.loads(found.as_zenodo()), json.loads(path.with_name(".zenodo.json").read_text())
    theirs["license"] = theirs["license"]["id"]
    for name in theirs.keys() & ours.keys():
        if theirs[name] != ours[name]:
            yield f".zenodo.json: {name} is not that of CITATION.cff"


def main(folder: Path) -> int:
    wrong = [*croissants(folder), *crate(folder), *hub(folder), *citation(Path(__file__).parents[2] / "CITATION.cff")]
    print(*wrong, sep="\n", end="\n" if wrong else "")
    tools = ", ".join(f"{name} {version(name)}" for name in ("mlcroissant", "roc-validator", "huggingface_hub", "cffconvert"))
    print(f"{len(wrong)} complaints by {tools}.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
