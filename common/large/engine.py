"""One run on a large set: the engine of a pack of one, fed by files and spread over the processes of torchrun.

Each process computes the features of its share of a batch. Features are few, so all are gathered, and every process
computes the head and the loss of the whole batch: whatever a loss does with its batch (weighted means, means of classes,
mixup, moving centres), it does as one process would. The gradient of the features goes back to the process that made
them, and DDP adds up those of the backbone.
"""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.data.feed import INDEX, PARTNER, ROWS, Drawn, stream
from common.data.large_sets import find_large
from common.errors import UserError
from common.large.input import Batch, TestInput, TrainInput, as_input
from common.large.lists import LargeImages
from common.large.network import LargeNetwork, draw_weights, left_out, load_imagenet, share_norms
from common.large.processes import Processes, gather, share_from_first, shares, sum_gradients
from common.large.record import LargeTally
from common.large.sampling import Span, draw_order, draw_share_noise, spans
from common.plan import Run
from common.train.checks import check_parts
from common.train.groups import class_scores, group_runs, make_head
from common.train.pack import Device, Pack, use_device

WORKERS = 8  # processes that decode images, for each training process
TEST_BATCH = 256
VERSIONS = 32  # of the compiled backbone: two streams, with and without a gradient, by the sizes of passes


@dataclass(frozen=True)
class LargeFeed:
    """What a pack asks its feed: training images per class [classes], their number, and their labels, on the device and not."""

    counts: np.ndarray
    size: int
    labels: Tensor
    cpu_labels: Tensor


class Streams(nn.Module):
    """A backbone over the streams of a step in one forward pass: images [streams, batch, ...] -> features [1, batch, width], or
    [1, streams, batch, width] of several streams."""

    def __init__(self, net: LargeNetwork):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        split = len(self.net.branches) > 1
        features = [self.net(images, k if split else None) for k, images in enumerate(x)]
        return features[0] if len(features) == 1 else torch.stack(features, 1)


class LargeRun(Pack):
    """The state of one run on every process; between batches all processes hold the same, but for statistics of batch
    normalisation "device", of which rank 0's are the run's.

    member: a run whose column's dataset is one of `LARGE`. per_device: the most images of one stream that a process takes in
    one pass; a larger share is taken in several, whose gradients add up. folder: where `weights/` may be.
    """

    captures = False  # of a step; what the processes send each other stays out of graphs

    def __init__(self, member: Run, images: LargeImages, device: Device, processes: Processes, folder: Path,
                 per_device: int | None = None, workers: int = WORKERS):
        self.members, self.device, self.runs, self.turns = [member], device, 1, [False]
        self.column, self.protocol, self.shape = member.spec.column, member.spec.protocol, member.method
        check_method(member)
        check_parts(member.method, images.counts, self.protocol)
        self.images, self.processes, self.workers = images, processes, workers
        self.streams = 1 + len(self.shape.companions)
        self.facts = replace(find_large(images.name), crop=self.protocol.crop, jitter=self.protocol.jitter)
        labels, at = torch.from_numpy(images.train_labels), use_device(device)
        self.feed = LargeFeed(images.counts, len(labels), labels.to(at), labels)
        self.groups = group_runs(self.members, images.counts)
        net = LargeNetwork(self.column.backbone, self.shape.network, self.shape.adapter)
        self.heads = nn.ModuleList(make_head(g, net.width, net.copies, self.feed.size) for g in self.groups)
        self.weights_from = self._begin_with(net, folder)
        if processes.world > 1 and self.protocol.batch_norm == "synchronised":
            share_norms(net)
        self.net = net.to(at, device.dtype).to(memory_format=torch.channels_last)
        self.heads.to(at, device.dtype)
        self._allocate(at)
        self.optimiser = self._make_optimiser()
        share = -(-self.protocol.batch_size // processes.world)
        self.per_device = min(per_device or share, share)
        self._forward: nn.Module = Streams(self.net)
        self._trained: TrainInput | None = None
        self._tests: TestInput | None = None
        self._tested = 0

    def _begin_with(self, net: LargeNetwork, folder: Path) -> str:
        """Draw all weights from the run's own generators, then load what was trained elsewhere; returns where that is from."""
        backbone = stream(self.members[0].spec.seed, "backbone")
        draw_weights([net], backbone)
        self._initialise(nn.Module())  # of a pack: draws its network, here none, and the heads
        if not self.protocol.pretrained:
            return ""
        origin = load_imagenet(net, self.column.backbone, folder)
        if self.protocol.trains == "last":
            draw_weights(net.ending, backbone)
        return origin

    def freeze(self) -> None:
        super().freeze()
        for part in self.net.ending if self.protocol.trains == "last" else ():
            part.requires_grad_(True)

    def distribute(self) -> None:
        """Compile the backbone where the device wants it, and let the processes add up its gradients. All of them call it, once,
        before the first batch."""
        if self.device.compile:
            torch.compiler.reset()  # a process keeps some versions of a function and then runs it uncompiled: make room
            torch._dynamo.config.recompile_limit = VERSIONS
            self.net.compile(dynamic=False)
        if self.processes.world > 1 and self.protocol.trains != "head":
            with warnings.catch_warnings():  # torch 2.15 deprecates the argument, which older ones need
                warnings.simplefilter("ignore", FutureWarning)
                self._forward = DistributedDataParallel(self._forward, broadcast_buffers=False)
            self._forward.register_comm_hook(None, sum_gradients)

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        if self.protocol.trains == "last":
            for part in self.net.ending:
                part.train()

    def draw(self, epoch: int) -> Drawn:
        """What the run draws in an epoch but for its noise, which is drawn batch by batch. Crops are the input's."""
        self.order = draw_order(self.shape, self.members[0].spec.seed, epoch, self.feed.cpu_labels, self.feed.counts,
                                self.protocol.batch_size)
        rows = torch.zeros(self.streams, len(ROWS), 1, self.feed.size, dtype=torch.int64)
        rows[:, INDEX, 0] = self.order.index
        rows[0, PARTNER, 0] = self.order.partner
        blend = self.order.blend[None] if self.shape.mixup else torch.zeros(0)
        return Drawn(rows[0], rows[1:], blend)

    def spans(self) -> list[Span]:
        """Where the batches of an epoch lie, and this process's share of each."""
        return spans(self.feed.size, self.protocol.batch_size, self.protocol.drop_last, self.processes.rank, self.processes.world)

    def train_batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The epoch's batches from the one numbered `first`; `begin_epoch` comes before."""
        if self._trained is None:
            self._trained = TrainInput(self.images, self.facts, self.members[0].spec.seed, self.workers, self.device.cuda)
        return self._trained.epoch(epoch, self.order, self.spans()[first:])

    def train_batch(self, epoch: int, batch: Batch) -> None:
        """One optimisation step of all processes on their shares of one batch.

        A share of several passes is seen twice: first for its features, then, with what the loss says, for the gradient.
        """
        span, trains = batch.span, self.protocol.trains != "head"
        drawn = self._drawn(epoch, span)
        own, before = shares(span.size, self.processes.world), span.first - span.start
        assert sum(own) == span.size, "the shares must make up the batch"
        assert batch.images.shape[1] == own[self.processes.rank], "a process must bring its share"
        pixels = batch.images.to(self.rate.device, non_blocking=True)
        whole = gather(self.processes, pixels[0], span.size) if self.shape.mixup else None
        passes = -(-max(own) // self.per_device)
        bounds = list(pairwise(span.share * i // passes for i in range(passes + 1)))

        def forward(a: int, b: int) -> Tensor:
            return self._features(self._input(pixels[:, a:b], whole, drawn, before + a))

        self.optimiser.zero_grad(set_to_none=True)
        once = trains and passes == 1
        blank = span.share == 0 and self.protocol.batch_norm == "device"
        with self._kept_statistics(blank):  # blank images leave none
            with nullcontext() if once else torch.no_grad(), self._kept_statistics(trains and not once):
                found = [forward(a, b) for a, b in bounds]
            features = torch.cat(found, -2).detach().requires_grad_(trains)
            everyone = gather(self.processes, features.movedim(-2, 0), span.size).movedim(0, -2)
            losses = self._losses(everyone, drawn)
            losses.sum().backward()
            for number, (a, b) in enumerate(bounds if trains else (), 1):
                with self._apart(number < passes):
                    (found[0] if once else forward(a, b)).backward(features.grad[..., a:b, :])
        self.loss_sum += losses.detach() * span.size
        share_from_first(self.processes, [p.grad for p in self.heads.parameters() if p.grad is not None])
        self.optimiser.step()
        if self.shape.head.centres:
            self.heads[0].move_centres(everyone.detach(), self.feed.labels[drawn.images[INDEX]])

    def _drawn(self, epoch: int, span: Span) -> Drawn:
        """What was drawn for all images of a batch, with its noise."""
        drawn = self.epoch_drawn.part(span.start, span.size)
        if not self.shape.noise:
            return drawn
        terms, classes = 1 + (self.shape.mixup > 0), self.groups[0].classes
        mine = draw_share_noise(self.members[0].spec.seed, epoch, self.shape.noise, span, terms, classes)
        noise = gather(self.processes, self._place(mine).transpose(0, 1), span.size).transpose(0, 1)
        return drawn._replace(noise=(noise.unsqueeze(1),))

    def _input(self, pixels: Tensor, whole: Tensor | None, drawn: Drawn, at: int) -> Tensor:
        """Network input of uint8 images [streams, n, side, side, 3], the first of which has position `at` in its batch.

        whole: all images of the batch's own stream where they are mixed with their partners.
        """
        streams, n = pixels.shape[:2]
        if whole is None:
            flat = pixels.flatten(0, 1)
        else:
            share, partner = drawn.blend[0, at:at + n, None, None, None], whole[drawn.images[PARTNER, 0, at:at + n]]
            mixed = share * pixels[0].to(share.dtype) + (1 - share) * partner.to(share.dtype)
            flat = torch.cat([mixed, pixels[1:].flatten(0, 1).to(share.dtype)])
        return as_input(flat, self.facts, self.rate.device, getattr(torch, self.device.precision)).unflatten(0, (streams, n))

    def _features(self, x: Tensor) -> Tensor:
        """Features [1, n, width] or [1, streams, n, width] of network input [streams, n, 3, side, side], in the precision of the
        weights. A process without a share takes part with blank images, whose features are left out: the others wait for it."""
        if blank := x.shape[1] == 0:
            x = x.new_zeros(len(x), 2, *x.shape[2:])
        with self.autocast(), left_out(self.net, blank):
            features = self._forward(x)
        features = features.to(self.device.dtype)
        return features[..., :0, :] if blank else features

    @contextmanager
    def _kept_statistics(self, kept: bool) -> Iterator[None]:
        """What happens inside leaves the statistics of batch normalisation as they were."""
        before = [buffer.clone() for buffer in self.net.buffers()] if kept else []
        yield
        with torch.no_grad():
            for buffer, old in zip(self.net.buffers() if kept else (), before, strict=True):
                buffer.copy_(old)

    def _apart(self, more: bool) -> AbstractContextManager:
        """Whether gradients wait on this process for those of a further pass."""
        return self._forward.no_sync() if more and isinstance(self._forward, DistributedDataParallel) else nullcontext()

    def share(self) -> None:
        """Every process gets rank 0's statistics, and its sum of losses."""
        share_from_first(self.processes, [*self.net.buffers(), *self.heads.buffers(), self.loss_sum])

    def mean_loss(self) -> float:
        """Of the epoch's images."""
        return float(self.loss_sum) / sum(self.batch_sizes)

    @torch.no_grad()
    def evaluate(self, stride: int = 1) -> LargeTally:
        """Counts over every `stride`-th image of the test set, the same on every process."""
        self.net.eval()
        self.heads.eval()
        group, head, tester, adjusted = self.groups[0], self.heads[0], self._tester(stride), self.shape.adjust is not None
        tally = LargeTally(group.classes, self.rate.device, -(-len(self.images.test_labels) // stride), adjusted)
        for at, (pixels, labels) in zip(tester.parts, tester.batches(), strict=True):
            features = self._tested_features(pixels)
            logits = class_scores(group, head, features)
            tally.add(logits + self.adjusts[0], head.seen(features), labels.to(self.rate.device, non_blocking=True),
                      torch.as_tensor(at, device=self.rate.device), logits if adjusted else None)
        tally.add_up(self.processes)
        return tally

    @torch.no_grad()
    def plain_features(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Features [1, batch, width] and labels [batch] of all training images as a test sees them; one process does it all."""
        self.net.eval()
        part = self.images._replace(test_paths=self.images.train_paths, test_labels=self.images.train_labels)
        for pixels, labels in TestInput(part, self.facts, 0, 1, TEST_BATCH, self.workers, self.device.cuda).batches():
            yield self._tested_features(pixels), labels.to(self.rate.device)

    def _tested_features(self, pixels: Tensor) -> Tensor:
        """Features [1, batch, width] of uint8 images in the precision of the weights."""
        x = as_input(pixels, self.facts, self.rate.device, getattr(torch, self.device.precision))
        with self.autocast():
            return self.net(x).to(self.device.dtype)

    def _tester(self, stride: int) -> TestInput:
        """The input of this process's test images; that of another stride is given up."""
        if self._tested != stride:
            paths, labels = self.images.test_paths[::stride], self.images.test_labels[::stride]
            part = self.images._replace(test_paths=paths, test_labels=labels)
            self._tests, self._tested = None, stride  # the worker processes of the old one end first
            self._tests = TestInput(part, self.facts, self.processes.rank, self.processes.world, TEST_BATCH, self.workers,
                                    self.device.cuda)
        return self._tests



def check_method(member: Run) -> None:
    """A method that only the small sets have is a UserError."""
    method = member.method
    for found, what in ((method.task != "classes", "a task other than the classes"),
                        (method.meta_rate or method.held_out, "held-out images"),
                        (method.clusters and method.clustering != "random", "clusters of features")):
        if found:
            raise UserError(f"{method.label} has {what}, which is built for the small sets only; leave it out on "
                            f"{member.spec.column.name}.")
