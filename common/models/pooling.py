"""What stands between the last maps of a backbone and its heads: an optional adapter, and the mean over the image.

From the last convolution on everything is float32 at least, also where autocast computes the convolutions in bfloat16.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

SHIFTS = ((0, 0), (-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))  # rows and columns, the plain mean first


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Momentum 0.1, eps 1e-5. Without the counter of batches, which only a cumulative average needs: one kernel less a layer."""
    layer = nn.BatchNorm2d(channels)
    layer.num_batches_tracked = None
    return layer


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 where the maps are that."""
    return torch.promote_types(dtype, torch.float32)


def full_precision(x: Tensor) -> AbstractContextManager:
    """Inside, autocast leaves dense layers in the type of their weights."""
    return torch.autocast(x.device.type, enabled=False)


class Pooling(nn.Module):
    """Maps [batch, runs * channels, height, width] -> features [runs, batch, copies * width], in float32 at least.

    adapter: channels of a 1x1 convolution with batch normalisation and ReLU before the mean; 0 for none.
    shifted: nine means of each channel in the place of one: of its map, and of its eight shifts by a pixel over a border of
    zeros, in the order of SHIFTS. The mean of any 3x3 convolution (stride 1, padding 1) is linear in these.
    """

    def __init__(self, runs: int, channels: int, adapter: int = 0, shifted: bool = False):
        super().__init__()
        self.runs, self.width, self.copies = runs, adapter or channels, len(SHIFTS) if shifted else 1
        self.adapter = nn.Sequential(
            nn.Conv2d(channels * runs, adapter * runs, 1, groups=runs, bias=False), batch_norm(adapter * runs), nn.ReLU(),
        ) if adapter else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.adapter is None else self.adapter(x)
        means = shifted_means(x) if self.copies > 1 else x.mean((2, 3), dtype=wide(x.dtype))
        if self.copies == 1:
            return means.unflatten(1, (self.runs, -1)).transpose(0, 1)
        return means.unflatten(2, (self.runs, -1)).permute(2, 1, 0, 3).flatten(2)


def shifted_means(x: Tensor) -> Tensor:
    """[batch, channels, height, width] -> [9, batch, channels]: what SHIFTS says, in float32 at least.

    mean over p of x[p + shift], where x is 0 outside the image: the sum without the row and column that a shift moves out.
    """
    rows = x.sum(2, dtype=wide(x.dtype))
    rows = {-1: rows - x[:, :, -1], 0: rows, 1: rows - x[:, :, 0]}
    means = [(rows[dy].sum(-1) - (0 if dx == 0 else rows[dy][..., -1 if dx < 0 else 0])) for dy, dx in SHIFTS]
    return torch.stack(means) / (x.shape[2] * x.shape[3])
