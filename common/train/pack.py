"""A pack: M runs of one column and protocol, trained side by side as one network. A pack of one is the single run.

Runs of one method are a group: they share a head module and a loss, over a leading run axis. On CUDA a step is one
graph (bf16 autocast, channels last, compiled); on the CPU the same code runs eagerly in float32.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from common.data.feed import INDEX, TURN, Draw, Feed, stream
from common.data.sets import Images
from common.method import Context, Head, Method, Outputs, Planned
from common.metrics import Tally
from common.models.heads import CosineHead, LinearHead
from common.models.resnet import backbone, initialise
from common.train.graph import capture

Precision = Literal["bfloat16", "float32", "float64"]
TEST_BATCH = 500


@dataclass(frozen=True)
class Device:
    """Where and how to compute. Never part of a run's identity; the record names it."""

    name: str
    precision: Precision
    compile: bool

    @property
    def cuda(self) -> bool:
        return self.name.startswith("cuda")

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and statistics; bfloat16 is used by autocast only."""
        return torch.float64 if self.precision == "float64" else torch.float32


@dataclass(frozen=True)
class Group:
    """Consecutive runs [first, stop) of one method, and the number of labels of its task."""

    first: int
    stop: int
    method: Method
    classes: int

    @property
    def size(self) -> int:
        return self.stop - self.first


def make_head(head: Head, runs: int, width: int, classes: int) -> nn.Module:
    return CosineHead(runs, width, classes) if head.kind == "cosine" else LinearHead(runs, width, classes, head.bias)


def group_runs(members: Sequence[Planned], classes: int) -> list[Group]:
    """The groups of runs that stand together and have the same method."""
    groups, first = [], 0
    for _, same in groupby(members, key=lambda m: m.run.method):
        same = list(same)
        method = same[0].method
        groups.append(Group(first, first + len(same), method, 4 if method.task == "rotation" else classes))
        first += len(same)
    return groups


class Pack:
    """The state of M runs: network, optimiser, feed; one `step` trains all of them on their own next batch.

    members: runs of one column and one protocol; equal methods must stand together.
    """

    def __init__(self, members: Sequence[Planned], images: Images, device: Device):
        self.members, self.device = list(members), device
        self.column, self.protocol = members[0].run.column, members[0].run.protocol
        self.runs, at = len(members), torch.device(device.name)
        if device.cuda:
            torch.cuda.set_device(at)  # streams and captures are those of the current device
        turns = [m.method.task == "rotation" for m in members]
        self.turns = turns
        self.feed = Feed(images, self.column, turns=any(turns), device=at, dtype=getattr(torch, device.precision))
        self.groups = group_runs(members, self.feed.classes)
        net = backbone(self.column.backbone, self.runs, self.feed.facts.channels)
        self.heads = nn.ModuleList(make_head(g.method.head, g.size, net.width, g.classes) for g in self.groups)
        self._initialise(net)
        self.net = net.to(at, device.dtype).to(memory_format=torch.channels_last)
        self.heads.to(at, device.dtype)
        self._allocate(at)
        self.optimiser = self._make_optimiser()
        self._forward, self._batch, self._criterion = self.net, self.feed.batch, self._losses
        if device.compile:
            torch.compiler.reset()  # a process keeps 8 versions of a function and then runs it uncompiled: make room
            self._forward, self._batch, self._criterion = (
                torch.compile(f, dynamic=False) for f in (self.net, self.feed.batch, self._losses))
        self._graphs: dict[int, Callable[[Tensor], None]] = {}
        self.memory = torch.cuda.graph_pool_handle() if device.cuda else None  # one for all graphs, whose replays never overlap

    def _initialise(self, net: nn.Module) -> None:
        seeds = [m.run.seed for m in self.members]
        initialise(net, [stream(s, "backbone") for s in seeds])
        for group, head in zip(self.groups, self.heads, strict=True):
            head.initialise([stream(s, "head") for s in seeds[group.first:group.stop]])

    def _allocate(self, at: torch.device) -> None:
        """Everything that a captured step reads or writes lives as long as the pack."""
        dtype = self.device.dtype
        # a fused optimiser reads its rate as float32; in float64 on a CPU the rate is exact
        self.rate = torch.zeros((), dtype=torch.float32 if self.device.cuda else dtype, device=at)
        self.context = Context(torch.tensor(self.feed.counts, dtype=dtype, device=at), torch.zeros((), dtype=dtype, device=at))
        self.weights = [torch.ones(g.classes, dtype=dtype, device=at) for g in self.groups]
        self.drawn = torch.zeros(5, self.runs, len(self.feed.labels), dtype=torch.int64, device=at)
        self.loss_sum = torch.zeros(self.runs, dtype=torch.float64, device=at)
        self.ended: list[int | None] = [None] * self.runs  # the epoch in which a run left the finite range
        self._ahead: dict[int, Tensor] = {}

    def _make_optimiser(self) -> torch.optim.SGD:
        bare = [h.bias for g, h in zip(self.groups, self.heads, strict=True) if not g.method.head.decay_bias]
        rest = [p for p in self.parameters() if not any(p is b for b in bare)]
        decays = [{"params": rest, "weight_decay": self.protocol.weight_decay}]
        decays += [{"params": bare, "weight_decay": 0.0}] if bare else []
        optimiser = torch.optim.SGD(decays, lr=self.rate, momentum=self.protocol.momentum, fused=self.device.cuda or None)
        for parameter in self.parameters():  # from the start, so that a captured step and a resumed one find theirs
            optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimiser

    def parameters(self) -> list[Tensor]:
        return [*self.net.parameters(), *self.heads.parameters()]

    @property
    def batch_sizes(self) -> list[int]:
        """The sizes of an epoch's batches; the last, smaller one is kept or dropped as the protocol says."""
        full, rest = divmod(len(self.feed.labels), self.protocol.batch_size)
        return [self.protocol.batch_size] * full + ([rest] if rest and not self.protocol.drop_last else [])

    def begin_epoch(self, epoch: int) -> None:
        """Set the epoch's rate and class weights, and draw its batches."""
        self.rate.fill_(self.protocol.learning_rate(epoch))
        self.context.epoch.fill_(epoch)
        self.loss_sum.zero_()
        drawn = self._ahead.pop(epoch) if epoch in self._ahead else self.draw(epoch)
        self.drawn.copy_(drawn)
        for group, weights in zip(self.groups, self.weights, strict=True):
            if group.method.task == "classes":
                weights.copy_(torch.from_numpy(np.asarray(group.method.weights(self.feed.counts, epoch), float)))
        self.net.train()

    def draw(self, epoch: int) -> Tensor:
        """What every run draws in an epoch, int64 [5, runs, images] on the CPU: a function of the epoch alone."""
        draws = [Draw(member.run.seed, member.method.sampler(self.feed.counts, epoch), turns)
                 for member, turns in zip(self.members, self.turns, strict=True)]
        return self.feed.draw(draws, epoch, self.protocol.batch_size)

    def train_epoch(self, epoch: int) -> Tensor:
        """Train one epoch. Returns each run's mean loss per sample, float64 [runs] on the CPU."""
        self.begin_epoch(epoch)
        start = 0
        for size in self.batch_sizes:
            self._run_step(self.drawn[:, :, start:start + size])
            start += size
        if self.device.cuda and epoch + 1 < self.protocol.epochs:
            self._ahead = {epoch + 1: self.draw(epoch + 1)}  # while the device works on what was launched
        return (self.loss_sum / start).cpu()

    def _run_step(self, drawn: Tensor) -> None:
        if not self.device.cuda:
            return self.step(drawn)
        size = drawn.shape[-1]
        if size not in self._graphs:
            self._graphs[size] = capture(self, drawn.clone(), compiled=size == self.protocol.batch_size)
        self._graphs[size](drawn)

    def step(self, drawn: Tensor, compiled: bool = True) -> None:
        """One optimisation step of all runs on the draws int64 [5, runs, batch]."""
        batch, forward, criterion = (self._batch, self._forward, self._criterion) if compiled else (
            self.feed.batch, self.net, self._losses)
        images = batch(drawn)
        with self._autocast():
            features = forward(images)
        losses = criterion(features.to(self.device.dtype), drawn)
        self.loss_sum += losses.detach() * drawn.shape[-1]
        self.optimiser.zero_grad(set_to_none=True)
        losses.sum().backward()  # the runs share no weight, so each gets the gradient of its own loss
        self.optimiser.step()

    def _autocast(self) -> AbstractContextManager:
        if self.device.precision == "bfloat16":
            return torch.autocast("cuda" if self.device.cuda else "cpu", dtype=torch.bfloat16)
        return nullcontext()

    def _losses(self, features: Tensor, drawn: Tensor) -> Tensor:
        """Each run's loss of its batch, [runs]. features: [runs, batch, width]."""
        labels, losses = self.feed.labels[drawn[INDEX]], []
        for group, head, weights in zip(self.groups, self.heads, self.weights, strict=True):
            part = slice(group.first, group.stop)
            y = labels[part] if group.method.task == "classes" else drawn[TURN, part]
            outputs = Outputs(head(features[part]), features[part])
            each, w = group.method.loss(outputs, y, self.context), weights[y]
            total = w.sum(-1) if group.method.reduction == "weighted" else y.shape[-1]
            losses.append((w * each).sum(-1) / total)
        return torch.cat(losses)

    @torch.no_grad()
    def evaluate(self, stride: int = 1) -> list[Tally]:
        """One tally a group over every `stride`-th image of the test set (which is ordered by class)."""
        self.net.eval()
        tallies = [Tally(g.size, g.classes, self.rate.device) for g in self.groups]
        for start in range(0, len(self.feed.test_labels), TEST_BATCH * stride):
            stop = min(start + TEST_BATCH * stride, len(self.feed.test_labels))
            images, labels, quarters = self.feed.test_batch(start, stop, stride, self.turns)
            with self._autocast():
                features = self._forward(images)
            features = features.to(self.device.dtype)
            for group, head, tally in zip(self.groups, self.heads, tallies, strict=True):
                part = features[group.first:group.stop]
                tally.add(group.method.scale * head(part), part, labels if group.method.task == "classes" else quarters)
        return tallies

    @property
    def alive(self) -> list[bool]:
        return [epoch is None for epoch in self.ended]

    def stop_run(self, run: int, epoch: int) -> None:
        """End a run that left the finite range in `epoch`: its weights become zero, its neighbours are untouched."""
        self.ended[run] = epoch
        with torch.no_grad():
            for tensor in self.run_state(run).values():
                tensor.zero_()

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """First and last + 1 run of every group."""
        return [(g.first, g.stop) for g in self.groups]

    def state(self) -> dict[str, Tensor]:
        """All weights, statistics and momenta, packed: views, named `backbone.*`, `heads.<group>.*`, `momentum.*`."""
        parts = {"backbone": self.net, "heads": self.heads}
        found = {f"{part}.{n}": t.detach() for part, module in parts.items() for n, t in module.state_dict().items()}
        for part, module in parts.items():
            for name, p in module.named_parameters():
                found[f"momentum.{part}.{name}"] = self.optimiser.state[p]["momentum_buffer"]
        return found

    def run_state(self, run: int) -> dict[str, Tensor]:
        """Views of one run's share, under the names that a pack of one has (`backbone.*`, `head.*`, `momentum.*`)."""
        return take_run(self.state(), run, self.bounds)

    def load_run_state(self, run: int, state: dict[str, Tensor]) -> None:
        """Copy into one run, in place; names that `state` lacks keep their values."""
        mine = self.run_state(run)
        with torch.no_grad():
            for name, tensor in state.items():
                mine[name].copy_(tensor)


def take_run(state: Mapping[str, Tensor], run: int, bounds: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """One run's share of a packed state. Backbone tensors have a first axis of runs * channels, heads of a group's runs."""
    share, runs = {}, bounds[-1][1]
    for name, tensor in state.items():
        before, found, after = name.partition("heads.")
        if not found:
            share[name] = tensor.chunk(runs)[run]
            continue
        group, _, rest = after.partition(".")
        first, stop = bounds[int(group)]
        if first <= run < stop:
            share[f"{before}head.{rest}"] = tensor[run - first:run - first + 1]
    return share
