"""The names and shapes of the small backbones, and what they cost. No torch: a plan reads this."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Residual:
    """A ResNet of basic blocks. blocks: of each stage; width: of the first stage, doubled by each further one.

    projection: whether a shortcut that changes its shape is a 1x1 convolution with batch normalisation (option B), or
    every second pixel with zero-padded channels (option A).
    """

    blocks: int
    width: int
    stages: int = 3
    projection: bool = False


@dataclass(frozen=True)
class Plain:
    """Layers one after another: ("conv", channels, kernel, padding), ("norm",), ("relu",), ("prelu",), ("pool",) for
    2x2 maxima, ("mean",) over the image, ("full", width)."""

    layers: tuple[tuple, ...]


def _small_cnn(widths: tuple[int, ...], full: tuple[tuple, ...], activation: str) -> Plain:
    """The shape of the MNIST networks of the large-margin Gaussian mixture code: pairs of convolutions, then batch
    normalisation, 2x2 maxima and the activation."""
    layers: list[tuple] = [("conv", widths[0], 5, 0), ("conv", widths[1], 3, 1), ("norm",), ("pool",), (activation,)]
    layers += [("conv", widths[2], 3, 1), ("conv", widths[3], 3, 1), ("norm",), ("pool",), (activation,)]
    for width in widths[4:]:
        layers += [("conv", width, 3, 1), ("norm",), ("pool",), (activation,)]
    return Plain((*layers, *full))


def _vgg(*blocks: tuple[int, ...]) -> Plain:
    """3x3 convolutions with batch normalisation and ReLU, 2x2 maxima between the blocks, the mean at the end."""
    layers: list[tuple] = []
    for block in blocks:
        layers += [("pool",)] if layers else []
        for width in block:
            layers += [("conv", width, 3, 1), ("norm",), ("relu",)]
    return Plain((*layers, ("mean",)))


def _flat(activation: str) -> Plain:
    return _small_cnn((16, 16, 32, 32), (("full", 64), (activation,), ("full", 2)), activation)


def _deep(activation: str) -> Plain:
    return _small_cnn((32, 32, 64, 64, 128), (("full", 100), ("norm",)), activation)


BACKBONES: dict[str, Residual | Plain] = {
    "resnet8": Residual(1, 8),  # for the 8x8 digits of the quick profile
    "resnet18": Residual(2, 64, stages=4, projection=True),  # with the CIFAR stem
    "resnet20": Residual(3, 16),
    "resnet32": Residual(5, 16),
    "resnet56": Residual(9, 16),
    "resnet110": Residual(18, 16),
    "6layercnn2d": _flat("relu"),  # four convolutions, two fully connected layers, 2-d features
    "6layercnn2dprelu": _flat("prelu"),
    "6layercnn100d": _deep("relu"),  # five convolutions, one fully connected layer, 100-d features
    "6layercnn100dprelu": _deep("prelu"),
    "cnn4": Plain((("conv", 8, 3, 1), ("norm",), ("pool",), ("relu",), ("conv", 16, 3, 1), ("norm",), ("pool",), ("relu",),
                   ("full", 2))),  # 2-d features of the 8x8 digits
    "vgg13": _vgg((96,) * 5, (192,) * 4, (384,) * 4),  # that of the large-margin Gaussian mixture code
    "vgg13bn": _vgg((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),  # torchvision's, without its dense layers
}


def multiplications(name: str, side: int, channels: int) -> int:
    """Multiplications of one forward pass of one image through the backbone's convolutions and dense layers."""
    shape = BACKBONES[name]
    return _residual(shape, side, channels) if isinstance(shape, Residual) else _plain(shape, side, channels)


def _residual(shape: Residual, side: int, channels: int) -> int:
    total, c_in = 9 * channels * shape.width * side**2, shape.width
    for stage in range(shape.stages):
        c_out = shape.width << stage
        side = side if stage == 0 else -(-side // 2)
        total += 9 * side**2 * (c_in * c_out + (2 * shape.blocks - 1) * c_out**2)
        if shape.projection and c_in != c_out:
            total += side**2 * c_in * c_out
        c_in = c_out
    return total


def _plain(shape: Plain, side: int, channels: int) -> int:
    total = 0
    for kind, *numbers in shape.layers:
        if kind == "conv":
            width, kernel, pad = numbers
            side += 2 * pad - kernel + 1
            total += side**2 * kernel**2 * channels * width
            channels = width
        elif kind == "pool":
            side //= 2
        elif kind == "mean":
            side = 1
        elif kind == "full":
            total += side**2 * channels * numbers[0]
            side, channels = 1, numbers[0]
    return total
