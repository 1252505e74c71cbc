"""A run that was interrupted ends as one that was not: paused, killed, or bereft of one of two processes under torchrun."""

import json
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from common.errors import UserError
from common.train.sharded import ShardedSteps
from common.train.state import Workspace
from common.train.torchrun import LargeOptions, train_large
from tests.common.train.large_toys import CE, LONGER, member, quiet
from tests.common.train.pair import OPTIONS


def ending(planned) -> tuple[dict, dict]:
    """Weights and record of a finished run; of the record what does not name time or place."""
    record = json.loads(next(planned.folder.glob("*.json")).read_text())
    made = record.pop("made")
    record.pop("digest")
    return load_file(planned.checkpoint), record | {"processes": made["processes"]}


def assert_same(one, two) -> None:
    (weights, record), (others, other) = ending(one), ending(two)
    assert record == other
    assert weights.keys() == others.keys()
    assert all(weights[name].equal(others[name]) for name in weights)


def test_a_killed_process_costs_nothing_but_time(both):
    for rank in (0, 1):
        first, second = ((both / f"life-{life}-{rank}").read_text().splitlines() for life in (0, 1))
        batches = [f"{epoch} {number * LONGER.batch_size}" for epoch in range(2) for number in range(7)]
        assert [line for line in first if line != batches[10]] == batches[:10], "rank 0 may have begun what rank 1 did not"
        assert second == batches[10:], "it goes on where the killed one stopped"
    assert_same(member(CE, both / "killed", LONGER), member(CE, both / "whole", LONGER))


@pytest.fixture(scope="module")
def whole(miniature, tmp_path_factory):
    """A run in one go, in this process."""
    planned = member(CE, tmp_path_factory.mktemp("whole"), LONGER)
    assert train_large([planned], miniature, Workspace(planned.root / "work", 1e9), OPTIONS, quiet)
    return planned


@pytest.mark.parametrize(("save_seconds", "begins_at"), [(0.0, (1, 5)), (1e9, (1, 0))], ids=["within an epoch", "after an epoch"])
def test_a_run_that_was_killed_goes_on(save_seconds, begins_at, miniature, whole, tmp_path, monkeypatch):
    planned, seen, train_batch = member(CE, tmp_path, LONGER), Counter(), ShardedSteps.train_batch

    def watched(steps, epoch, batch):
        if (epoch, batch.span.start) == (1, 5 * LONGER.batch_size) and not seen["killed"]:
            seen["killed"] += 1
            raise KeyboardInterrupt
        seen[epoch, batch.span.start // LONGER.batch_size] += 1
        return train_batch(steps, epoch, batch)

    monkeypatch.setattr(ShardedSteps, "train_batch", watched)
    work = Workspace(tmp_path / "work", save_seconds)
    with pytest.raises(KeyboardInterrupt):
        train_large([planned], miniature, work, OPTIONS, quiet)
    assert train_large([planned], miniature, work, OPTIONS, quiet)
    twice = {place for place, times in seen.items() if times == 2}
    assert twice == {(1, b) for b in range(begins_at[1], 5)}
    assert_same(planned, whole)
    assert not list((tmp_path / "work" / "resume").rglob("*.pt"))


def test_a_deadline_pauses_within_an_epoch(miniature, whole, tmp_path, monkeypatch):
    planned = member(CE, tmp_path, LONGER)
    monkeypatch.setattr("common.train.state.DEADLINE_CHECK_EVERY", 2)
    assert not train_large([planned], miniature, Workspace(tmp_path / "work", 1e9, deadline=0.0), OPTIONS, quiet)
    assert not list(tmp_path.rglob("*.json"))
    assert train_large([planned], miniature, Workspace(tmp_path / "work", 1e9), OPTIONS, quiet)
    assert_same(planned, whole)


def test_a_state_that_does_not_fit_is_one_sentence(miniature, tmp_path, monkeypatch):
    planned, work = member(CE, tmp_path, LONGER), Workspace(tmp_path / "work", 1e9, deadline=0.0)
    monkeypatch.setattr("common.train.state.DEADLINE_CHECK_EVERY", 1)
    train_large([planned], miniature, work, OPTIONS, quiet)
    double = LargeOptions(device="cpu", precision="float64", workers=0)
    with pytest.raises(UserError, match="was begun in float32 on cpu; go on with --device cpu --precision float32, or delete it"):
        train_large([planned], miniature, work, double, quiet)
    file, = (tmp_path / "work" / "resume").glob("*.pt")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"is damaged \(.*\); delete it"):
        train_large([planned], miniature, work, OPTIONS, quiet)
    file.unlink()
    old = file.parent / "large" / f"{planned.identity}.pt"
    old.parent.mkdir()
    torch.save({"identity": planned.identity, "epoch": 1, "batch": 2, "seconds": 1.0, "images": 992}, old)
    with pytest.raises(UserError, match=r"large.*\.pt was written by another version; delete it, and its runs start again"):
        train_large([planned], miniature, work, OPTIONS, quiet)
