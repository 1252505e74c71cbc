"""The resident feed: a dataset as uint8 on the device, and what each run draws from it in an epoch.

Every draw of a run comes from generators of its own, seeded by (seed, purpose, epoch). So a run sees the same
batches, crops and flips in any pack, on any device, and after a resume, and two methods with one seed see the same.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.data.augment import as_network_input, crop, mix, normalise, pad_images, source_pixels
from common.data.imbalance import select, set_aside
from common.data.sets import SETS, Images
from common.errors import UserError
from common.spec import Column

INDEX, DY, DX, FLIP, TURN, PARTNER = ROWS = range(6)  # rows of an epoch's draws; PARTNER is a position in the batch


def generator_for(seed: int, purpose: str, epoch: int = 0) -> torch.Generator:
    """The run's own generator for one purpose and epoch (CPU)."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class EpochDraws(NamedTuple):
    """What all runs of a pack draw in an epoch, or a part of it that is one batch.

    images: int64 [ROWS, runs, images]; others: the same of every extra sampler, [extra samplers, ROWS, runs, images].
    blend: share of an image against its partner, [runs, images], or [0] where no run has mixup. noise: [terms, runs, images,
    classes] of each group of runs that asks for it.
    """

    images: Tensor
    others: Tensor
    blend: Tensor
    noise: tuple[Tensor, ...] = ()

    def part(self, start: int, size: int) -> "EpochDraws":
        """Images start to start + size of every run: views."""
        stop = start + size
        return EpochDraws(self.images[..., start:stop], self.others[..., start:stop], self.blend[..., start:stop],
                          tuple(n[:, :, start:stop] for n in self.noise))

    def tensors(self) -> list[Tensor]:
        return [self.images, self.others, self.blend, *self.noise]

    def map(self, function: Callable[[Tensor], Tensor]) -> "EpochDraws":
        images, others, blend, *noise = map(function, self.tensors())
        return EpochDraws(images, others, blend, tuple(noise))

    def copy_(self, other: "EpochDraws") -> None:
        for mine, its in zip(self.tensors(), other.tensors(), strict=True):
            mine.copy_(its, non_blocking=True)


SamplerOrder = np.ndarray | str | None  # what a sampler returns: class probabilities, "again", "held out", or None for a shuffle


@dataclass(frozen=True)
class DrawSpec:
    """How a run draws: what its sampler and its extra samplers say, whether its task turns the images, its mixup."""

    seed: int
    order: SamplerOrder
    turns: bool
    extra_samplers: tuple[SamplerOrder, ...] = ()
    mixup: float = 0.0


def draw_epoch(draw: DrawSpec, epoch: int, labels: Tensor, *, pad: int, flip: bool, batch: int) -> Tensor:
    """One run's epoch of its own images: int64 [ROWS, images].

    labels: int64 [images] on the CPU. A sampler draws as many images as the set has, with replacement. Turns are
    balanced within each batch; partners are a permutation of the batch.
    """
    n = len(labels)
    result = draw_stream(draw.seed, "", epoch, draw.order, labels, pad=pad, flip=flip)
    if draw.turns:
        turns = generator_for(draw.seed, "turns", epoch)
        result[TURN] = torch.cat([torch.randperm(min(batch, n - i), generator=turns) % 4 for i in range(0, n, batch)])
    if draw.mixup:
        partners = generator_for(draw.seed, "partners", epoch)
        result[PARTNER] = torch.cat([torch.randperm(min(batch, n - i), generator=partners) for i in range(0, n, batch)])
    return result


def draw_stream(seed: int, name: str, epoch: int, order: SamplerOrder, labels: Tensor, *, pad: int, flip: bool,
                first: Tensor | None = None, held_out: int = 0) -> Tensor:
    """Images, crops and flips of one stream, int64 [ROWS, images]; `first` are the indices of the run's own stream."""
    n = len(labels)
    result = torch.zeros(len(ROWS), n, dtype=torch.int64)
    generator = generator_for(seed, f"order{name}", epoch)
    if order is None:
        result[INDEX] = torch.randperm(n, generator=generator)
    elif isinstance(order, str):
        result[INDEX] = first if order == "again" else n + torch.randint(0, held_out, (n,), generator=generator)
    else:
        each = torch.from_numpy(order / np.bincount(labels, minlength=len(order)))
        result[INDEX] = torch.multinomial(each[labels], n, replacement=True, generator=generator)
    augmentation = generator_for(seed, f"augmentation{name}", epoch)
    if pad:
        result[DY:DX + 1] = torch.randint(0, 2 * pad + 1, (2, n), generator=augmentation)
    if flip:
        result[FLIP] = torch.randint(0, 2, (n,), generator=augmentation)
    return result


def draw_blend(draw: DrawSpec, epoch: int, images: int, batch: int) -> Tensor:
    """The share of an image against its partner, float64 [images]: one Beta(mixup, mixup) a batch (Zhang et al., 2018); without
    mixup 1, which leaves the image as it is to the last bit."""
    if not draw.mixup:
        return torch.ones(images, dtype=torch.float64)
    generator = np.random.default_rng(generator_for(draw.seed, "blend", epoch).initial_seed())
    shares = generator.beta(draw.mixup, draw.mixup, -(-images // batch))
    return torch.from_numpy(shares).repeat_interleave(batch)[:images]


def draw_noise(seed: int, epoch: int, kind: str, shape: Sequence[int]) -> Tensor:
    """Standard normal or uniform noise of a run, float32 of this shape."""
    generator = generator_for(seed, "noise", epoch)
    return torch.randn(*shape, generator=generator) if kind == "normal" else torch.rand(*shape, generator=generator)


class Feed:
    """The images of one column on a device.

    counts: training images per class, [classes] (CPU). size: training images. labels: int64 on the device, of the
    training images and, after them, of the held-out ones; test_labels: int64 on the device.
    """

    def __init__(self, images: Images, column: Column, *, turns: bool, device: torch.device, dtype: torch.dtype,
                 held_out: int = 0):
        self.facts, self.dtype = SETS[column.dataset], dtype
        kept = select(images.y_train, column, images.archive_order, held_out)
        self.cpu_labels = torch.from_numpy(images.y_train[kept].astype(np.int64))
        self.classes = len(column.counts) or self.facts.classes
        self.counts, self.size = np.bincount(self.cpu_labels, minlength=self.classes), len(kept)
        whole = np.concatenate([kept, set_aside(images.y_train, column, images.archive_order, held_out)])
        if images.kept is not None and not images.kept[whole].all():
            raise UserError(f"data/{column.dataset}.npz came in a parcel that does not hold all images of {column.name}; pack "
                            "them, too, or prepare the whole set.")
        self.labels = torch.from_numpy(images.y_train[whole].astype(np.int64)).to(device)
        self.padded = pad_images(torch.from_numpy(images.x_train[whole]).to(device), self.facts.pad)
        tested = images.y_test < self.classes
        self.test_images = torch.from_numpy(images.x_test[tested]).to(device)
        self.test_labels = torch.from_numpy(images.y_test[tested].astype(np.int64)).to(device)
        self.mean, self.std = (torch.tensor(v, device=device) for v in (self.facts.mean, self.facts.std))
        self.pixels = source_pixels(self.facts.side, turns, device)

    def draw(self, draws: Sequence[DrawSpec], epoch: int, batch: int) -> EpochDraws:
        """The epoch of every run, on the CPU, without noise."""
        how = {"pad": self.facts.pad, "flip": self.facts.flip}
        own = [draw_epoch(d, epoch, self.cpu_labels, batch=batch, **how) for d in draws]
        others = [torch.stack([
            draw_stream(d.seed, f"-{k}", epoch, order, self.cpu_labels, first=mine[INDEX],
                        held_out=len(self.labels) - self.size, **how) for k, order in enumerate(d.extra_samplers, 1)], 0)
            for d, mine in zip(draws, own, strict=True) if d.extra_samplers]
        blend = [draw_blend(d, epoch, self.size, batch) for d in draws] if any(d.mixup for d in draws) else []
        none = torch.zeros(0, len(ROWS), len(draws), self.size, dtype=torch.int64)
        return EpochDraws(torch.stack(own, 1), torch.stack(others, 2) if others else none,
                          torch.stack(blend) if blend else torch.zeros(0))

    def batch(self, drawn: Tensor, blend: Tensor | None = None) -> Tensor:
        """Network input [batch, runs * channels, side, side] of the draws int64 [ROWS, runs, batch]; with `blend`
        [runs, batch], every image is mixed with its partner."""
        images = crop(self.padded, self.pixels, *drawn[:PARTNER])
        if blend is not None:
            images = mix(images, drawn[PARTNER], blend)
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

    def first_of_each(self, split: str, most: int, runs: int) -> tuple[Tensor, Tensor]:
        """The first images of every class as they are, for every run: network input and labels; split "train" or "test"."""
        labels = self.labels[:self.size] if split == "train" else self.test_labels
        kept = torch.cat([(labels == c).nonzero()[:most, 0] for c in range(self.classes)])
        return self.plain(split, kept, runs), labels[kept]

    def plain(self, split: str, index: Tensor, runs: int) -> Tensor:
        """Network input of the images int64 [batch] of "train" or "test" as they are, the same for every run."""
        pad, side = self.facts.pad, self.facts.side
        images = self.padded[index, pad:pad + side, pad:pad + side] if split == "train" else self.test_images[index]
        values = normalise(images, self.mean, self.std, self.dtype)
        return as_network_input(values.expand(runs, *values.shape))
