"""What is drawn in an epoch of a large set, and which part of it each process gets.

Every process draws the whole epoch, from the same generators as the small path, and takes its share of each batch. So any
number of processes sees the same batches as one, no image is lost or doubled, and a resume needs no state.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.data.feed import INDEX, PARTNER, TURN, DrawSpec, draw_blend, draw_epoch, draw_stream, generator_for
from common.errors import UserError
from common.methods.method import Method


class EpochOrder(NamedTuple):
    """An epoch, the same on all processes; a position counts the images of the epoch from 0.

    index: training image at every position, of the run's own stream and of its extra samplers', int64 [streams, images].
    partner: position in the global batch of the image with which mixup mixes, int64 [images]; blend: its own share,
    float64 [images], or [0] without mixup. turn: quarter turns of the rotation task, int64 [images].
    """

    index: Tensor
    partner: Tensor
    turn: Tensor
    blend: Tensor


class Span(NamedTuple):
    """One global batch, positions [start, stop) of the epoch, and this process's share of it, [first, last), which may be
    empty in a last, smaller batch."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def share(self) -> int:
        return self.last - self.first


def draw_order(method: Method, seed: int, epoch: int, labels: Tensor, counts: np.ndarray, batch: int) -> EpochOrder:
    """The epoch of a run. labels: int64 [images] on the CPU; counts: training images per class; batch: the global one."""
    if method.meta.held_out:
        raise UserError(f"{method.label} learns from held-out images, which the large sets do not have; train it on a small set.")
    samplers = tuple(sampler(counts, epoch) for sampler in method.streams.samplers)
    draw = DrawSpec(seed, method.sampler(counts, epoch), method.task == "rotation", samplers, method.mixup)
    plain = {"pad": 0, "flip": False}  # crops are drawn image by image, where it is decoded
    own = draw_epoch(draw, epoch, labels, batch=batch, **plain)
    others = [draw_stream(seed, stream_name(k), epoch, order, labels, first=own[INDEX], **plain)[INDEX]
              for k, order in enumerate(samplers, 1)]
    blend = draw_blend(draw, epoch, len(labels), batch) if method.mixup else torch.zeros(0, dtype=torch.float64)
    return EpochOrder(torch.stack([own[INDEX], *others]), own[PARTNER], own[TURN], blend)


def stream_name(k: int) -> str:
    """What tells the draws of the k-th extra sampler from those of the run's own stream, 0."""
    return f"-{k}" if k else ""


def spans(images: int, batch: int, drop_last: bool, rank: int, world: int) -> list[Span]:
    """The global batches of an epoch and the share that process `rank` of `world` has of each; shares differ by one at most."""
    batches = []
    for start in range(0, images - batch + 1 if drop_last else images, batch):
        stop = min(start + batch, images)
        first, last = (start + (stop - start) * r // world for r in (rank, rank + 1))
        batches.append(Span(start, stop, first, last))
    return batches


def evaluation_share(images: int, rank: int, world: int) -> np.ndarray:
    """The test images of process `rank`, int64: each image on exactly one process."""
    return np.arange(rank, images, world)


def draw_share_noise(seed: int, epoch: int, kind: str, span: Span, terms: int, classes: int) -> Tensor:
    """The noise of a share, float32 [terms, share, classes], drawn position by position: an epoch of iNaturalist at once
    would be 14 GB, and any number of processes sees the same."""
    rows = torch.empty(span.share, terms, classes)
    for row, position in zip(rows, range(span.first, span.last), strict=True):
        generator = generator_for(seed, f"noise/{epoch}", position)
        row.normal_(generator=generator) if kind == "normal" else row.uniform_(generator=generator)
    return rows.transpose(0, 1)
