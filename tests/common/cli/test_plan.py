"""What `plan` says of the time that is needed."""

from argparse import Namespace
from dataclasses import replace

import pytest

from common.cli import main
from common.cost import Speed
from common.plan import plan
from common.spec import Column
from tests.records import toy_paper


def test_a_device_that_knows_some_of_the_networks_says_how_many(tmp_path, monkeypatch):
    paper = toy_paper(tmp_path)
    other = Column("cifar100", "lt", 100, "vgg16")
    paper = replace(paper, columns=paper.columns | {"paper": (*paper.columns["paper"], other)})
    runs = plan(paper, "paper")
    known = [m for m in runs if m.spec.column.backbone == "resnet32"]
    assert 0 < len(known) < len(runs)
    monkeypatch.setattr(main, "thin_records", lambda root, cache: [])
    one = {1: 1e-3}
    devices = {"new": Speed({"resnet32": one, "vgg16": one}), "old": Speed({"resnet32": one}), "other": Speed({"resnet8": one})}
    monkeypatch.setattr(main, "speeds", lambda records, *folders: devices)
    said = main._expected([paper], runs)
    whole, part = said.removeprefix("Expected: ").removesuffix(".").split("; ")
    assert whole.endswith(" on new")
    assert part.endswith(f" on old for {len(known)} of them, the others unknown")
    monkeypatch.setattr(main, "speeds", lambda records, *folders: {"other": devices["other"]})
    assert main._expected([paper], runs) == "No device has trained such networks here yet, so the time is unknown."
    assert main._expected([paper], []) == ""


@pytest.mark.parametrize("option", ["column", "columns"])  # of train and its like, and of campaign
def test_a_named_column_says_which_profile_is_meant(tmp_path, option):
    """Without a GPU, too."""
    paper = toy_paper(tmp_path)
    for profile, columns in paper.columns.items():
        assert main.profile_of([paper], Namespace(profile=None, **{option: [columns[0].name]})) == profile
