"""A set of records as a Process Run Crate: every run is an action with its files, and every reference leads somewhere."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import common.publish.crate
from common.errors import UserError
from common.methods.method import Start
from common.paper import Paper
from common.publish.about import repository
from common.publish.crate import PROFILE, write_crate
from common.publish.export import export
from tests.common.publish.test_export import finish, runs
from tests.records import toy_paper

PARTS = ("models", "lists", "crate")


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    return toy_paper(tmp_path / "papers" / "toy")


def graph(folder: Path) -> dict[str, dict[str, Any]]:
    found = json.loads((folder / "ro-crate-metadata.json").read_text())["@graph"]
    assert len({one["@id"] for one in found}) == len(found)
    return {one["@id"]: one for one in found}


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [value["@id"]] if set(value) == {"@id"} else [r for v in value.values() for r in references(v)]
    return [r for v in value for r in references(v)] if isinstance(value, list) else []


def exported(paper: Paper, folder: Path) -> dict[str, dict[str, Any]]:
    """One run with weights, one without, one that diverged."""
    ce, own, rival = (runs(paper, name)[0] for name in ("ce", "own@written", "rival"))
    for item, accuracy in ((ce, 70.0), (own, 71.0), (rival, None)):
        finish(item, accuracy)
    own.checkpoint.unlink()
    export([ce, own, rival], folder, folder / "no-data", PARTS, lambda text: None)
    return graph(folder)


def test_every_run_is_an_action_with_what_it_left(paper: Paper, tmp_path: Path) -> None:
    found = exported(paper, tmp_path / "out")
    actions = {one["name"]: one for one in found.values() if one["@type"] == "CreateAction"}
    assert sorted(actions) == [f"cifar10-lt-100 {name}@written seed 0" for name in ("ce", "own", "rival")]
    ce, own, rival = (actions[name] for name in sorted(actions))
    assert [Path(one["@id"]).name for one in ce["result"]] == ["record.json", "README.md", "config.json", "model.safetensors"]
    assert Path(own["result"]["@id"]).parent.name == "records"
    assert (ce["actionStatus"], rival["actionStatus"]) == ("http://schema.org/CompletedActionStatus",
                                                           "http://schema.org/FailedActionStatus")
    assert "left the finite range" in rival["error"]
    assert "error" not in ce
    said = {found[one["@id"]]["name"]: found[one["@id"]].get("value") for one in ce["object"] if one["@id"] in found}
    assert (said["seed"], said["method"], said["column"], said["torch"]) == (0, "ce@written", "cifar10-lt-100", "2.11.0")
    assert said["cifar10-lt-100.csv"] is None  # the list of its images is among what went in
    assert "-m papers.toy.replicate train" in ce["description"]


def test_every_reference_leads_to_an_entity_and_every_file_is_here(paper: Paper, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    found = exported(paper, folder)
    wanted = {r for one in found.values() for r in references(one)} - {"https://w3id.org/ro/crate/1.1"}
    assert wanted <= set(found)
    files = {name: one for name, one in found.items() if one["@type"] == "File"}
    assert {one["@id"] for one in found["./"]["hasPart"]} == set(files)
    for name, one in files.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == one["sha256"]
    assert found["./"]["conformsTo"] == {"@id": PROFILE}
    assert {one["@id"] for one in found["./"]["mentions"]} == {k for k, v in found.items() if v["@type"] == "CreateAction"}


def test_what_a_killed_write_left_is_no_part_of_the_crate(paper: Paper, tmp_path: Path) -> None:
    found = exported(paper, tmp_path / "out")
    run = next((tmp_path / "out").rglob("record.json")).parent
    (run / ".model.safetensors.x1").write_bytes(b"half")
    assert exported(paper, tmp_path / "out") == found


def test_a_second_stage_names_the_record_that_it_starts_from(paper: Paper, tmp_path: Path) -> None:
    first, second = (runs(paper, name)[0] for name in ("ce", "own@written"))
    second = replace(second, method=replace(second.method, start=Start(replace(first.method, protocol=first.spec.protocol))))
    for item in (first, second):
        finish(item)
    write_crate([second], dict.fromkeys((first.spec.key, second.spec.key), "train"), tmp_path / "out")
    found = graph(tmp_path / "out")
    [record] = [one["result"]["@id"] for one in found.values() if one["@id"] == f"#{first.spec.key}"]
    assert {"@id": record} in found[f"#{second.spec.key}"]["object"]


def test_no_record_is_no_crate(paper: Paper, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No selected run has a record"):
        export(runs(paper, "ce"), tmp_path / "out", tmp_path, ("crate",), print)
    assert not (tmp_path / "out").exists()


def test_records_alone_are_worth_a_crate(paper: Paper, tmp_path: Path) -> None:
    """A machine that merges what others have trained has no weights."""
    [item] = runs(paper, "ce")
    finish(item)
    item.checkpoint.unlink()
    said: list[str] = []
    export([item], tmp_path / "out", tmp_path, PARTS, said.append)
    assert "No selected run has its weights here." in said
    assert len([one for one in graph(tmp_path / "out").values() if one["@type"] == "CreateAction"]) == 1


@pytest.mark.parametrize(("remote", "said"), [
    ("https://someone:secret@example.org/team/longtail.git", "https://example.org/team/longtail"),
    ("https://example.org/team/longtail", "https://example.org/team/longtail"),
    ("git@example.org:team/longtail.git", None), ("file:///srv/longtail.git", None), (None, None)])
def test_the_address_is_that_of_the_remote_without_a_password(remote, said, tmp_path: Path) -> None:
    import subprocess

    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    if remote:
        subprocess.run(["git", "remote", "add", "origin", remote], cwd=tmp_path, check=True)
    assert repository(tmp_path) == said


def test_an_address_is_said_where_there_is_one(paper: Paper, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(common.publish.crate, "repository", lambda: "https://example.org/longtail")
    [software] = [one for one in exported(paper, tmp_path / "out").values() if one["@type"] == "SoftwareApplication"]
    assert software["@id"] == f"https://example.org/longtail/tree/{'0' * 12}"
    assert software["url"] == "https://example.org/longtail"
