"""Backbones by name, of M runs packed into one network: ResNets, MobileNets, and plain chains of layers."""

from torch import Tensor, nn

from common.errors import UserError
from common.models.mobile import PackedMobile
from common.models.pooling import Pooling, batch_norm
from common.models.resnet import PackedBilateral, PackedFull, PackedResNet
from common.models.sizes import BACKBONES, Mobile, Plain, Residual


class PackedPlain(nn.Module):
    """Images [batch, runs * channels, side, side] -> features [runs, batch, copies * width], through the layers of a `Plain`.

    A convolution has no bias where batch normalisation follows at once; a PReLU has a slope for each channel.
    """

    def __init__(self, shape: Plain, runs: int, channels: int, side: int, adapter: int = 0, shifted: bool = False):
        super().__init__()
        self.runs, self.copies, self.weights, layers = runs, 1, shape.weights, []
        following = [kind for kind, *_ in shape.layers[1:]] + [""]
        for (kind, *numbers), then in zip(shape.layers, following, strict=True):
            if kind == "conv":
                width, kernel, pad = numbers
                layers.append(nn.Conv2d(channels * runs, width * runs, kernel, 1, pad, groups=runs, bias=then != "norm"))
                channels, side = width, side + 2 * pad - kernel + 1
            elif kind == "norm":
                layers.append(batch_norm(channels * runs) if side > 0 else PackedNorm(channels, runs))
            elif kind == "pool":
                layers.append(nn.MaxPool2d(2))
                side //= 2
            elif kind == "mean":
                tail = Pooling(runs, channels, adapter, shifted)
                layers.append(tail)
                channels, side, self.copies = tail.width, 0, tail.copies
            elif kind == "full":
                layers += [Flatten(runs)] if side else []
                layers.append(PackedFull(runs, channels * max(side, 1) ** 2, numbers[0]))
                channels, side = numbers[0], 0
            else:
                layers.append(nn.ReLU() if kind == "relu" else PackedPReLU(channels, runs))
        self.layers, self.width = nn.Sequential(*layers), channels

    def forward(self, x: Tensor, stream: int | None = None) -> Tensor:
        return self.layers(x)


class PackedNorm(nn.Module):
    """Batch normalisation of dense features [runs, batch, width], for each run by itself."""

    def __init__(self, width: int, runs: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(width * runs)
        self.norm.num_batches_tracked = None

    def forward(self, x: Tensor) -> Tensor:
        runs, batch, width = x.shape
        return self.norm(x.transpose(0, 1).reshape(batch, runs * width)).reshape(batch, runs, width).transpose(0, 1)


class PackedPReLU(nn.Module):
    """max(x, 0) + a min(x, 0) with a learned a for each channel, 0.25 at first; on maps or on dense features."""

    def __init__(self, channels: int, runs: int):
        super().__init__()
        self.slope = nn.Parameter(nn.PReLU(channels * runs).weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        slope = self.slope[:, None, None] if x.dim() == 4 else self.slope.reshape(len(x), 1, -1)
        return x.clamp(min=0) + slope * x.clamp(max=0)


class Flatten(nn.Module):
    """Maps -> all their values, [runs, batch, channels * side * side]."""

    def __init__(self, runs: int):
        super().__init__()
        self.runs = runs

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.runs, -1).transpose(0, 1)


def backbone(name: str, runs: int, channels: int = 3, network: str = "plain", side: int = 32, adapter: int = 0) -> nn.Module:
    """The packed backbone of that name in `BACKBONES`: images [batch, runs * channels, side, side] -> features [runs, batch,
    copies * width].

    network: "bilateral" and "two-branch" give a ResNet its last block twice, for two streams or for one; "shifted" has nine
    copies (`Pooling`) and not one.
    adapter: channels of its last 1x1 convolution, 0 for none.
    """
    shape, shifted = BACKBONES[name], network == "shifted"
    if network in ("bilateral", "two-branch"):
        if not isinstance(shape, Residual) or adapter:
            raise UserError(f"A {network} network is built from a ResNet without an adapter; {name} is none.")
        return PackedBilateral(shape, runs, channels)
    if isinstance(shape, Residual):
        return PackedResNet(shape, runs, channels, adapter, shifted)
    if isinstance(shape, Mobile):
        return PackedMobile(shape, runs, channels, adapter, shifted)
    if ("mean",) not in shape.layers and (adapter or shifted):
        raise UserError(f"{name} has no maps at its end, so neither an adapter nor shifted means.")
    return PackedPlain(shape, runs, channels, side, adapter, shifted)
