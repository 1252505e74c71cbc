"""MobileNet-v2 (Sandler et al., 2018) of M runs packed into one network.

Channels of run m are [m * c, (m + 1) * c) of every feature map, as in `common.models.resnet`: a convolution has groups=M,
a depthwise one a group for each of its M * c channels. ReLU6; the last convolution of a block has no activation.
"""

from torch import Tensor, nn

from common.models.pooling import Pooling, batch_norm
from common.models.sizes import Mobile


class Inverted(nn.Module):
    """1x1 convolution to `between` channels (left out where that changes nothing), 3x3 depthwise, 1x1 to `c_out`, of `runs`
    runs; the input is added where it has the shape of the output."""

    def __init__(self, c_in: int, between: int, c_out: int, stride: int, runs: int):
        super().__init__()
        self.adds = stride == 1 and c_in == c_out
        self.layers = nn.Sequential(
            *(_layer(c_in, between, 1, runs) if between != c_in else ()),
            *_layer(between, between, 3, runs, stride, depthwise=True),
            *_layer(between, c_out, 1, runs)[:2],
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


class PackedMobile(nn.Module):
    """Images [batch, runs * channels, height, width] -> features [runs, batch, copies * width]; for the rest see `Pooling`."""

    def __init__(self, shape: Mobile, runs: int, channels: int = 3, adapter: int = 0, shifted: bool = False):
        super().__init__()
        blocks = [Inverted(*block, runs) for block in shape.blocks]
        c_last = shape.groups[-1][1]
        self.layers = nn.Sequential(*_layer(channels, shape.stem, 3, runs), *blocks, *_layer(c_last, shape.last, 1, runs))
        self.tail = Pooling(runs, shape.last, adapter, shifted)
        self.runs, self.width, self.copies = runs, self.tail.width, self.tail.copies

    def forward(self, x: Tensor, stream: int | None = None) -> Tensor:
        """`stream` is of no account here; see `PackedBilateral`."""
        return self.tail(self.layers(x))


def _layer(c_in: int, c_out: int, kernel: int, runs: int, stride: int = 1, depthwise: bool = False) -> tuple[nn.Module, ...]:
    """Convolution, batch normalisation, ReLU6."""
    groups = c_in * runs if depthwise else runs
    convolution = nn.Conv2d(c_in * runs, c_out * runs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return convolution, batch_norm(c_out * runs), nn.ReLU6()
