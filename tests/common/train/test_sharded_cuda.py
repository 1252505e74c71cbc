"""The large path on a GPU: the steps of the CPU, bfloat16 that learns, compiled and not. Skipped without one."""

import dataclasses

import pytest
import torch

from common.data.lists import load_large
from common.store import load_records
from common.train.device import Device
from common.train.distributed import Ranks
from common.train.loop import train_epoch
from common.train.sharded import ShardedSteps
from common.train.state import Workspace
from common.train.torchrun import LargeOptions, train_large
from tests.common.train.large_toys import CE, COLUMN, LONGER, PROTOCOL, cases, member, quiet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def mean_losses(method, data, device: Device, protocol=PROTOCOL) -> torch.Tensor:
    """The mean loss of an epoch's first batches."""
    steps = ShardedSteps(member(method, data, protocol), load_large(COLUMN.dataset, data), device, Ranks(), data, workers=0)
    steps.get_ready()
    return train_epoch(steps, 0)


@pytest.mark.parametrize("name", ["ce", "mixup and noise", "two heads", "gaussian"])
def test_an_epoch_on_a_gpu_is_that_of_the_cpu(name, miniature):
    case = cases()[name]
    wanted = mean_losses(case.method, miniature, Device("cpu", "float64", False), case.protocol)
    found = mean_losses(case.method, miniature, Device("cuda:0", "float64", False), case.protocol)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("compile_it", [False, True], ids=["eager", "compiled"])
def test_a_run_in_bfloat16_learns(compile_it, miniature, tmp_path):
    planned = [member(CE, tmp_path, dataclasses.replace(LONGER, epochs=3))]
    options = LargeOptions("cuda:0", "bfloat16", compile_it, None, 2)
    assert train_large(planned, miniature, Workspace(tmp_path / "work", 1e9), options, quiet)
    record = load_records(tmp_path)[planned[0].spec.key]
    losses = record["curves"]["train_loss"]
    assert losses[-1] < losses[0]
    assert record["made"]["device_type"] == "cuda"
    assert record["made"]["images_per_second"] > 0
