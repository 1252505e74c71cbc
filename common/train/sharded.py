"""Steps of one run on a large set, whose images come from files, spread over the processes of torchrun.

Each process computes the features of its share of a batch. Features are few, so all are gathered, and every process
computes the head and the loss of the whole batch: whatever a loss does with its batch (weighted means, means of classes,
mixup, moving centres), it does as one process would. The gradient of the features goes back to the process that made
them, and DDP adds up those of the backbone.
"""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.data.decoding import Batch, TestInput, TrainInput, as_input
from common.data.feed import INDEX, PARTNER, ROWS, EpochDraws, generator_for
from common.data.large_sets import find_large
from common.data.lists import LargeImages
from common.data.shares import Span, draw_order, draw_share_noise, spans
from common.errors import UserError
from common.models.imagenet import LargeNetwork, draw_weights, exclude_from_batch_stats, load_imagenet, share_norms
from common.plan import Run
from common.train.checks import check_members
from common.train.device import Device, use_device
from common.train.distributed import Ranks, broadcast_tensors, gather, shares, sum_gradients
from common.train.pack import Pack
from common.train.tally import Tally

WORKERS = 8  # processes that decode images, for each training process
TEST_BATCH = 256
VERSIONS = 32  # of the compiled backbone: two streams, with and without a gradient, by the sizes of passes


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


class ShardedSteps:
    """The steps of a pack of one; between batches its state is the same on all processes, but for statistics of batch
    normalisation "device", of which rank 0's are the run's.

    member: a run whose column's dataset is one of `LARGE`. per_device: the most images of one stream that a process takes in
    one pass; a larger share is taken in several, whose gradients add up. folder: where `weights/` may be.
    """

    path, pausable = "eager", True

    def __init__(self, member: Run, images: LargeImages, device: Device, processes: Ranks, folder: Path,
                 per_device: int | None = None, workers: int = WORKERS):
        check_method(member)
        check_members([member], images.counts)
        self.images, self.processes, self.workers, self.threads = images, processes, workers, torch.get_num_threads()
        self.protocol, self.shape, self.seed = member.spec.protocol, member.method, member.spec.seed
        self.facts = replace(find_large(images.name), crop=self.protocol.crop, jitter=self.protocol.jitter)
        at, labels = use_device(device), torch.from_numpy(images.train_labels)
        net, self.weights_from = begin_network(member, folder)
        if processes.world > 1 and self.protocol.batch_norm == "synchronised":
            share_norms(net)
        device = replace(device, graph=False)  # what the processes send each other stays out of graphs
        self.pack = Pack([member], net, device, images.counts, labels.to(at), labels)
        share = -(-self.protocol.batch_size // processes.world)
        self.per_device = min(per_device or share, share)
        self._forward: nn.Module = Streams(net)
        self._trained: TrainInput | None = None
        self._tests: TestInput | None = None
        self._tested = 0

    def get_ready(self, resumed: bool = False) -> None:
        """Compile the backbone where the device wants it, and let the processes add up its gradients. All of them call it, once,
        before the first batch."""
        if self.pack.device.compile:
            torch.compiler.reset()  # a process keeps some versions of a function and then runs it uncompiled: make room
            torch._dynamo.config.recompile_limit = VERSIONS
            self.pack.net.compile(dynamic=False)
        if self.processes.world > 1 and self.protocol.trains != "head":
            with warnings.catch_warnings():  # torch 2.15 deprecates the argument, which older ones need
                warnings.simplefilter("ignore", FutureWarning)
                self._forward = DistributedDataParallel(self._forward, broadcast_buffers=False)
            self._forward.register_comm_hook(None, sum_gradients)

    def begin_epoch(self, epoch: int, first: int = 0) -> None:
        """Set the epoch's rate and class weights, and draw its batches."""
        self.pack.begin_epoch(epoch, self.draw(epoch), first)

    def draw(self, epoch: int) -> EpochDraws:
        """What the run draws in an epoch but for its noise, which is drawn batch by batch. Crops are the input's."""
        self.order = draw_order(self.shape, self.seed, epoch, self.pack.cpu_labels, self.pack.counts,
                                self.protocol.batch_size)
        rows = torch.zeros(self.pack.streams, len(ROWS), 1, self.pack.size, dtype=torch.int64)
        rows[:, INDEX, 0] = self.order.index
        rows[0, PARTNER, 0] = self.order.partner
        blend = self.order.blend[None] if self.shape.mixup else torch.zeros(0)
        return EpochDraws(rows[0], rows[1:], blend)

    def spans(self) -> list[Span]:
        """Where the batches of an epoch lie, and this process's share of each."""
        return spans(self.pack.size, self.protocol.batch_size, self.protocol.drop_last, self.processes.rank, self.processes.world)

    def train_batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The epoch's batches from the one numbered `first`; `begin_epoch` comes before."""
        if self._trained is None:
            self._trained = TrainInput(self.images, self.facts, self.seed, self.workers, self.pack.device.cuda)
        return self._trained.epoch(epoch, self.order, self.spans()[first:])

    def train_batch(self, epoch: int, batch: Batch) -> int:
        """One optimisation step of all processes; returns the images of the batch."""
        try:
            self._step(epoch, batch)
        except torch.OutOfMemoryError:
            raise UserError(f"{self.per_device} images of {self.pack.members[0].label} do not fit into the memory of "
                            f"{self.pack.device.name}; give fewer at once, as in --per-device {max(1, self.per_device // 2)}."
                            ) from None
        return batch.span.size

    def _step(self, epoch: int, batch: Batch) -> None:
        """One optimisation step of all processes on their shares of one batch.

        A share of several passes is seen twice: first for its features, then, with what the loss says, for the gradient.
        """
        span, trains = batch.span, self.protocol.trains != "head"
        drawn = self._drawn(epoch, span)
        own, before = shares(span.size, self.processes.world), span.first - span.start
        assert sum(own) == span.size, "the shares must make up the batch"
        assert batch.images.shape[1] == own[self.processes.rank], "a process must bring its share"
        pixels = batch.images.to(self.pack.rate.device, non_blocking=True)
        whole = gather(self.processes, pixels[0], span.size) if self.shape.mixup else None
        passes = -(-max(own) // self.per_device)
        bounds = list(pairwise(span.share * i // passes for i in range(passes + 1)))

        def forward(a: int, b: int) -> Tensor:
            return self._features(self._input(pixels[:, a:b], whole, drawn, before + a))

        self.pack.optimiser.zero_grad(set_to_none=True)
        once = trains and passes == 1
        blank = span.share == 0 and self.protocol.batch_norm == "device"
        with self._kept_statistics(blank):  # blank images leave none
            with nullcontext() if once else torch.no_grad(), self._kept_statistics(trains and not once):
                parts = [forward(a, b) for a, b in bounds]
            features = torch.cat(parts, -2).detach().requires_grad_(trains)
            everyone = gather(self.processes, features.movedim(-2, 0), span.size).movedim(0, -2)
            losses = self.pack.losses(everyone, drawn)
            losses.sum().backward()
            for number, (a, b) in enumerate(bounds if trains else (), 1):
                with self.no_sync_before_last_pass(number < passes):
                    (parts[0] if once else forward(a, b)).backward(features.grad[..., a:b, :])
        self.pack.loss_sum += losses.detach() * span.size
        broadcast_tensors(self.processes, [p.grad for p in self.pack.heads.parameters() if p.grad is not None])
        self.pack.optimiser.step()
        self.pack.move_centres(everyone, drawn)

    def _drawn(self, epoch: int, span: Span) -> EpochDraws:
        """What was drawn for all images of a batch, with its noise."""
        drawn = self.pack.epoch_drawn.part(span.start, span.size)
        if not self.shape.noise:
            return drawn
        terms, classes = 1 + (self.shape.mixup > 0), self.pack.groups[0].classes
        mine = draw_share_noise(self.seed, epoch, self.shape.noise, span, terms, classes)
        noise = gather(self.processes, self.pack.place(mine).transpose(0, 1), span.size).transpose(0, 1)
        return drawn._replace(noise=(noise.unsqueeze(1),))

    def _input(self, pixels: Tensor, whole: Tensor | None, drawn: EpochDraws, at: int) -> Tensor:
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
        return self._as_input(flat).unflatten(0, (streams, n))

    def _as_input(self, pixels: Tensor) -> Tensor:
        """Network input of uint8 images."""
        return as_input(pixels, self.facts, self.pack.rate.device, getattr(torch, self.pack.device.precision))

    def _features(self, x: Tensor) -> Tensor:
        """Features [1, n, width] or [1, streams, n, width] of network input [streams, n, 3, side, side], in the precision of the
        weights. A process without a share takes part with blank images, whose features are left out: the others wait for it."""
        if blank := x.shape[1] == 0:
            x = x.new_zeros(len(x), 2, *x.shape[2:])
        with self.pack.autocast(), exclude_from_batch_stats(self.pack.net, blank):
            features = self._forward(x)
        features = features.to(self.pack.device.dtype)
        return features[..., :0, :] if blank else features

    @contextmanager
    def _kept_statistics(self, kept: bool) -> Iterator[None]:
        """What happens inside leaves the statistics of batch normalisation as they were."""
        before = [buffer.clone() for buffer in self.pack.net.buffers()] if kept else []
        yield
        with torch.no_grad():
            for buffer, old in zip(self.pack.net.buffers() if kept else (), before, strict=True):
                buffer.copy_(old)

    def no_sync_before_last_pass(self, more: bool) -> AbstractContextManager:
        """While `more` passes follow, gradients stay on this process; DDP adds up those of all processes after the last one."""
        return self._forward.no_sync() if more and isinstance(self._forward, DistributedDataParallel) else nullcontext()

    @torch.no_grad()
    def evaluate(self, stride: int = 1) -> list[Tally]:
        """Counts over every `stride`-th image of the test set, the same on every process."""
        pack, tester = self.pack, self._tester(stride)
        pack.net.eval()
        pack.heads.eval()
        tallies = pack.new_tallies(-(-len(self.images.test_labels) // stride), large=True)
        for at, (pixels, labels) in zip(tester.parts, tester.batches(), strict=True):
            places = torch.as_tensor(at, device=pack.rate.device)
            pack.judge(tallies, self._tested_features(pixels), labels.to(pack.rate.device, non_blocking=True), places)
        tallies[0].add_up(self.processes)
        return tallies

    def stored_features(self, run: int) -> dict[str, Any]:
        """None: those of a large set are too many for a record."""
        return {}

    def about(self, images: int, seconds: float) -> dict[str, Any]:
        """The processes, the images of each in one pass, the lists, where weights came from, and training images a second and
        device, the tests' time included."""
        return {
            "processes": self.processes.world, "images_a_pass": self.per_device, "batch_norm": self.protocol.batch_norm,
            "weights": self.weights_from, "lists": self.images.digest, "official": self.images.official,
            "images_per_second": round(images / seconds, 2),
        }

    def go_eager(self) -> None:
        """There are no C++ passes for large images."""

    @torch.no_grad()
    def plain_features(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Features [1, batch, width] and labels [batch] of all training images as a test sees them; one process does it all."""
        self.pack.net.eval()
        part = self.images._replace(test_paths=self.images.train_paths, test_labels=self.images.train_labels)
        for pixels, labels in TestInput(part, self.facts, 0, 1, TEST_BATCH, self.workers, self.pack.device.cuda).batches():
            yield self._tested_features(pixels), labels.to(self.pack.rate.device)

    def _tested_features(self, pixels: Tensor) -> Tensor:
        """Features [1, batch, width] of uint8 images in the precision of the weights."""
        with self.pack.autocast():
            return self.pack.net(self._as_input(pixels)).to(self.pack.device.dtype)

    def _tester(self, stride: int) -> TestInput:
        """The input of this process's test images; that of another stride is given up."""
        if self._tested != stride:
            paths, labels = self.images.test_paths[::stride], self.images.test_labels[::stride]
            part = self.images._replace(test_paths=paths, test_labels=labels)
            self._tests, self._tested = None, stride  # the worker processes of the old one end first
            self._tests = TestInput(part, self.facts, self.processes.rank, self.processes.world, TEST_BATCH, self.workers,
                                    self.pack.device.cuda)
        return self._tests


def begin_network(member: Run, folder: Path) -> tuple[LargeNetwork, str]:
    """The backbone with all weights drawn from the run's own generator, then those that were trained elsewhere; and where these
    are from."""
    protocol, method, name = member.spec.protocol, member.method, member.spec.column.backbone
    net, generator = LargeNetwork(name, method.net.kind, method.net.adapter), generator_for(member.spec.seed, "backbone")
    draw_weights([net], generator)
    if not protocol.pretrained:
        return net, ""
    origin = load_imagenet(net, name, folder)
    if protocol.trains == "last":
        draw_weights(net.ending, generator)
    return net, origin


def check_method(member: Run) -> None:
    """A method that only the small sets have is a UserError."""
    method = member.method
    for present, what in ((method.task != "classes", "a task other than the classes"),
                          (method.meta.rate or method.meta.held_out, "held-out images"),
                          (method.clusters and method.clusters.by != "random", "clusters of features")):
        if present:
            raise UserError(f"{method.label} has {what}, which is built for the small sets only; leave it out on "
                            f"{member.spec.column.name}.")
