"""CIFAR ResNets (He et al., 2016) of M runs packed into one network: convolutions with groups=M.

Channels of run m are [m * c, (m + 1) * c) of every feature map. Batch normalisation is per channel already, so a run
of a pack computes what it computes alone. One run (M = 1) is the plain network.

Option-A shortcuts: where the shape changes, every second pixel and zero-padded channels, no parameters. ReLU after
the addition; global average pool. Initialisation: as the released LDAM code has it, see `initialise`.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.models.pooling import Pooling, batch_norm, full_precision
from common.models.sizes import Residual


class Block(nn.Module):
    """conv3x3-BN-ReLU-conv3x3-BN + shortcut, ReLU, of `runs` runs."""

    def __init__(self, c_in: int, c_out: int, stride: int, runs: int, projection: bool = False):
        super().__init__()
        self.runs, self.c_in, self.c_out, self.stride = runs, c_in, c_out, stride
        self.conv1 = nn.Conv2d(c_in * runs, c_out * runs, 3, stride, 1, groups=runs, bias=False)
        self.bn1 = batch_norm(c_out * runs)
        self.conv2 = nn.Conv2d(c_out * runs, c_out * runs, 3, 1, 1, groups=runs, bias=False)
        self.bn2 = batch_norm(c_out * runs)
        self.projection = nn.Sequential(
            nn.Conv2d(c_in * runs, c_out * runs, 1, stride, groups=runs, bias=False), batch_norm(c_out * runs),
        ) if projection and c_in != c_out else None

    def shortcut(self, x: Tensor) -> Tensor:
        if self.c_in == self.c_out:
            return x
        if self.projection is not None:
            return self.projection(x)
        x = x[:, :, ::2, ::2]
        n, _, h, w = x.shape
        pad = (self.c_out - self.c_in) // 2
        x = F.pad(x.reshape(n, self.runs, self.c_in, h, w), (0, 0, 0, 0, pad, pad))
        return x.reshape(n, self.runs * self.c_out, h, w)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class PackedResNet(nn.Module):
    """Images [batch, runs * channels, height, width] -> features [runs, batch, copies * width]; see `Pooling`."""

    def __init__(self, shape: Residual, runs: int, channels: int = 3, adapter: int = 0, shifted: bool = False):
        super().__init__()
        self.runs, width = runs, shape.width
        self.conv = nn.Conv2d(channels * runs, width * runs, 3, 1, 1, groups=runs, bias=False)
        self.bn = batch_norm(width * runs)
        layers, c_in = [], width
        for stage in range(shape.stages):
            c_out = width << stage
            for i in range(shape.blocks):
                layers.append(Block(c_in, c_out, 2 if stage and i == 0 else 1, runs, shape.projection))
                c_in = c_out
        self.blocks = nn.Sequential(*layers)
        self.tail = Pooling(runs, c_in, adapter, shifted)
        self.width, self.copies = self.tail.width, self.tail.copies

    def forward(self, x: Tensor, stream: int | None = None) -> Tensor:
        """`stream` is of no account here; see `PackedBilateral`."""
        return self.tail(self.blocks(F.relu(self.bn(self.conv(x)))))


class PackedBilateral(PackedResNet):
    """A ResNet whose last block is there twice, side by side (Zhou et al., 2020).

    Given the stream, images go through its branch: features [runs, batch, width / 2]; else through both, branch 0 first:
    [runs, batch, width].
    """

    def __init__(self, shape: Residual, runs: int, channels: int = 3):
        super().__init__(shape, runs, channels)
        last = self.blocks[-1]
        self.blocks = self.blocks[:-1]
        self.branches = nn.ModuleList([last, Block(last.c_in, last.c_out, last.stride, runs, shape.projection)])
        self.width *= 2

    def forward(self, x: Tensor, stream: int | None = None) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        branches = self.branches if stream is None else [self.branches[stream]]
        return torch.cat([self.tail(branch(x)) for branch in branches], -1)


@torch.no_grad()
def initialise(net: nn.Module, generators: Sequence[torch.Generator]) -> None:
    """Draw the weights of run m from generators[m], layer by layer, so that a run starts alike in every pack: kaiming_normal
    (fan-in, gain sqrt 2), or what a chain of layers says (`common.models.sizes`). Biases are zero, batch normalisation (1, 0)."""
    xavier = getattr(net, "weights", "kaiming") == "xavier"
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            parts, fan_in = module.weight.chunk(len(generators)), module.weight[0].numel()
        elif isinstance(module, PackedFull):
            parts, fan_in = module.weight, module.weight.shape[1]
        else:
            continue
        for weight, generator in zip(parts, generators, strict=True):
            if xavier:
                weight.copy_((torch.rand(weight.shape, generator=generator) * 2 - 1) * math.sqrt(3 / fan_in))
            else:
                weight.copy_(torch.randn(weight.shape, generator=generator) * math.sqrt(2 / fan_in))
        if module.bias is not None:
            module.bias.zero_()


class PackedFull(nn.Module):
    """A fully connected layer of M runs: [runs, batch, c_in] -> [runs, batch, c_out], in the precision of its weights."""

    def __init__(self, runs: int, c_in: int, c_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(runs, c_in, c_out))
        self.bias = nn.Parameter(torch.zeros(runs, 1, c_out))

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x):
            return torch.baddbmm(self.bias, x.to(self.weight.dtype), self.weight)
