"""Steps on images that are resident on the device, where a small set has room: all runs of a pack at once.

On CUDA a step is one graph (bf16 autocast, channels last, compiled); on the CPU the same code runs eagerly in float32, or, for a
single run of a network that they know, in C++ passes.
"""

import base64
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.data.feed import INDEX, DrawSpec, EpochDraws, Feed, draw_noise, generator_for
from common.data.sets import Images
from common.errors import UserError
from common.methods.method import Method
from common.models.backbones import backbone
from common.models.cpu_step import CpuStep, cpu_step
from common.models.resnet import initialise
from common.models.sizes import BACKBONES
from common.plan import Run
from common.train.ahead import Ahead
from common.train.checks import check_members
from common.train.device import Device, use_device
from common.train.distributed import Ranks
from common.train.graph import capture
from common.train.groups import Group
from common.train.meta import Whole, learn_weights
from common.train.pack import Pack
from common.train.tally import Tally

TEST_BATCH = 500
FEATURES = 2000  # images of a split whose features a record keeps, where a figure wants them; equally many of each class


class ResidentSteps:
    """The steps of a pack on one device: `step` trains all runs on their own next batch.

    members: runs of one column, one protocol and one shape; equal methods must stand together.
    """

    processes, pausable = Ranks(), False
    ahead: Ahead | None = None  # where a GPU works while the next epoch is drawn

    def __init__(self, members: Sequence[Run], images: Images, device: Device):
        at, self.column, method = use_device(device), members[0].spec.column, members[0].method
        self.turns = [m.method.task == "rotation" for m in members]
        self.feed = Feed(images, self.column, turns=any(self.turns), device=at, dtype=getattr(torch, device.precision),
                         held_out=method.meta.held_out)
        check_members(members, self.feed.counts)
        net = self.make_network(method, len(members))
        initialise(net, [generator_for(m.spec.seed, "backbone") for m in members])
        self.pack = pack = Pack(members, net, device, self.feed.counts, self.feed.labels, self.feed.cpu_labels)
        self._forward, self._batch, self._criterion = pack.net, self.feed.batch, pack.losses
        self.path, self.threads = "eager", torch.get_num_threads()
        if native := self._make_native():
            self._forward, self.path = native, "native"
        if device.compile:
            torch.compiler.reset()  # a process keeps 8 versions of a function and then runs it uncompiled: make room
            self._forward, self._batch, self._criterion = (
                torch.compile(f, dynamic=False) for f in (pack.net, self.feed.batch, pack.losses))
        self._graphs: dict[tuple[int, bool], Callable[[EpochDraws], None]] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.captures else None  # of all graphs, whose replays never overlap
        if device.cuda:
            self.ahead = Ahead(self.draw, device.dtype)

    def close(self) -> None:
        """Wait for what is still being drawn, so that nothing holds the pack's memory."""
        if self.ahead:
            self.ahead.close()

    def make_network(self, method: Method, runs: int) -> nn.Module:
        """The backbone of so many runs of a method, as PyTorch leaves it."""
        facts = self.feed.facts
        return backbone(self.column.backbone, runs, facts.channels, method.net.kind, facts.side, method.net.adapter)

    def _make_native(self) -> CpuStep | None:
        """The network's passes in C++, where they know it: of a single run that trains all of it, in float32 on the CPU."""
        pack, facts = self.pack, self.feed.facts
        known = (pack.device == Device("cpu", "float32", False) and pack.runs == pack.streams == 1 and not pack.shape.meta.rate
                 and pack.protocol.trains == "all" and pack.shape.net.kind != "bilateral")
        return cpu_step(pack.net, BACKBONES[self.column.backbone], facts.channels, facts.side,
                        min(pack.protocol.batch_size, pack.size)) if known else None

    def go_eager(self) -> None:
        """Leave the C++ passes to go on with torch's own operations."""
        self._forward, self.path = self.pack.net, "eager"

    def get_ready(self, resumed: bool = False) -> None:
        """Look at the first batch of a pack that has not trained yet."""
        if not resumed:
            self.check_first_batch()

    def check_first_batch(self) -> None:
        """The losses of all runs on their first batch are finite. Nothing of the pack is changed."""
        self.begin_epoch(0)
        with torch.no_grad(), self._kept_buffers():
            _, losses = self.features_and_losses(self.batches()[0], None, compiled=False)
        for member, alive, loss in zip(self.pack.members, self.pack.alive, losses.tolist(), strict=True):
            if alive and not np.isfinite(loss):
                raise UserError(f"{member.label}: its loss is {loss} on the very first batch, before any step; look for a "
                                "logarithm, a power or a division of 0 in it.")

    @contextmanager
    def _kept_buffers(self) -> Iterator[None]:
        """What happens inside leaves statistics and centres as they were."""
        buffers = [*self.pack.net.buffers(), *self.pack.heads.buffers()]
        before = [buffer.clone() for buffer in buffers]
        yield
        for buffer, old in zip(buffers, before, strict=True):
            buffer.copy_(old)

    # Draws

    def begin_epoch(self, epoch: int, first: int = 0) -> None:
        """Set the epoch's rate and class weights, and draw its batches."""
        self.pack.begin_epoch(epoch, self.ahead.take(epoch) if self.ahead else self.draw(epoch), first)
        method, protocol = self.pack.shape, self.pack.protocol
        self.learns_weights = method.meta.rate > 0 and epoch >= min(protocol.decay_epochs, default=0)

    def draw(self, epoch: int) -> EpochDraws:
        """What every run draws in an epoch, on the CPU: a function of the epoch alone."""
        counts, draws, pack = self.feed.counts, [], self.pack
        for member, turns in zip(pack.members, self.turns, strict=True):
            method = member.method
            others = tuple(sampler(counts, epoch) for sampler in method.streams.samplers)
            draws.append(DrawSpec(member.spec.seed, method.sampler(counts, epoch), turns, others, method.mixup))
        drawn = self.feed.draw(draws, epoch, pack.protocol.batch_size)
        return drawn._replace(noise=tuple(self._draw_noise(g, epoch) for g in pack.groups if g.method.noise))

    def _draw_noise(self, group: Group, epoch: int) -> Tensor:
        """[terms, runs, images, classes]: one term, or one for each of the two labels of mixup."""
        shape = (1 + (group.method.mixup > 0), self.feed.size, group.classes)
        members = self.pack.members[group.first:group.stop]
        return torch.stack([draw_noise(m.spec.seed, epoch, group.method.noise, shape) for m in members], 1)

    def batches(self) -> list[EpochDraws]:
        """The epoch's batches: views of what was drawn."""
        sizes = self.pack.batch_sizes
        starts = np.cumsum([0, *sizes[:-1]])
        return [self.pack.epoch_drawn.part(int(start), size) for start, size in zip(starts, sizes, strict=True)]

    # Steps

    def train_batches(self, epoch: int, first: int = 0) -> Iterator[EpochDraws]:
        """The epoch's batches from the one numbered `first`; meanwhile the next epoch is drawn."""
        if self.ahead and epoch + 1 < self.pack.protocol.epochs:
            self.ahead.begin(epoch + 1)
        yield from self.batches()[first:]

    def train_batch(self, epoch: int, batch: EpochDraws) -> int:
        """One optimisation step of all runs; returns the images of the batch."""
        size = batch.images.shape[-1]
        compiled = size == self.pack.protocol.batch_size  # one smaller batch an epoch is not worth a compilation
        if self.pack.device.captures:
            kind = size, self.learns_weights
            if kind not in self._graphs:
                self._graphs[kind] = self._capture(batch.map(torch.clone), compiled)
            self._graphs[kind](batch)
        else:
            self.step(batch, compiled)
        return size

    def _capture(self, drawn: EpochDraws, compiled: bool) -> Callable[[EpochDraws], None]:
        """A function that trains on other draws of the shape of `drawn`, which becomes the graph's own input."""
        pack = self.pack
        tensors = [*pack.state().values(), *pack.counters(), pack.loss_sum]
        replay = capture(partial(self.step, drawn, compiled), tensors, pack.optimiser, self._pool)

        def train_on(other: EpochDraws) -> None:
            drawn.copy_(other)
            replay()

        return train_on

    def step(self, drawn: EpochDraws, compiled: bool = True) -> None:
        """One optimisation step of all runs on a batch of draws."""
        pack = self.pack
        learned = self.learn_weights(drawn) if self.learns_weights else None
        features, losses = self.features_and_losses(drawn, learned, compiled)
        pack.loss_sum += losses.detach() * drawn.images.shape[-1]
        pack.optimiser.zero_grad(set_to_none=True)
        losses.sum().backward()  # the runs share no weight, so each gets the gradient of its own loss
        pack.optimiser.step()
        pack.move_centres(features, drawn)

    def learn_weights(self, drawn: EpochDraws) -> Tensor:
        """Weights of the batch's samples that its held-out images teach, [runs, batch]."""
        pack = self.pack
        labels, held_out = (pack.labels[rows[INDEX]] for rows in (drawn.images, drawn.others[0]))
        weights = torch.cat([w[labels[g.first:g.stop]] for g, w in zip(pack.groups, pack.weights, strict=True)])
        return learn_weights(self.whole(), weights, (self.feed.batch(drawn.images), labels),
                             (self.feed.batch(drawn.others[0]), held_out), pack.rate, pack.shape.meta.rate)

    def whole(self) -> Whole:
        """Backbone and heads as one module."""
        pack = self.pack
        return Whole(pack.net, pack.heads, pack.groups, pack.context, pack.autocast, pack.device.dtype)

    def features_and_losses(self, drawn: EpochDraws, learned: Tensor | None, compiled: bool = True) -> tuple[Tensor, Tensor]:
        """Of a batch of draws: [runs, batch, width] or [runs, streams, batch, width], and [runs]. `learned`: see `Pack.losses`"""
        pack = self.pack
        batch, forward, criterion = (self._batch, self._forward, self._criterion) if compiled else (
            self.feed.batch, pack.net, pack.losses)
        images = [batch(drawn.images, drawn.blend if drawn.blend.numel() else None), *(batch(other) for other in drawn.others)]
        if pack.shape.meta.rate:
            images = images[:1]  # the held-out images teach the weights only
        with pack.autocast(), nullcontext() if pack.protocol.trains == "all" else torch.no_grad():
            features = [forward(x, k if pack.shape.net.kind == "bilateral" else None) for k, x in enumerate(images)]
        features = (features[0] if len(features) == 1 else torch.stack(features, 1)).to(pack.device.dtype)
        return features, criterion(features, drawn, learned)

    # Tests

    @torch.no_grad()
    def evaluate(self, stride: int = 1) -> list[Tally]:
        """One tally a group over every `stride`-th image of the test set (which is ordered by class)."""
        pack, images = self.pack, len(self.feed.test_labels)
        pack.net.eval()
        pack.heads.eval()
        tallies = pack.new_tallies(-(-images // stride))
        for start in range(0, images, TEST_BATCH * stride):
            stop = min(start + TEST_BATCH * stride, images)
            x, labels, quarters = self.feed.test_batch(start, stop, stride, self.turns)
            forward = self._forward if len(x) == TEST_BATCH else pack.net  # a remainder is not worth a compilation
            with pack.autocast():
                features = forward(x)
            first = start // stride
            pack.judge(tallies, features, labels, slice(first, first + len(labels)), quarters)
        return tallies

    @torch.no_grad()
    def features(self, run: int, split: str, most: int) -> tuple[Tensor, Tensor]:
        """One run's features [images, width] and labels of at most `most` images of each class of "train" or "test"."""
        pack = self.pack
        pack.net.eval()
        images, labels = self.feed.first_of_each(split, most, pack.runs)
        head = pack.heads[pack.group_of(run)]
        with pack.autocast():
            features = torch.cat([head.seen(pack.net(part)[run].float()) for part in images.split(TEST_BATCH)])
        return features, labels

    def stored_features(self, run: int) -> dict[str, Any]:
        """For a figure: split -> labels, and features as base64 of little-endian float16 [images, width]."""
        by_split = {}
        for split in ("train", "test"):
            values, labels = self.features(run, split, max(1, FEATURES // self.feed.classes))
            content = values.cpu().numpy().astype("<f2").tobytes()
            by_split[split] = {"labels": labels.tolist(), "values": base64.b64encode(content).decode()}
        return by_split

    def plain_features(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Features [runs, batch, width] and labels [batch] of all training images as they are, batch by batch."""
        return self.plain_features_of(self.pack.net, self.pack.runs)

    @torch.no_grad()
    def plain_features_of(self, net: nn.Module, runs: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The same of another network of this column, which so many runs share."""
        net.eval()
        for part in torch.arange(self.feed.size, device=self.feed.labels.device).split(TEST_BATCH):
            with self.pack.autocast():
                features = net(self.feed.plain("train", part, runs))
            yield features.to(self.pack.device.dtype), self.feed.labels[part]

    def about(self, images: int, seconds: float) -> dict[str, Any]:
        """By which passes the pack was trained; its images a second say little, as runs share them."""
        return {"path": self.path}
