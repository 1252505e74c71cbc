"""What a method's parts have to be: each fault is one sentence before the first step, and a sound method is left as it is."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.methods.losses import softmax_cross_entropy
from common.methods.method import Method
from common.train.device import Device
from common.train.loop import train_epoch, train_pack
from common.train.resident import ResidentSteps
from common.train.state import Workspace
from tests.common.train.kinds import CAUSAL, CLOUDED, MEANS
from tests.common.train.toys import METHODS, PROTOCOL, planned

CPU = Device("cpu", "float32", False)
CE = METHODS[0]


def averaged(outputs, labels, context):
    return softmax_cross_entropy(outputs, labels, context).mean()


def for_each_run(outputs, labels, context):
    return softmax_cross_entropy(outputs, labels, context).mean(-1, keepdim=True)


def no_tensor(outputs, labels, context):
    return 0.5


def infinite(outputs, labels, context):
    return softmax_cross_entropy(outputs, labels, context) / 0


def some_weights(counts, epoch, *, numbers: int, value: float = 1.0):
    return np.full(numbers, value)


def late_weights(counts, epoch):
    """Right in the first epoch, one too many after the decay."""
    return np.ones(len(counts) + (epoch >= 2))


def words(counts, epoch):
    return "often"


def halves(counts, epoch):
    return np.full(len(counts), 0.5)


def matrix(counts):
    return np.ones((len(counts), 2))


@pytest.mark.parametrize(("change", "said"), [
    ({"loss": averaged}, r"its loss returns \(\) for labels of shape \(1, 50\)"),
    ({"loss": for_each_run}, r"its loss returns \(1, 1\)"),
    ({"loss": no_tensor}, "its loss returns float"),
    ({"loss": infinite}, "on the very first batch"),
    ({"weights": partial(some_weights, numbers=3)}, "weights gives 3 numbers in epoch 0; 10 numbers are needed"),
    ({"weights": late_weights}, "weights gives 11 numbers in epoch 2"),
    ({"weights": partial(some_weights, numbers=10, value=-1.0)}, "not finite, below 0 or all 0"),
    ({"weights": partial(some_weights, numbers=10, value=float("nan"))}, "not finite, below 0 or all 0"),
    ({"sampler": words}, "its sampler says 'often'"),
    ({"sampler": halves}, "add up to 5 in epoch 0"),
    ({"sampler": partial(some_weights, numbers=1)}, "sampler gives 1 numbers"),
    ({"adjust": matrix}, r"adjust gives an array of shape \(10, 2\)"),
])
def test_what_a_part_must_not_be_is_one_sentence_before_the_first_step(change, said, digits, tmp_path):
    bad = replace(Method("mine", "written", softmax_cross_entropy), **change)
    with pytest.raises(UserError, match=said) as error:
        train_pack([planned(CE, tmp_path), planned(bad, tmp_path)] if "loss" not in change else [planned(bad, tmp_path)],
                   digits, CPU, Workspace(tmp_path / "work", 30.0))
    assert "mine@written" in str(error.value) or "mine" in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("methods", [[CE], [CAUSAL], [CLOUDED], [MEANS]], ids=lambda m: m[0].name)
def test_the_look_at_the_first_batch_changes_nothing(methods, digits, tmp_path):
    members = [planned(m, tmp_path, 0, m.protocol or PROTOCOL) for m in methods]
    looked, plain = (ResidentSteps(members, digits, CPU) for _ in range(2))
    looked.check_first_batch()
    losses = [train_epoch(steps, 0) for steps in (looked, plain)]
    assert torch.equal(*losses)
    for name, tensor in plain.pack.state().items():
        assert torch.equal(looked.pack.state()[name], tensor), name
