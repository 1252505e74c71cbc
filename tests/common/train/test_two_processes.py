"""Two processes train as one: the same losses and weights to rounding, for every kind of method, and the same counts."""

import pytest
import torch

from common.train.distributed import Ranks
from tests.common.train.large_toys import cases, train_steps

COUNTS = {"hits", "tested", "near"}


@pytest.fixture(scope="module")
def two(both) -> dict[str, dict[str, torch.Tensor]]:
    return torch.load(both / "cases.pt")


@pytest.mark.parametrize("name", cases())
def test_two_processes_train_as_one(name, two, miniature):
    case = cases()[name]
    one = train_steps(case, miniature, Ranks(), case.per_device[1])
    assert set(one) == set(two[name])
    for key, tensor in one.items():
        if case.protocol.batch_norm == "device" and case.protocol.trains == "all" and "running" in key:
            continue  # rank 0's half
        if key in COUNTS:
            assert torch.equal(tensor, two[name][key]), key
        else:
            torch.testing.assert_close(two[name][key], tensor, rtol=1e-8, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")
