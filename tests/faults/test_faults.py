"""What goes wrong around the program: one sentence that names the thing and the way out, exit code 2, and nothing lost."""

import ctypes
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path

import pytest

from common.store import files_by_key, save_record, seal
from tests.faults.trials import CAMPAIGN, TRAIN, trained, unwhole, wait, with_digits
from tests.faults.world import World, differences, ending, run, start, tree

NO_CAPABILITIES = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # version 3, three empty sets


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> World:
    """A checkout with prepared digits."""
    world = World(tmp_path_factory.mktemp("digits") / "world").make()
    with_digits(world)
    return world


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> World:
    """A checkout in which all is trained, with its tar of records."""
    world = World(tmp_path_factory.mktemp("done") / "world").make()
    trained(world)
    assert run(world, "pack-records", "out/records.tar", "--profile", "quick")[0] == 0
    return world


def refused(world: World, *command: str, says: str, **how) -> str:
    """The one sentence with which the command ends; what was here is as before."""
    before = tree(world)
    code, said = run(world, *command, **how)
    assert code == 2, said
    assert "Traceback" not in said
    sentence, = (line for line in said.splitlines() if line.startswith("error:"))
    assert says in sentence
    assert sentence.rstrip().endswith(".")
    assert stored(tree(world)) == stored(before)
    return sentence


def stored(files: dict[str, bytes]) -> dict[str, bytes]:
    """Of a checkout's files the data, the records and what lies with them, and what was written for others."""
    return {name: content for name, content in files.items()
            if {"results", "checkpoints", "data", "out"} & set(Path(name).parts) and not name.startswith("results/")}


def full_disk(size: int):
    """No file may grow beyond so many bytes, as on a disk that is full."""
    def limit() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


@pytest.mark.parametrize(("command", "size"), [(TRAIN, 20_000), (("pack-records", "out/again.tar", "--profile", "quick"), 5_000),
                                               (("export", "--to", "out/weights", "--profile", "quick"), 20_000),
                                               (("report",), 1_000), (("prepare", "digits"), 50_000)], ids=lambda v: str(v)[:9])
def test_a_full_disk(command, size, digits, done, tmp_path):
    world = (digits if command is TRAIN else done).copy(tmp_path / "world")
    if command[0] == "prepare":
        (world.root / "data" / "digits.npz").unlink()
    code, said = run(world, *command, before=full_disk(size))
    assert code == 2, said
    assert "Traceback" not in said
    assert "free some space" in said
    assert not unwhole(world)
    assert run(world, *command)[0] == 0


def test_a_full_disk_in_the_middle_of_a_merge_leaves_whole_files_and_the_next_one_ends_it(done, tmp_path):
    world = World(tmp_path / "world").make()
    code, said = run(world, "merge", str(done.root / "out" / "records.tar"), before=full_disk(3_000))
    assert (code, "free some space" in said) == (2, True)
    assert not unwhole(world)
    assert run(world, "merge", str(done.root / "out" / "records.tar"))[0] == 0
    assert len(files_by_key(world.root / "papers")) == 6


def as_anyone() -> None:
    """Root without its powers, so that the modes of folders hold for it too."""
    ctypes.CDLL(None, use_errno=True).capset(*NO_CAPABILITIES)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's capabilities")
@pytest.mark.parametrize("command", [TRAIN, ("report",), ("merge", "out/records.tar"), ("campaign", "--profile", "quick"),
                                     ("export", "--to", "out/w", "--profile", "quick")], ids=lambda c: c[0])
def test_folders_that_may_only_be_read(command, digits, done, tmp_path):
    world = (digits if command[0] in ("train", "campaign", "merge") else done).copy(tmp_path / "world")
    if command[0] == "merge":
        shutil.copy(done.root / "out" / "records.tar", world.root / "out")
    for folder in (world.root, *(p for p in world.root.rglob("*") if p.is_dir())):
        folder.chmod(0o555)
    sentence = refused(world, *command, says="(Permission denied)", before=as_anyone)
    assert "writable" in sentence
    for folder in (world.root, *(p for p in world.root.rglob("*") if p.is_dir())):
        folder.chmod(0o755)


@pytest.mark.parametrize(("place", "command"), [
    ("papers/toy/results", TRAIN), (".work/resume", TRAIN), ("report/index.html", ("report",)),
    ("out/new.tar", ("pack-records", "out/new.tar", "--profile", "quick")),
    ("data/mnist.npz", ("prepare", "mnist", "--from", "out")),
], ids=lambda v: v if isinstance(v, str) else "")
def test_a_folder_where_a_file_should_be_and_a_file_where_a_folder_should(place, command, digits, done, tmp_path):
    world = (digits if command is TRAIN else done).copy(tmp_path / "world")
    path = world.root / place
    if command is TRAIN:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("in the way")
    else:
        (path / "in the way").mkdir(parents=True)
    if command[0] == "train":
        code, said = run(world, *command)
        assert code == 2, said
        assert "Traceback" not in said
        assert path.read_text() == "in the way"
    else:
        refused(world, *command, says=Path(place).name if command[0] != "prepare" else "mnist")


def test_a_folder_in_the_place_of_a_record(done, tmp_path):
    world = done.copy(tmp_path / "world")
    path = min(world.root.glob("papers/toy/results/*/*/*.json"))
    path.unlink()
    path.mkdir()
    refused(world, "report", says="cannot be read (Is a directory)")


def test_a_clock_that_goes_backwards_keeps_the_new_record(done, tmp_path):
    """The record of today's code stays, though the file of the old one is of next year."""
    world = done.copy(tmp_path / "world")
    path = min(world.root.glob("papers/toy/results/*/*/*ce@*.json"))
    record = json.loads(path.read_text())
    path.unlink()
    old = save_record(path.parent, seal({**record, "method_digest": "0" * 16}))
    os.utime(old, (time.time() + 3e7,) * 2)
    code, said = run(world, *TRAIN)
    assert code == 0, said
    assert not old.exists()
    assert path.exists()
    assert run(world, *TRAIN)[1].count("nothing to train") == 1


def test_records_of_one_run_in_two_papers_become_one(done, tmp_path):
    world = done.copy(tmp_path / "world")
    path = min(world.root.glob("papers/toy/results/*/*/*ce@*.json"))
    record = json.loads(path.read_text())
    other = world.root / "papers" / "other" / "results" / "quick" / "digits-lt-20"
    stale = save_record(other, seal({**record, "method_digest": "0" * 16}))
    os.utime(stale, (time.time() + 3e7,) * 2)
    shutil.rmtree(world.root / "papers" / "toy" / "checkpoints")
    (min(world.root.glob("papers/toy/results/*/*/*own@*.json"))).unlink()
    assert run(world, *TRAIN)[0] == 0
    assert not stale.exists()
    assert path.exists()


def test_two_campaigns_in_one_folder(digits, tmp_path):
    world = digits.copy(tmp_path / "world")
    first = start(world, ("campaign", "--profile", "quick", "--seeds", "8"), said=tmp_path / "first")
    lock = world.root / ".work" / "campaign.lock"
    while not (lock.exists() and lock.read_text()):
        time.sleep(0.01)
    sentence = refused_while(world, "campaign", "--profile", "quick")
    assert f"Another campaign (process {first}) works in" in sentence
    assert "--device cuda:0,cuda:1" in sentence
    assert wait(first, 60.0) == 0
    assert run(world, "campaign", "--profile", "quick")[0] == 0


def refused_while(world: World, *command: str) -> str:
    code, said = run(world, *command, said=world.root.with_suffix(".second"))
    assert code == 2, said
    return next(line for line in said.splitlines() if line.startswith("error:"))


def test_two_trainings_in_one_folder_end_with_the_bits_of_one(digits, done, tmp_path):
    world = digits.copy(tmp_path / "world")
    children = [start(world, TRAIN, said=tmp_path / f"said-{i}") for i in range(2)]
    assert [wait(child, 60.0) for child in children] == [0, 0], [(tmp_path / f"said-{i}").read_text()[-800:] for i in range(2)]
    assert run(world, *TRAIN)[0] == 0
    assert [d for d in differences(ending(done), ending(world)) if not d.startswith("out/")] == []


def test_two_campaigns_on_one_machine_end_with_the_bits_of_one_alone(digits, done, tmp_path):
    worlds = [digits.copy(tmp_path / name) for name in ("one", "other")]
    children = [start(world, CAMPAIGN, said=tmp_path / f"said-{i}") for i, world in enumerate(worlds)]
    assert [wait(child, 60.0) for child in children] == [0, 0], [(tmp_path / f"said-{i}").read_text()[-800:] for i in range(2)]
    for world in worlds:
        assert [d for d in differences(ending(done), ending(world)) if not d.startswith("out/")] == []


def test_two_machines_that_differ_about_a_run(done, tmp_path):
    world = done.copy(tmp_path / "world")
    path = min(world.root.glob("papers/toy/results/*/*/*ce@*.json"))
    record = json.loads(path.read_text())
    there = tmp_path / "there"
    other = save_record(there, {**record, "accuracy": {**record["accuracy"], "last": 12.5}})
    shutil.copy(path.parent / record["predictions"]["file"], there)
    before = tree(world)
    code, said = run(world, "merge", str(other))
    assert code == 2, said
    assert "differs from the record that is here under the same key; remove one of them" in said
    assert stored(tree(world)) == stored(before)


def test_a_record_of_a_newer_version(done, tmp_path):
    world = done.copy(tmp_path / "world")
    path = min(world.root.glob("papers/toy/results/*/*/*ce@*.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 3}))
    refused(world, "report", says="was written by a newer version (record schema 3; this one reads 2): update this checkout")


def test_training_never_replaces_a_record_of_a_newer_engine(done, tmp_path):
    world = done.copy(tmp_path / "world")
    path = min(world.root.glob("papers/toy/results/*/*/*ce@*.json"))
    record = json.loads(path.read_text())
    path.unlink()
    newer = save_record(path.parent, seal({**record, "engine": record["engine"] + 1}))
    refused(world, *TRAIN, says=f"{newer.name} was made by a newer version")


def test_what_a_killed_write_left_goes_with_a_later_one(digits, tmp_path):
    world = digits.copy(tmp_path / "world")
    (world.root / "data" / "digits.npz").unlink()
    old, young = (world.root / "data" / f".digits.npz.{name}" for name in ("abcd1234", "efgh5678"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    assert run(world, "prepare", "digits")[0] == 0
    assert (old.exists(), young.exists()) == (False, True)
