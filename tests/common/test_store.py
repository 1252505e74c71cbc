"""Records: sealed, looked up by key, merged whole or not at all; files written whole or not at all."""

import errno
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from common.digest import ENGINE
from common.errors import UserError
from common.method import missing_runs, plan
from common.spec import spec_key
from common.store import (
    accept,
    check_record,
    files_by_key,
    load_records,
    merge,
    pack_records,
    parse_record,
    record_files,
    save_record,
    seal,
    write_atomically,
)
from tests.records import make_record, toy_paper


@pytest.fixture
def paper(tmp_path):
    return toy_paper(tmp_path / "papers" / "toy")


@pytest.fixture
def runs(paper):
    return plan(paper, "paper")


@pytest.fixture
def places(runs):
    return {m.run.key: m.folder for m in runs}


def root(paper) -> Path:
    return paper.folder.parent


def as_bytes(record) -> bytes:
    return json.dumps(record).encode()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_a_saved_record_is_found_by_its_key(paper, runs):
    record = make_record(runs[0], 71.5)
    path = save_record(runs[0].folder, record)
    assert path.name.endswith(f"-s{runs[0].run.seed}-{runs[0].identity}.json")
    assert record_files(root(paper)) == {runs[0].identity: path}
    assert files_by_key(root(paper)) == {runs[0].run.key: path}
    assert load_records(root(paper))[runs[0].run.key] == record
    assert load_records(root(paper), ["0" * 16]) == {}


def test_a_record_of_other_code_is_not_found_until_its_digest_is_accepted(paper, runs):
    item, folder = runs[0], root(paper)
    old = make_record(item, 71.5, method_digest="0" * 16)
    path = save_record(item.folder, old)
    assert missing_runs([item], record_files(folder)) == [item]
    assert load_records(folder)[item.run.key] == old
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
    assert load_records(folder) == {item.run.key: new}


def test_a_record_of_another_engine_is_not_found(paper, runs):
    save_record(runs[0].folder, make_record(runs[0], 71.5, engine=ENGINE + 1))
    assert missing_runs(runs[:1], record_files(root(paper))) == runs[:1]


def test_of_two_records_that_a_kill_left_the_newer_counts(paper, runs):
    old = make_record(runs[0], 70.0, engine=ENGINE - 1)
    path = save_record(runs[0].folder, old)
    content = path.read_bytes()
    new = save_record(runs[0].folder, make_record(runs[0], 71.0))
    path.write_bytes(content)  # the kill came before the old one was removed
    assert files_by_key(root(paper))[runs[0].run.key] == new


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


def test_records_travel_and_merging_twice_changes_nothing(paper, runs, places, tmp_path):
    for i, item in enumerate(runs[:3]):
        save_record(item.folder, make_record(item, 70.0 + i))
    tar = tmp_path / "records.tar"
    assert pack_records(root(paper), tar) == 3
    first = tar.read_bytes()
    pack_records(root(paper), tar)
    assert tar.read_bytes() == first
    before = load_records(root(paper))
    for path in record_files(root(paper)).values():
        path.unlink()
    assert merge(tar, lambda seeds: places, root(paper)) == {"new": 3, "known": 0}
    assert load_records(root(paper)) == before
    assert merge(tar, lambda seeds: places, root(paper)) == {"new": 0, "known": 3}


def refused(source: Path, paper, places, said: str) -> None:
    before = record_files(root(paper))
    with pytest.raises(UserError, match=said) as error:
        merge(source, lambda seeds: places, root(paper))
    assert "\n" not in str(error.value)
    assert record_files(root(paper)) == before


def test_merge_is_all_or_nothing(paper, runs, places, tmp_path):
    good, other = make_record(runs[0], 70.0), make_record(runs[1], 71.0)
    damaged = as_bytes(other).replace(b"71.0", b"72.0")
    refused(write_tar(tmp_path / "a.tar", {"good.json": as_bytes(good), "damaged.json": damaged}), paper, places, "damaged.json")
    foreign = {k: v for k, v in places.items() if k != runs[1].run.key}
    both = {"good.json": as_bytes(good), "other.json": as_bytes(other)}
    refused(write_tar(tmp_path / "b.tar", both), paper, foreign, "foreign")
    save_record(runs[0].folder, make_record(runs[0], 69.0))
    refused(write_tar(tmp_path / "c.tar", {"good.json": as_bytes(good)}), paper, places, "differ from those that are here")
    (tmp_path / "d.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:700])
    refused(tmp_path / "d.tar", paper, places, "not a whole tar|damaged")
    refused(tmp_path / "missing.tar", paper, places, "does not exist")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", paper, places, "holds no record")


def test_a_tar_cannot_leave_its_folder(paper, runs, places, tmp_path):
    record = as_bytes(make_record(runs[0], 70.0))
    tar = write_tar(tmp_path / "evil.tar", {"../../../outside.json": record, "/tmp/absolute.json": record})
    assert merge(tar, lambda seeds: places, root(paper))["new"] == 1
    assert sorted(p.name for p in tmp_path.rglob("*.json")) == [next(iter(record_files(root(paper)).values())).name]


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
