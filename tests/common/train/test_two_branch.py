"""A network whose two last blocks see the same images: it trains and is tested with both, under any head."""

from dataclasses import replace

import pytest
import torch

from common.methods.method import Net
from common.train.device import Device
from common.train.resident import ResidentSteps
from tests.common.train.kinds import CAUSAL, QUADRATIC
from tests.common.train.toys import METHODS, planned

DOUBLE = Device("cpu", "float64", False)


@pytest.mark.parametrize("method", [METHODS[0], CAUSAL, QUADRATIC], ids=lambda m: m.name)
def test_both_branches_are_trained_and_tested_on_one_stream(method, digits, tmp_path):
    steps = ResidentSteps([planned(replace(method, net=Net("two-branch")), tmp_path)], digits, DOUBLE)
    before = [[p.detach().clone() for p in branch.parameters()] for branch in steps.pack.net.branches]
    assert not torch.equal(before[0][0], before[1][0])
    assert steps.pack.net.width == steps.pack.heads[0].weight.shape[1]
    steps.begin_epoch(0)
    batch = steps.batches()[0]
    images = steps.feed.batch(batch.images)
    features = steps.pack.net(images)
    assert features.shape[-1] == steps.pack.net.width
    torch.testing.assert_close(features, torch.cat([steps.pack.net(images, k) for k in (0, 1)], -1))
    steps.step(batch)
    for branch, weights in zip(steps.pack.net.branches, before, strict=True):
        assert all(not torch.equal(p, w) for p, w in zip(branch.parameters(), weights, strict=True))
    assert int(steps.evaluate()[0].confusion.sum()) == len(digits.y_test)
