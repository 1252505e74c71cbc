"""Crop, flip and turn of a batch on the device: one gather, one shift per image.

The pixels that the released codes deliver: zero-pad the uint8 image, crop, flip, then normalise (so the border is
black, not the mean).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_images(images: Tensor, pad: int) -> Tensor:
    """uint8 [n, h, w, c] -> [n, h + 2 pad, w + 2 pad, c], black border."""
    return F.pad(images, (0, 0, pad, pad, pad, pad))


def source_pixels(side: int, turns: bool, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Row and column in the crop from which each pixel of the result is read, by quarter turns counter-clockwise.

    [4, side, side] each; without `turns` [1, side, 1] and [1, 1, side], which broadcast to the image as it is.
    """
    pixel = torch.arange(side, device=device)
    row, column = pixel[:, None], pixel[None, :]
    if not turns:
        return row[None], column[None]
    last, full = side - 1, (side, side)
    quarter = [(row, column), (column, last - row), (last - row, last - column), (last - column, row)]
    return tuple(torch.stack([pair[i].expand(full) for pair in quarter]) for i in (0, 1))


def crop(padded: Tensor, pixels: tuple[Tensor, Tensor], index: Tensor, dy: Tensor, dx: Tensor, flip: Tensor,
         turn: Tensor) -> Tensor:
    """Augmented images of a batch of M runs.

    padded: uint8 [n, H, W, c]; index, dy, dx, flip, turn: int64 [runs, batch]; pixels: see `source_pixels`.
    Returns uint8 [runs, batch, side, side, c].
    """
    row, column = (p[turn] if len(p) == 4 else p for p in pixels)
    index, dy, dx, flip = (d[..., None, None] for d in (index, dy, dx, flip))
    side = max(pixels[1].shape[-1], pixels[1].shape[-2])
    column = torch.where(flip.bool(), side - 1 - column, column)
    return padded[index, row + dy, column + dx]


def mix(images: Tensor, partner: Tensor, blend: Tensor) -> Tensor:
    """mixup (Zhang et al., 2018): blend * x + (1 - blend) * x[partner], in the type of `blend`.

    images: uint8 [runs, batch, side, side, c]; partner: int64 positions in the batch, blend: float, both [runs, batch].
    """
    share = blend[..., None, None, None]
    wide = images.to(blend.dtype)
    return share * wide + (1 - share) * wide.take_along_dim(partner[..., None, None, None], 1)


def normalise(images: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Values 0 to 255 [..., c] -> (x / 255 - mean) / std in `dtype`, computed in float32 at least."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return ((images.to(wide) / 255 - mean.to(wide)) / std.to(wide)).to(dtype)


def as_network_input(images: Tensor) -> Tensor:
    """[runs, batch, h, w, c] -> [batch, runs * c, h, w], channels last in memory."""
    runs, batch, h, w, c = images.shape
    packed = images.permute(1, 2, 3, 0, 4).reshape(batch, h, w, runs * c)
    return packed.permute(0, 3, 1, 2)
