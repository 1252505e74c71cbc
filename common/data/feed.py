"""The resident feed: a dataset as uint8 on the device, and what each run draws from it in an epoch.

Every draw of a run comes from generators of its own, seeded by (seed, purpose, epoch). So a run sees the same
batches, crops and flips in any pack, on any device, and after a resume, and two methods with one seed see the same.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.data.augment import as_network_input, crop, normalise, pad_images, source_pixels
from common.data.imbalance import select
from common.data.sets import SETS, Images
from common.spec import Column

INDEX, DY, DX, FLIP, TURN = range(5)  # rows of an epoch's draws


def stream(seed: int, purpose: str, epoch: int = 0) -> torch.Generator:
    """The run's own generator for one purpose and epoch (CPU)."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True)
class Draw:
    """How a run draws: class probabilities of its sampler (None: a shuffle), and whether its task turns the images."""

    seed: int
    probabilities: np.ndarray | None
    turns: bool


def draw_epoch(draw: Draw, epoch: int, labels: Tensor, *, pad: int, flip: bool, batch: int) -> Tensor:
    """One run's epoch: int64 [5, images], the rows INDEX, DY, DX, FLIP, TURN.

    labels: int64 [images] on the CPU. A sampler draws as many images as the set has, with replacement. Turns are
    balanced within each batch.
    """
    n = len(labels)
    result = torch.zeros(5, n, dtype=torch.int64)
    order = stream(draw.seed, "order", epoch)
    if draw.probabilities is None:
        result[INDEX] = torch.randperm(n, generator=order)
    else:
        each = torch.from_numpy(draw.probabilities / np.bincount(labels, minlength=len(draw.probabilities)))
        result[INDEX] = torch.multinomial(each[labels], n, replacement=True, generator=order)
    augmentation = stream(draw.seed, "augmentation", epoch)
    if pad:
        result[DY:DX + 1] = torch.randint(0, 2 * pad + 1, (2, n), generator=augmentation)
    if flip:
        result[FLIP] = torch.randint(0, 2, (n,), generator=augmentation)
    if draw.turns:
        turns = stream(draw.seed, "turns", epoch)
        result[TURN] = torch.cat([torch.randperm(min(batch, n - i), generator=turns) % 4 for i in range(0, n, batch)])
    return result


class Feed:
    """The images of one column on a device.

    counts: training images per class, [classes] (CPU). labels, test_labels: int64 on the device.
    """

    def __init__(self, images: Images, column: Column, *, turns: bool, device: torch.device, dtype: torch.dtype):
        self.facts, self.dtype = SETS[column.dataset], dtype
        kept = select(images.y_train, column, images.archive_order)
        self.cpu_labels = torch.from_numpy(images.y_train[kept].astype(np.int64))
        self.classes = self.facts.classes
        self.counts = np.bincount(self.cpu_labels, minlength=self.classes)
        self.labels = self.cpu_labels.to(device)
        self.padded = pad_images(torch.from_numpy(images.x_train[kept]).to(device), self.facts.pad)
        self.test_images = torch.from_numpy(images.x_test).to(device)
        self.test_labels = torch.from_numpy(images.y_test.astype(np.int64)).to(device)
        self.mean, self.std = (torch.tensor(v, device=device) for v in (self.facts.mean, self.facts.std))
        self.pixels = source_pixels(self.facts.side, turns, device)

    def draw(self, draws: Sequence[Draw], epoch: int, batch: int) -> Tensor:
        """The epoch of every run: int64 [5, runs, images] on the CPU."""
        each = [draw_epoch(d, epoch, self.cpu_labels, pad=self.facts.pad, flip=self.facts.flip, batch=batch) for d in draws]
        return torch.stack(each, 1)

    def batch(self, drawn: Tensor) -> Tensor:
        """Network input [batch, runs * channels, side, side] of the draws int64 [5, runs, batch]."""
        images = crop(self.padded, self.pixels, drawn[INDEX], drawn[DY], drawn[DX], drawn[FLIP], drawn[TURN])
        return as_network_input(normalise(images, self.mean, self.std, self.dtype))

    def test_batch(self, start: int, stop: int, stride: int, turns: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor]:
        """Test images start, start + stride, ... before `stop`, for every run: plain, or turned by 0, 1, 2, 3, 0, ... quarters.

        Returns the network input [batch, runs * channels, side, side], the labels [batch] and the quarters [batch].
        """
        plain = normalise(self.test_images[start:stop:stride], self.mean, self.std, self.dtype)
        quarters = torch.arange(len(plain), device=plain.device) % 4
        turned = plain.clone() if any(turns) else plain
        for k in (1, 2, 3) if any(turns) else ():
            turned[quarters == k] = torch.rot90(plain[quarters == k], k, (1, 2))
        packed = torch.stack([turned if t else plain for t in turns])
        return as_network_input(packed), self.test_labels[start:stop:stride], quarters
