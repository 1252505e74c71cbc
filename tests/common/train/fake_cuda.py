"""Tensors that say they are on a GPU and hold nothing: forward pass and loss of a pack are followed with them.

PyTorch works out device, type and shape of every result as on CUDA (cuDNN's operations among them). What mixes devices, reads a
value, or has a shape that depends on values is refused. There is no backward pass: autograd asks the driver for a stream.
"""

from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from common.train.device import Device
from common.train.meta import slopes_along
from common.train.resident import ResidentSteps

HOST = {"cpu_labels"}  # what stays on the host


class OnOneDevice(TorchDispatchMode):
    """Refuses any operation that reads or makes a tensor of the host; with `zeros` a 0-d one is allowed: forward mode has one,
    without memory, for the slope of each number."""

    def __init__(self, zeros: bool = False):
        super().__init__()
        self.zeros = zeros

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        for tensor in tree_leaves((arguments, named, result)):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu" and (tensor.dim() or not self.zeros):
                raise RuntimeError(f"{function} reads or makes a tensor of the host")
        return result


def follow(steps: ResidentSteps) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and losses of a CPU pack's first batch, as fake tensors of a GPU in bfloat16. `begin_epoch` comes before; the
    pack is of no use afterwards."""
    available = mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", return_value=False)
    supported = mock.patch.object(torch.cuda, "is_bf16_supported", return_value=True)
    with FakeTensorMode() as mode, torch.no_grad(), available, supported:
        _move(steps, mode)
        steps.pack.device, steps.feed.dtype = Device("cuda:0", "bfloat16", False), torch.bfloat16
        drawn = steps.batches()[0]
        with OnOneDevice(zeros=True):
            learned = _slopes(steps, drawn) if steps.learns_weights else None
        with OnOneDevice():
            features, losses = steps.features_and_losses(drawn, learned)
            steps.pack.move_centres(features, drawn)
    return features, losses


def _slopes(steps: ResidentSteps, drawn) -> torch.Tensor:
    """The pass of learned weights that goes forward; the direction is of no account here."""
    whole = steps.whole()
    parameters, buffers = dict(whole.named_parameters()), dict(whole.named_buffers())
    return slopes_along(whole, {n: torch.empty_like(p) for n, p in parameters.items()}, parameters, buffers,
                        steps.feed.batch(drawn.images), steps.feed.labels[drawn.images[0]])


def _move(steps: ResidentSteps, mode: FakeTensorMode) -> None:
    def fake(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        return torch.empty_strided(value.size(), value.stride(), dtype=dtype, device="cuda")

    for module in (*steps.pack.net.modules(), *steps.pack.heads.modules()):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(fake(parameter), requires_grad=False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = fake(buffer)
    for owner in (steps.pack, steps.feed):
        for name, value in vars(owner).items():
            if name not in HOST and not isinstance(value, nn.Module):
                setattr(owner, name, tree_map(fake, value))
