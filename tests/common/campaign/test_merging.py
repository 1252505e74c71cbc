"""Records that travel: the good ones are taken with their predictions, the others are listed; nothing is half-written."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from common.campaign.merging import RecordPlace, merge, pack_records
from common.errors import UserError
from common.methods.digest import ENGINE
from common.plan import plan
from common.predictions import Answers, Library, Predictions, write_predictions
from common.store import accept, files_by_key, load_records, record_files, save_record
from tests.records import make_record, toy_paper

LABELS = np.repeat(np.arange(10), 5)


@pytest.fixture
def paper(tmp_path):
    return toy_paper(tmp_path / "papers" / "toy")


@pytest.fixture
def runs(paper):
    return plan(paper, "paper")


@pytest.fixture
def places(runs):
    return {m.spec.key: RecordPlace(m.folder, m.digest) for m in runs}


def root(paper) -> Path:
    return paper.folder.parent


def finished(item, accuracy: float, folder: Path | None = None, **changes) -> dict:
    """A record with predictions beside it, in its own folder or in another."""
    folder = folder or item.folder
    answers = Answers(LABELS, LABELS, np.full(len(LABELS), item.spec.seed, np.uint8))
    fields = write_predictions(folder, {item.spec.key: Predictions(LABELS, answers)})
    record = make_record(item, accuracy, predictions=fields[item.spec.key], **changes)
    save_record(folder, record)
    return record


def as_bytes(record) -> bytes:
    return json.dumps(record).encode()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_records_travel_with_their_predictions_and_merging_twice_changes_nothing(paper, runs, places, tmp_path):
    for i, item in enumerate(runs[:3]):
        finished(item, 70.0 + i)
    tar = tmp_path / "records.tar"
    assert pack_records(runs, root(paper), tar) == (3, [])
    first = tar.read_bytes()
    pack_records(runs, root(paper), tar)
    assert tar.read_bytes() == first
    before = load_records(root(paper))
    for path in root(paper).glob("*/results/*/*/*"):
        path.unlink()
    merged = merge([tar], lambda seeds: places, root(paper))
    assert (merged.new, merged.known, merged.refused) == (3, 0, [])
    assert load_records(root(paper)) == before
    assert all(Library(root(paper)).of(record) for record in before.values())
    merged = merge([tar], lambda seeds: places, root(paper))
    assert (merged.new, merged.known, merged.refused) == (0, 3, [])


def test_what_other_code_made_is_not_packed_and_said(paper, runs, tmp_path):
    finished(runs[0], 70.0)
    old = finished(runs[1], 71.0, engine=ENGINE + 1)
    packed, left_out = pack_records(runs, root(paper), tmp_path / "records.tar")
    assert packed == 1
    assert len(left_out) == 1
    assert old["key"] in left_out[0]
    assert "other code" in left_out[0]


def test_good_records_are_taken_and_the_others_listed_with_why(paper, runs, places, tmp_path):
    there, here = tmp_path / "there", runs[3]
    good = finished(runs[0], 70.0, there)
    finished(runs[1], 71.0, there)
    damaged = next(there.glob(f"*{runs[1].identity}.json"))
    damaged.write_bytes(damaged.read_bytes().replace(b"71.0", b"72.0"))
    finished(runs[2], 72.0, there)
    foreign = {key: place for key, place in places.items() if key != runs[2].spec.key}
    finished(here, 60.0)
    finished(here, 61.0, there)
    finished(runs[4], 73.0, there, method_digest="0" * 16)
    alone = finished(runs[5], 74.0, there)
    (there / alone["predictions"]["file"]).unlink()
    merged = merge([there], lambda seeds: foreign, root(paper))
    assert merged.new == 1
    assert set(load_records(root(paper))) == {good["key"], here.spec.key}
    assert load_records(root(paper))[here.spec.key]["accuracy"]["last"] == 60.0
    reasons = ("does not match its digest", "no paper here plans the run", "differs from the record that is here",
               "made by other code", "are in none of the sources")
    assert len(merged.refused) == len(reasons)
    for reason in reasons:
        assert sum(reason in sentence for sentence in merged.refused) == 1, reason
    assert not [sentence for sentence in merged.refused if "\n" in sentence]
    assert not list(root(paper).rglob(".*"))


def test_a_fresh_record_takes_the_place_of_a_stale_one_and_its_weights_go(paper, runs, places, tmp_path):
    item = runs[0]
    old = finished(item, 60.0, method_digest="0" * 16)
    item.checkpoint.parent.mkdir(parents=True)
    item.checkpoint.write_bytes(b"of the old code")
    new = finished(item, 70.0, tmp_path / "there")
    merged = merge([tmp_path / "there"], lambda seeds: places, root(paper))
    assert (merged.new, merged.replaced, merged.refused) == (0, 1, [])
    assert load_records(root(paper)) == {item.spec.key: new}
    assert not item.checkpoint.exists()
    assert old["digest"] != new["digest"]


def test_a_record_whose_digest_was_accepted_is_taken(paper, runs, places, tmp_path):
    finished(runs[0], 70.0, tmp_path / "there", method_digest="0" * 16)
    accept(root(paper), "0" * 16, runs[0].digest, "the terms of a sum in another order")
    assert merge([tmp_path / "there"], lambda seeds: places, root(paper)).new == 1
    assert runs[0].identity in record_files(root(paper))


def test_two_different_records_of_a_run_are_both_refused(paper, runs, places, tmp_path):
    finished(runs[0], 70.0, tmp_path / "a")
    finished(runs[0], 71.0, tmp_path / "b")
    merged = merge([tmp_path / "a", tmp_path / "b"], lambda seeds: places, root(paper))
    assert merged.new == 0
    assert len(merged.refused) == 2
    assert load_records(root(paper)) == {}


def test_answers_that_are_not_the_records_own_are_refused(paper, runs, places, tmp_path):
    there = tmp_path / "there"
    record = finished(runs[0], 70.0, there)
    other = finished(runs[1], 70.0, tmp_path / "other")
    path = there / record["predictions"]["file"]
    for content, said in ((path.read_bytes()[:-200], "are damaged"),
                          ((tmp_path / "other" / other["predictions"]["file"]).read_bytes(), "are damaged")):
        path.write_bytes(content)
        merged = merge([there], lambda seeds: places, root(paper))
        assert merged.new == 0
        assert said in merged.refused[0]


@pytest.mark.parametrize(("name", "said"), [
    ("missing.tar", "does not exist"), ("cut.tar", "not a whole tar"), ("empty", "hold no record"),
])
def test_what_is_no_source_is_one_sentence(paper, runs, places, tmp_path, name, said):
    finished(runs[0], 70.0)
    pack_records(runs, root(paper), tmp_path / "whole.tar")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:300])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=said) as error:
        merge([tmp_path / name], lambda seeds: places, root(paper))
    assert "\n" not in str(error.value)


def test_a_tar_cannot_leave_its_folder(paper, runs, places, tmp_path):
    record = as_bytes(make_record(runs[0], 70.0))
    tar = write_tar(tmp_path / "evil.tar", {"../../../outside.json": record, "/tmp/absolute.json": record})
    assert merge([tar], lambda seeds: places, root(paper)).new == 1
    assert sorted(p.name for p in tmp_path.rglob("*.json")) == [files_by_key(root(paper))[runs[0].spec.key].name]
