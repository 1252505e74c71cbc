"""Records: sealed, looked up by key, merged whole or not at all; files written whole or not at all."""

import errno
import json
import os
from pathlib import Path

import pytest

from common.errors import UserError
from common.methods.digest import ENGINE
from common.plan import missing_runs, plan
from common.spec import spec_key
from common.store import (
    accept,
    check_record,
    files_by_key,
    load_records,
    parse_record,
    record_files,
    save_record,
    seal,
    thin_records,
    write_atomically,
)
from tests.records import make_record, toy_paper


@pytest.fixture
def paper(tmp_path):
    return toy_paper(tmp_path / "papers" / "toy")


@pytest.fixture
def runs(paper):
    return plan(paper, "paper")


def root(paper) -> Path:
    return paper.folder.parent


def test_a_saved_record_is_found_by_its_key(paper, runs):
    record = make_record(runs[0], 71.5)
    path = save_record(runs[0].folder, record)
    assert path.name.endswith(f"-s{runs[0].spec.seed}-{runs[0].identity}.json")
    assert record_files(root(paper)) == {runs[0].identity: path}
    assert files_by_key(root(paper)) == {runs[0].spec.key: path}
    assert load_records(root(paper))[runs[0].spec.key] == record
    assert load_records(root(paper), ["0" * 16]) == {}


def test_a_record_of_other_code_is_not_found_until_its_digest_is_accepted(paper, runs):
    item, folder = runs[0], root(paper)
    old = make_record(item, 71.5, method_digest="0" * 16)
    path = save_record(item.folder, old)
    assert missing_runs([item], record_files(folder)) == [item]
    assert load_records(folder)[item.spec.key] == old
    for mine, theirs, why, said in ((item.digest, item.digest, "x", "nothing to accept"),
                                    ("0" * 16, item.digest, " ", "is empty"), ("abc", item.digest, "x", "is not a digest")):
        with pytest.raises(UserError, match=said):
            accept(folder, mine, theirs, why)
    written = accept(folder, "1" * 16, item.digest, "another pair")
    assert accept(folder, "0" * 16, "1" * 16, "the sum is written in another order") == written
    assert missing_runs([item], record_files(folder)) == []
    assert "the sum is written in another order" in written.read_text()
    new = make_record(item, 72.0)
    save_record(item.folder, new)
    assert not path.exists(), "the new record takes the place of the old one"
    assert load_records(folder) == {item.spec.key: new}


def test_a_record_of_another_engine_is_not_found(paper, runs):
    save_record(runs[0].folder, make_record(runs[0], 71.5, engine=ENGINE + 1))
    assert missing_runs(runs[:1], record_files(root(paper))) == runs[:1]


def test_of_two_records_that_a_kill_left_the_newer_counts(paper, runs):
    old = make_record(runs[0], 70.0, engine=ENGINE - 1)
    path = save_record(runs[0].folder, old)
    content = path.read_bytes()
    new = save_record(runs[0].folder, make_record(runs[0], 71.0))
    path.write_bytes(content)  # the kill came before the old one was removed
    assert files_by_key(root(paper))[runs[0].spec.key] == new


@pytest.mark.parametrize(("change", "said"), [
    ({"accuracy": {"last": 99.9, "best": 99.9, "best_epoch": 0}}, "does not match its digest"),
    ({"schema": 0}, "schema 0"),
    ({"status": "fine"}, "status"),
    ({"confusion": None}, "'confusion'"),
    ({"key": "0" * 16}, "its spec has key"),
])
def test_a_record_that_was_touched_is_refused(runs, change, said):
    record = {**make_record(runs[0], 71.5), **change}
    with pytest.raises(UserError, match=said):
        check_record(record, "here.json")


def test_a_changed_spec_is_refused_even_when_sealed_again(runs):
    record = make_record(runs[0], 71.5)
    record["spec"]["seed"] = 5
    with pytest.raises(UserError, match="its spec has key"):
        check_record(seal(record), "here.json")


def test_a_seed_that_is_no_number_is_refused_even_when_sealed(runs):
    record = make_record(runs[0], 71.5)
    record["spec"]["seed"] = "../../elsewhere"
    record["key"] = spec_key(record["spec"])
    with pytest.raises(UserError, match="its spec is not one"):
        check_record(seal(record), "here.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"3"])
def test_what_is_no_record_is_one_sentence(content):
    with pytest.raises(UserError, match=r"x\.json") as error:
        parse_record(content, "x.json")
    assert "\n" not in str(error.value)


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        write_atomically(tmp_path / "file" / "below", b"x")


def test_an_estimate_reads_of_every_record_what_it_needs_however_it_is_written(paper, runs, tmp_path):
    """A text that looks like the start of a field misleads nobody, and a file that was cut off is refused."""
    records = [make_record(run, 71.5, label='cifar10 "spec":{"made":{', made={"seconds": 20.0 + i})
               for i, run in enumerate(runs[:3])]
    paths = [save_record(run.folder, record) for run, record in zip(runs, records, strict=False)]
    paths[1].write_text(json.dumps(dict(reversed(json.loads(paths[1].read_text()).items())), indent=1))
    found = thin_records(root(paper), tmp_path / "cache.json")
    assert sorted(thin["made"]["seconds"] for thin in found) == [20.0, 21.0, 22.0]
    assert all(thin["spec"]["protocol"] == records[0]["spec"]["protocol"] for thin in found)
    assert found == thin_records(root(paper), tmp_path / "cache.json")
    paths[2].write_bytes(paths[2].read_bytes()[:-40])
    with pytest.raises(UserError, match="damaged"):
        thin_records(root(paper), tmp_path / "cache.json")
