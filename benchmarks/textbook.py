"""The network of the usual scripts, one run and no groups, and the bytes that a training step of it must move."""

from collections.abc import Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainBlock(nn.Module):
    """conv3x3-BN-ReLU-conv3x3-BN + option-A shortcut, ReLU (He et al., 2016), of one run."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.stride, self.extra = stride, (c_out - c_in) // 2
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.extra:
            x = F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(y + x)


class PlainResNet(nn.Module):
    """Images [batch, channels, height, width] -> logits [batch, classes]."""

    def __init__(self, blocks: int, width: int, channels: int, classes: int):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        layers, c_in = [], width
        for c_out, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            for i in range(blocks):
                layers.append(PlainBlock(c_in, c_out, stride if i == 0 else 1))
                c_in = c_out
        self.blocks, self.fc = nn.Sequential(*layers), nn.Linear(c_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(F.relu(self.bn(self.conv(x)))).mean((2, 3)))


def step_bytes(net: nn.Module, shape: Sequence[int], item: int) -> int:
    """Bytes that a well-fused training step of one run must move, for images of `shape` and activations of `item` bytes.

    Well fused: a convolution's statistics are summed while its output is written; normalisation, ReLU and addition are
    done by the kernel that reads next; one kernel makes both gradients of a convolution. Nothing stays in a cache from
    one kernel to the next. Then, with I and E elements in a convolution's input and output:

      convolution, forward       reads I, writes E
      normalisation, backward    reads the gradient and the output (both sums were taken as the former was written),
                                 writes the output's gradient: 3 E
      convolution, backward      reads that and the input, writes the input's gradient (the images need none): E + 2 I
      addition                   forward reads the shortcut's S elements and writes the sum, backward reads S: E + 2 S
      images                     read as uint8, written as activations
      parameters                 float32: read forward, backward and by SGD; gradient written and read; momentum read
                                 and written; weight written: 8 x 4 bytes each

    Pooling, head and loss are left out: their tensors are a thousandth of these.
    """
    net = deepcopy(net).to("meta").eval()  # shapes only
    elements: list[int] = []

    def convolution(module: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        i, e = inputs[0].numel(), output.numel()
        elements.append(i + e + 3 * e + e + (2 if elements else 1) * i)  # the first one is that of the images

    def addition(module: PlainBlock, inputs: tuple[Tensor], output: Tensor) -> None:
        elements.append(output.numel() + 2 * (inputs[0].numel() // module.stride**2))

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(convolution)
        elif isinstance(module, PlainBlock):
            module.register_forward_hook(addition)
    images = torch.empty(*shape, device="meta")
    net(images)
    parameters = sum(p.numel() for p in net.parameters())
    return item * sum(elements) + (1 + item) * images.numel() + 8 * 4 * parameters
