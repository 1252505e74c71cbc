"""A parcel brings the images that its columns keep, to the last bit, and serves nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from common import checkout
from common.data.feed import Feed
from common.data.imbalance import select, set_aside
from common.data.parcel import Need, instead_of_parcel, is_parcel, pack_data, parcel_file, served_columns, unpack_data
from common.data.sets import load
from common.data.sources import prepare
from common.errors import UserError
from common.plan import with_data
from common.spec import Column
from tests.common.train.toys import METHODS, planned

LT = Column("digits", "lt", 20, "resnet8", "hash")
STEP = replace(LT, imbalance="step")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    prepare("digits", folder)
    return folder


@pytest.fixture
def parcel(whole, tmp_path) -> Path:
    pack_data("digits", [Need(LT), Need(LT, 3)], whole, tmp_path / "digits-lt.npz", {"commit": "abc", "source": "0"})
    return tmp_path / "digits-lt.npz"


def feed(folder: Path, column: Column, held_out: int = 0) -> Feed:
    return Feed(load("digits", folder), column, turns=False, device=torch.device("cpu"), dtype=torch.float32, held_out=held_out)


def test_what_a_column_keeps_arrives_to_the_last_bit(whole, parcel, tmp_path):
    said = unpack_data("digits", parcel, tmp_path)
    images, there = load("digits", tmp_path), load("digits", whole)
    kept = np.union1d(select(there.y_train, LT), set_aside(there.y_train, LT, None, 3))
    assert said["train_images"] == len(kept) == images.kept.sum() < len(images.y_train)
    assert np.array_equal(images.x_train[kept], there.x_train[kept])
    assert not images.x_train[np.setdiff1d(np.arange(len(images.y_train)), kept)].any()
    for name in ("y_train", "x_test", "y_test"):
        assert np.array_equal(getattr(images, name), getattr(there, name))
    for held_out in (0, 3):
        mine, theirs = feed(tmp_path, LT, held_out), feed(whole, LT, held_out)
        assert torch.equal(mine.padded, theirs.padded)
        assert torch.equal(mine.labels, theirs.labels)


def test_a_column_that_the_parcel_does_not_serve_is_refused_and_left_out(parcel, tmp_path, capsys):
    unpack_data("digits", parcel, tmp_path)
    with pytest.raises(UserError, match="does not hold all images of digits-step-20"):
        feed(tmp_path, STEP)
    assert served_columns("digits", tmp_path) == {replace(LT, backbone="")}
    other = replace(LT, backbone="cnn4")
    runs = [planned(METHODS[0], tmp_path, column=column) for column in (LT, STEP, other)]
    assert with_data(runs, tmp_path, Console()) == [runs[0], runs[2]]
    assert "Left out: 1 runs on 1 columns" in capsys.readouterr().out
    with pytest.raises(UserError, match="does not hold the images of digits-step-20"):
        with_data(runs[1:2], tmp_path, Console())


def test_a_parcel_is_told_from_other_files_and_refused_where_it_was_touched(whole, parcel, tmp_path):
    assert is_parcel(parcel)
    assert not is_parcel(whole / "digits.npz")
    assert not is_parcel(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds images of digits, not of mnist"):
        unpack_data("mnist", parcel, tmp_path)
    with np.load(parcel) as file:
        arrays = dict(file)
    for changed, said in (
        ({"train_0": arrays["train_1"]}, "digits-lt-20 are not those that were packed"),
        ({"test_0": arrays["test_1"]}, "test images are not the genuine ones"),
        ({"train_0": arrays["train_0"][:50]}, "is damaged"),
    ):
        np.savez(tmp_path / "touched.npz", **(arrays | changed))
        with pytest.raises(UserError, match=said):
            unpack_data("digits", tmp_path / "touched.npz", tmp_path / "here")
    parcel.write_bytes(parcel.read_bytes()[:5000])
    with pytest.raises(UserError, match="damaged"):
        unpack_data("digits", parcel, tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_the_whole_set_takes_the_place_of_a_parcel_or_leaves_it(parcel, tmp_path):
    unpack_data("digits", parcel, tmp_path)
    before = (tmp_path / "digits.npz").read_bytes()
    with pytest.raises(UserError), instead_of_parcel("digits", tmp_path):
        raise UserError("no such source")
    assert (tmp_path / "digits.npz").read_bytes() == before
    assert parcel_file("digits", tmp_path).exists()
    with instead_of_parcel("digits", tmp_path):
        prepare("digits", tmp_path)
    assert load("digits", tmp_path).kept is None
    assert served_columns("digits", tmp_path) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["digits-lt.npz", "digits.npz"]


def test_a_copy_without_its_history_knows_its_commit(tmp_path, monkeypatch):
    monkeypatch.delenv("LONGTAIL_COMMIT", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "common").mkdir()
    code = tmp_path / "common" / "a.py"
    code.write_text("a = 1\n")
    assert checkout.commit(tmp_path) == "unknown"
    (tmp_path / "data").mkdir()
    said = {"commit": "0123456789ab", "source": checkout.source_digest(tmp_path)}
    parcel_file("digits", tmp_path / "data").write_text(json.dumps(said))
    assert checkout.commit(tmp_path) == "0123456789ab"
    code.write_text("a = 2\n")
    assert checkout.commit(tmp_path) == "0123456789ab-dirty"
    monkeypatch.setenv("LONGTAIL_COMMIT", "fedcba")
    assert checkout.commit(tmp_path) == "fedcba"
