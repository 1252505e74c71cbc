"""The names, shapes and initial weights of the backbones, and what they cost. No torch: a plan reads this.

weights, of each shape: how convolutions and dense layers are drawn. "kaiming": normal, variance 2 / fan-in (He et al., 2015);
"kaiming-fan-out": normal, variance 2 / fan-out; "xavier": uniform(+-sqrt(3 / fan-in)), the filler of that name in Caffe. Every
bias starts at 0.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


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
    weights: Literal["kaiming"] = field(default="kaiming", init=False)


@dataclass(frozen=True)
class Plain:
    """Layers one after another: ("conv", channels, kernel, padding), ("norm",), ("relu",), ("prelu",), ("pool",) for
    2x2 maxima, ("mean",) over the image, ("full", width)."""

    layers: tuple[tuple, ...]
    weights: Literal["kaiming", "xavier"] = "kaiming"


@dataclass(frozen=True)
class Mobile:
    """A MobileNet-v2 (Sandler et al., 2018): a 3x3 convolution of `stem` channels and stride 1, groups of inverted residual
    blocks, a 1x1 convolution of `last` channels, the mean.

    groups: of each its expansion, channels, blocks, and the stride of its first block.
    """

    stem: int
    groups: tuple[tuple[int, int, int, int], ...]
    last: int
    weights: Literal["kaiming"] = field(default="kaiming", init=False)

    @property
    def blocks(self) -> list[tuple[int, int, int, int]]:
        """Channels in, channels between, channels out and stride of each block."""
        shapes, c_in = [], self.stem
        for expansion, c_out, blocks, stride in self.groups:
            for i in range(blocks):
                shapes.append((c_in, expansion * c_in, c_out, stride if i == 0 else 1))
                c_in = c_out
        return shapes


def _small_cnn(widths: tuple[int, ...], full: tuple[tuple, ...], activation: str) -> Plain:
    """The shape of the MNIST networks of the large-margin Gaussian mixture code, and their weights: pairs of convolutions, then
    batch normalisation, 2x2 maxima and the activation."""
    layers: list[tuple] = [("conv", widths[0], 5, 0), ("conv", widths[1], 3, 1), ("norm",), ("pool",), (activation,)]
    layers += [("conv", widths[2], 3, 1), ("conv", widths[3], 3, 1), ("norm",), ("pool",), (activation,)]
    for width in widths[4:]:
        layers += [("conv", width, 3, 1), ("norm",), ("pool",), (activation,)]
    return Plain((*layers, *full), "xavier")


def _vgg(*blocks: tuple[int, ...]) -> Plain:
    """3x3 convolutions with batch normalisation and ReLU, 2x2 maxima between the blocks, the mean at the end."""
    layers: list[tuple] = []
    for block in blocks:
        layers += [("pool",)] if layers else []
        for width in block:
            layers += [("conv", width, 3, 1), ("norm",), ("relu",)]
    return Plain((*layers, ("mean",)))


def _flat(activation: str) -> Plain:
    return _small_cnn((32, 32, 64, 64), (("full", 128), ("norm",), (activation,), ("full", 2)), activation)


def _deep(activation: str) -> Plain:
    return _small_cnn((32, 32, 64, 64, 128), (("full", 100), ("norm",)), activation)


BACKBONES: dict[str, Residual | Plain | Mobile] = {
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
    "vgg16": _vgg((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),  # likewise, torchvision's vgg16_bn
    # The paper's Table 2 with stride 1 in the stem and in the second group, as usual for images of 32 pixels.
    "mobilenetv2": Mobile(32, ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
                               (6, 320, 1, 1)), 1280),
}


# Of images of 224 pixels


@dataclass(frozen=True)
class Network:
    """A ResNet of timm: its name there and changes to it; the width of its features, and the multiplications of one forward
    pass through its convolutions for one image of 224 pixels."""

    timm: str
    width: int
    multiplications: int
    changes: Mapping[str, Any] = field(default_factory=dict)
    weights: Literal["kaiming-fan-out"] = field(default="kaiming-fan-out", init=False)


NETWORKS: dict[str, Network] = {
    "resnet50": Network("resnet50", 2048, 4_087_136_256),
    "resnext50": Network("resnext50_32x4d", 2048, 4_228_431_872),
    "resnet101": Network("resnet101", 2048, 7_799_357_440),
    "resnet152": Network("resnet152", 2048, 11_511_578_624),
    # for the miniature
    "resnet10w8": Network("resnet18", 64, 144_306_176, {"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 64)}),
}


def describe_backbone(name: str) -> dict[str, Any]:
    """What a backbone of either table computes and how it starts, for the identity of a run; not what it costs."""
    shape = (BACKBONES | NETWORKS)[name]
    return {"shape": type(shape).__name__, **{k: v for k, v in asdict(shape).items() if k != "multiplications"}}


def multiplications(name: str, side: int, channels: int) -> int:
    """Multiplications of one forward pass of one image through the backbone's convolutions and dense layers."""
    shape = BACKBONES[name]
    count = {Residual: _residual, Plain: _plain, Mobile: _mobile}[type(shape)]
    return count(shape, side, channels)


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


def _mobile(shape: Mobile, side: int, channels: int) -> int:
    total = 9 * channels * shape.stem * side**2
    for c_in, between, c_out, stride in shape.blocks:
        total += side**2 * c_in * between if between != c_in else 0
        side = -(-side // stride)
        total += side**2 * between * (9 + c_out)
    return total + side**2 * c_out * shape.last


def outputs(name: str, side: int, channels: int) -> int:
    """Numbers that the backbone's convolutions and dense layers put out for one image, nearly."""
    shape = BACKBONES[name]
    if isinstance(shape, Mobile):
        total, side = shape.stem * side**2, side
        for _, between, c_out, stride in shape.blocks:
            total += between * side**2
            side = -(-side // stride)
            total += (between + c_out) * side**2
        return total + shape.last * side**2
    if isinstance(shape, Residual):
        total = shape.width * side**2
        for stage in range(shape.stages):
            side = side if stage == 0 else -(-side // 2)
            total += (shape.width << stage) * side**2 * (2 * shape.blocks + (shape.projection and stage > 0))
        return total
    total = 0
    for kind, *numbers in shape.layers:
        side = side + 2 * numbers[2] - numbers[1] + 1 if kind == "conv" else side // 2 if kind == "pool" else side
        total += numbers[0] * side**2 if kind == "conv" else numbers[0] if kind == "full" else 0
    return total


def weights(name: str, channels: int) -> int:
    """Weights of the backbone's convolutions, nearly: multiplications of an image that every layer sees as one pixel."""
    shape = BACKBONES[name]
    if isinstance(shape, Residual):
        return _residual(shape, 1, channels)
    if isinstance(shape, Mobile):
        return _mobile(shape, 1, channels)
    total = 0
    for kind, *numbers in shape.layers:
        if kind in ("conv", "full"):
            total += numbers[0] * channels * (numbers[1] ** 2 if kind == "conv" else 1)
            channels = numbers[0]
    return total
