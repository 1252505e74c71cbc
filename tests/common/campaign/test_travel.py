"""What comes home after every pack: small whole files, the dearest first, and refused where they were touched."""

import io
import json
import struct
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from common.campaign.merging import RecordPlace, merge
from common.campaign.travel import SUMS, Home, bring_in
from common.errors import UserError
from common.methods.method import Method, Start
from common.plan import missing_runs, plan
from common.predictions import Answers, Predictions, write_predictions
from common.store import files_by_key, record_files, save_record, weights_metadata
from tests.records import make_record, some_loss, toy_paper


def two_stages(column, protocols):

    first = Method("ce", "written", some_loss, protocol=protocols["written"])
    return first, Method("own", "written", some_loss, start=Start(first), protocol=replace(protocols["written"], trains="head"))


SPEEDS = json.dumps({"device": "a card", "precision": "bfloat16", "rows": []}).encode()


def state(size: int) -> bytes:
    """An archive of this size, as a state is one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("data.pkl"), bytes(size))  # of 1980, not of this second
    return buffer.getvalue()


def weights(key: str, size: int) -> bytes:
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": weights_metadata(key=key), "w": entry}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


@pytest.fixture
def paper(tmp_path):
    return replace(toy_paper(tmp_path / "there" / "papers" / "toy"), methods=two_stages)


@pytest.fixture
def finished(paper, tmp_path):
    """Three seeds of both stages on one column, of which only the first stages are done, with 1 MiB of weights each, predictions
    beside them, and the state of a pack."""
    runs = plan(paper, "paper", columns=("cifar10-lt-100",))
    for item in runs:
        if not item.start:
            labels = np.repeat(np.arange(10), 100)
            answers = Answers(labels, labels, np.full(1000, item.spec.seed, np.uint8))
            fields = write_predictions(item.folder, {item.spec.key: Predictions(labels, answers)})
            save_record(item.folder, make_record(item, 60.0, predictions=fields[item.spec.key]))
            item.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            item.checkpoint.write_bytes(weights(item.spec.key, 2**20))
    work = tmp_path / "there" / "work"
    for name, size in (("resume/0123456789abcdef.pt", 2**21), ("probes/a-card-bfloat16.json", 100)):
        (work / name).parent.mkdir(parents=True)
        (work / name).write_bytes(state(size) if name.endswith(".pt") else SPEEDS)
    return runs, Home(tmp_path / "out.tar", runs, tmp_path / "there" / "papers", work, frozenset(), mib=4.0)


def names(path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


def test_everything_finished_travels_in_files_within_the_limit(finished, tmp_path):
    _runs, home = finished
    assert home.write() == []
    parts = sorted(tmp_path.glob("out*.tar"))
    assert [p.name for p in parts] == ["out-2.tar", "out.tar"]
    assert all(p.stat().st_size <= 4 * 2**20 for p in parts)
    first = [n for n in names(home.target) if n != SUMS]
    assert [n.rsplit(".", 1)[1] for n in first] == ["json"] * 3 + ["npz"] * 3 + ["json"] + ["safetensors"] * 3
    assert names(tmp_path / "out-2.tar") == ["resume/0123456789abcdef.pt", SUMS]
    small = replace(home, mib=1.5)
    assert small.write() == ["resume/0123456789abcdef.pt"]
    assert len(list(tmp_path.glob("out*.tar"))) == 3
    assert replace(home, weights="none").write() == []
    assert [p.name for p in tmp_path.glob("out*.tar")] == ["out.tar"], "older parts are gone"


def test_only_weights_that_a_missing_run_starts_from_travel_and_only_records_that_are_new(finished):
    runs, home = finished
    second = [m for m in runs if m.start]
    for item in second[:2]:
        save_record(item.folder, make_record(item, 61.0))
    home.write()
    assert [n for n in names(home.target) if "checkpoints" in n] == [
        second[2].start.checkpoint.relative_to(home.root).as_posix()]
    replace(home, weights="all").write()
    assert sum("checkpoints" in n for n in names(home.target)) == 3
    replace(home, before=frozenset(path.name for path in files_by_key(home.root).values())).write()
    assert not [n for n in names(home.target) if "/results/" in n]


def test_merge_brings_all_of_it_home(finished, paper, tmp_path):
    """Elsewhere, under another paper's name: second stages can begin there without training their first again."""
    _runs, home = finished
    home.write()
    here = replace(paper, folder=toy_paper(tmp_path / "here" / "papers" / "toy").folder)
    root, mine = here.folder.parent, plan(here, "paper", columns=("cifar10-lt-100",))
    place = {link.spec.key: link.folder for m in mine for link in m.chain}
    places = {link.spec.key: RecordPlace(link.folder, link.digest) for m in mine for link in m.chain}
    totals, parts = {}, (home.target, tmp_path / "out-2.tar")
    merged = merge(parts, lambda seeds: places, root)
    assert (merged.new, merged.known, merged.refused) == (3, 0, [])
    for part in parts:
        for kind, count in bring_in(part, lambda: place, root, tmp_path / "states", tmp_path / "speeds").items():
            totals[kind] = totals.get(kind, 0) + count
    assert totals == {"weights": 3, "states": 1, "speeds": 1}
    missing = missing_runs(mine, record_files(root))
    assert [m.label for m in missing] == [m.label for m in mine if m.start]
    assert all(m.start.checkpoint.read_bytes() == weights(m.start.spec.key, 2**20) for m in missing)
    assert len(list(root.rglob("*.predictions.npz"))) == 3
    assert (tmp_path / "states" / "0123456789abcdef.pt").read_bytes() == state(2**21)
    again = bring_in(home.target, lambda: place, root, tmp_path / "states", tmp_path / "speeds")
    assert again == {"weights": 0, "states": 0, "speeds": 1}


def test_what_was_touched_or_is_foreign_is_refused_before_anything_is_written(finished, tmp_path):
    runs, home = finished
    home.write()
    target, states, speeds = tmp_path / "elsewhere", tmp_path / "states", tmp_path / "speeds"
    place = {m.spec.key: m.folder for m in runs}
    content = bytearray(home.target.read_bytes())
    at = content.find(b"__metadata__")
    content[at] ^= 1
    (tmp_path / "touched.tar").write_bytes(content)
    with pytest.raises(UserError, match="its content does not match its digest"):
        bring_in(tmp_path / "touched.tar", lambda: place, target, states, speeds)
    with pytest.raises(UserError, match="foreign"):
        bring_in(home.target, dict, target, states, speeds)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / f"{runs[0].spec.key}.safetensors").write_bytes(weights("another", 10))
    with pytest.raises(UserError, match="damaged or of another run"):
        bring_in(folder, lambda: place, target, states, speeds)
    assert not target.exists()
    assert not states.exists()
