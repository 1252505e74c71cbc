"""A pack: M runs of one column and protocol, trained side by side as one network. A pack of one is the single run.

Runs of one method are a group: they share a head module and a loss, over a leading run axis. On CUDA a step is one
graph (bf16 autocast, channels last, compiled); on the CPU the same code runs eagerly in float32.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from common.data.feed import INDEX, PARTNER, TURN, Draw, Drawn, Feed, draw_noise, stream
from common.data.sets import Images
from common.methods.method import Context
from common.models.backbones import backbone
from common.models.cpu_step import CpuStep, cpu_step
from common.models.resnet import initialise
from common.models.sizes import BACKBONES
from common.plan import Run
from common.train.ahead import Ahead
from common.train.checks import check_parts, per_sample
from common.train.clusters import cluster_counts, divide_randomly
from common.train.graph import capture
from common.train.groups import Group, class_scores, group_runs, make_head, make_outputs, own_labels
from common.train.meta import learn_weights
from common.train.tally import Tally

Precision = Literal["bfloat16", "float32", "float64"]
TEST_BATCH = 500
SGD, ADAM = {"momentum": "momentum_buffer"}, {"momentum": "exp_avg", "square": "exp_avg_sq"}
MOMENTS = {"sgd": SGD, "nesterov": SGD, "adam": ADAM, "adamw": ADAM}  # what a state calls the optimiser's averages


@dataclass(frozen=True)
class Device:
    """Where and how to compute. Never part of a run's identity; the record names it."""

    name: str
    precision: Precision
    compile: bool
    graph: bool = True  # on CUDA: whether a step is captured once and replayed, else launched kernel by kernel

    @property
    def cuda(self) -> bool:
        return self.name.startswith("cuda")

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and statistics; bfloat16 is used by autocast only."""
        return torch.float64 if self.precision == "float64" else torch.float32


def use_device(device: Device) -> torch.device:
    """Make the device this process's own, with the settings of cuDNN that it wants; returns it with its number.

    TF32 is for bfloat16 alone: float32 means float32.
    """
    at = torch.device(device.name)
    if not device.cuda:
        return at
    if at.index is None:
        at = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.set_device(at)  # streams and captures are those of the current device
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = device.precision == "bfloat16"
    return at


class Pack:
    """The state of M runs: network, optimiser, feed; one `step` trains all of them on their own next batch.

    members: runs of one column, one protocol and one shape; equal methods must stand together.
    """

    ahead: Ahead | None = None  # where a GPU works while the next epoch is drawn

    def __init__(self, members: Sequence[Run], images: Images, device: Device):
        self.members, self.device = list(members), device
        self.column, self.protocol = members[0].spec.column, members[0].spec.protocol
        self.runs, at = len(members), use_device(device)
        turns = [m.method.task == "rotation" for m in members]
        self.turns = turns
        self.shape = members[0].method
        self.streams = 1 + len(self.shape.companions)
        self.feed = Feed(images, self.column, turns=any(turns), device=at, dtype=getattr(torch, device.precision),
                         held_out=self.shape.held_out)
        for method in dict.fromkeys(m.method for m in members):
            check_parts(method, self.feed.counts, self.protocol)
        self.groups = group_runs(members, self.feed.counts)
        net = backbone(self.column.backbone, self.runs, self.feed.facts.channels, self.shape.network, self.feed.facts.side,
                       self.shape.adapter)
        self.heads = nn.ModuleList(make_head(g, net.width, net.copies, self.feed.size) for g in self.groups)
        self._initialise(net)
        self.net = net.to(at, device.dtype).to(memory_format=torch.channels_last)
        self.heads.to(at, device.dtype)
        self._allocate(at)
        self.optimiser = self._make_optimiser()
        self._forward, self._batch, self._criterion = self.net, self.feed.batch, self._losses
        self.path, self.threads = "eager", torch.get_num_threads()
        if native := self._make_native():
            self._forward, self.path = native, "native"
        if device.compile:
            torch.compiler.reset()  # a process keeps 8 versions of a function and then runs it uncompiled: make room
            self._forward, self._batch, self._criterion = (
                torch.compile(f, dynamic=False) for f in (self.net, self.feed.batch, self._losses))
        self._graphs: dict[tuple[int, bool], Callable[[Drawn], None]] = {}
        self.memory = torch.cuda.graph_pool_handle() if self.captures else None  # one for all graphs, whose replays never overlap
        if device.cuda:
            self.ahead = Ahead(self.draw, device.dtype)

    @property
    def captures(self) -> bool:
        """Whether a step is a CUDA graph."""
        return self.device.cuda and self.device.graph

    def close(self) -> None:
        """Wait for what is still being drawn, so that nothing holds the pack's memory."""
        if self.ahead:
            self.ahead.close()

    def _initialise(self, net: nn.Module) -> None:
        seeds = [m.spec.seed for m in self.members]
        initialise(net, [stream(s, "backbone") for s in seeds])
        for group, head in zip(self.groups, self.heads, strict=True):
            head.initialise([stream(s, "head") for s in seeds[group.first:group.stop]])
            if group.parent and group.method.clustering == "random":
                each, labels = cluster_counts(group.method, self.feed.counts), self.feed.cpu_labels
                for clusters, seed in zip(head.clusters, seeds[group.first:group.stop], strict=True):
                    clusters.copy_(divide_randomly(labels, each, stream(seed, "clusters")))

    def _allocate(self, at: torch.device) -> None:
        """Everything that a captured step reads or writes lives as long as the pack."""
        dtype = self.device.dtype
        # a fused optimiser reads its rate as float32; in float64 on a CPU the rate is exact
        self.rate = torch.zeros((), dtype=torch.float32 if self.device.cuda else dtype, device=at)
        self.rates = {factor: torch.zeros_like(self.rate) for factor in {g.method.head.rate for g in self.groups} - {0.0, 1.0}}
        self.rates[1.0] = self.rate
        self.context = Context(torch.tensor(self.feed.counts, dtype=dtype, device=at), torch.zeros((), dtype=dtype, device=at))
        self.weights = [torch.ones(g.classes, dtype=dtype, device=at) for g in self.groups]
        self.adjusts = [torch.zeros((), dtype=dtype, device=at) if g.method.adjust is None else
                        torch.tensor(np.asarray(g.method.adjust(self.feed.counts)), dtype=dtype, device=at) for g in self.groups]
        self.epoch_drawn: Drawn | None = None
        self.loss_sum = torch.zeros(self.runs, dtype=torch.float64, device=at)
        self.ended: list[int | None] = [None] * self.runs  # the epoch in which a run left the finite range

    def _make_optimiser(self) -> torch.optim.Optimizer:
        """What is frozen gets no gradient; what a head says may have a rate of its own, its bias no decay.

        On CUDA Adam's count of steps is on the device, where a captured step moves it.
        """
        self.freeze()
        decays: dict[tuple[float, float], list[Tensor]] = {}
        for parameter in self.net.parameters():
            decays.setdefault((1.0, self.protocol.weight_decay), []).append(parameter)
        for group, module in zip(self.groups, self.heads, strict=True):
            head = group.method.head
            for name, parameter in module.named_parameters():
                factor = module.factor(name, head.rate)
                decay = 0.0 if name == "bias" and not head.decay_bias else self.protocol.weight_decay
                parameter.requires_grad_(factor > 0)
                decays.setdefault((factor, decay), []).append(parameter)
        groups = [{"params": kept, "weight_decay": decay, "lr": self.rates[factor]} for (factor, decay), found in decays.items()
                  if (kept := [p for p in found if p.requires_grad])]
        how = {"lr": self.rate, "fused": self.device.cuda or None}
        kind, momentum = self.protocol.optimiser, self.protocol.momentum
        if kind in ("sgd", "nesterov"):
            optimiser = torch.optim.SGD(groups, momentum=momentum, nesterov=kind == "nesterov", **how)
        else:
            optimiser = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind](
                groups, betas=(momentum, 0.999), capturable=self.captures, **how)
        for parameter in self.parameters():  # from the start, so that a captured step and a resumed one find theirs
            zeros = {name: torch.zeros_like(parameter) for name in MOMENTS[kind].values()}
            count = {} if kind in ("sgd", "nesterov") else {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device)}
            optimiser.state[parameter].update(zeros | count)
        return optimiser

    def _make_native(self) -> CpuStep | None:
        """The network's passes in C++, where they know it: of a single run that trains all of it, in float32 on the CPU."""
        known = (self.device == Device("cpu", "float32", False) and self.runs == self.streams == 1 and not self.shape.meta_rate
                 and self.protocol.trains == "all")
        return cpu_step(self.net, BACKBONES[self.column.backbone], self.feed.facts.channels, self.feed.facts.side,
                        min(self.protocol.batch_size, self.feed.size)) if known else None

    def go_eager(self) -> None:
        """Leave the C++ passes to go on with torch's own operations."""
        self._forward, self.path = self.net, "eager"

    def freeze(self) -> None:
        """What of the backbone is trained."""
        self.net.requires_grad_(self.protocol.trains == "all")

    def counters(self) -> list[Tensor]:
        """The optimiser's own counts of steps, where it keeps them: the same number for every run."""
        return [self.optimiser.state[p]["step"] for p in self.parameters() if "step" in self.optimiser.state[p]]

    def set_steps(self, epochs: int) -> None:
        """Let the optimiser know that so many epochs have been trained."""
        for counter in self.counters():
            counter.fill_(epochs * len(self.batch_sizes))

    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [p for p in (*self.net.parameters(), *self.heads.parameters()) if p.requires_grad]

    @property
    def drawn(self) -> Tensor:
        """What every run draws of its own images in this epoch, int64 [rows, runs, images]."""
        return self.epoch_drawn.images

    def batches(self) -> list[Drawn]:
        """The epoch's batches: views of what was drawn."""
        starts = np.cumsum([0, *self.batch_sizes[:-1]])
        return [self.epoch_drawn.part(int(start), size) for start, size in zip(starts, self.batch_sizes, strict=True)]

    @property
    def batch_sizes(self) -> list[int]:
        """The sizes of an epoch's batches; the last, smaller one is kept or dropped as the protocol says."""
        full, rest = divmod(self.feed.size, self.protocol.batch_size)
        return [self.protocol.batch_size] * full + ([rest] if rest and not self.protocol.drop_last else [])

    def begin_epoch(self, epoch: int) -> None:
        """Set the epoch's rate and class weights, and draw its batches."""
        for factor, rate in self.rates.items():
            rate.fill_(factor * self.protocol.learning_rate(epoch))
        self.context.epoch.fill_(epoch)
        self.loss_sum.zero_()
        drawn = self.ahead.take(epoch) if self.ahead else self.draw(epoch)
        if self.epoch_drawn is None:
            self.epoch_drawn = drawn.map(self._place)
        else:
            self.epoch_drawn.copy_(drawn)
        self.learns_weights = self.shape.meta_rate > 0 and epoch >= min(self.protocol.decay_epochs, default=0)
        for group, weights in zip(self.groups, self.weights, strict=True):
            if group.method.task == "classes":
                weights.copy_(torch.from_numpy(np.asarray(group.method.weights(self.feed.counts, epoch), float)))
        self.net.train(self.protocol.trains == "all" or self.protocol.moving_statistics)
        self.heads.train()

    def _place(self, drawn: Tensor) -> Tensor:
        """A copy on the device, in its precision where it is no integer."""
        dtype = self.device.dtype if drawn.is_floating_point() else drawn.dtype
        return drawn.to(self.rate.device, dtype, non_blocking=True, copy=True)

    def draw(self, epoch: int) -> Drawn:
        """What every run draws in an epoch, on the CPU: a function of the epoch alone."""
        counts, draws = self.feed.counts, []
        for member, turns in zip(self.members, self.turns, strict=True):
            method = member.method
            others = tuple(sampler(counts, epoch) for sampler in method.companions)
            draws.append(Draw(member.spec.seed, method.sampler(counts, epoch), turns, others, method.mixup))
        drawn = self.feed.draw(draws, epoch, self.protocol.batch_size)
        return drawn._replace(noise=tuple(self._draw_noise(g, epoch) for g in self.groups if g.method.noise))

    def _draw_noise(self, group: Group, epoch: int) -> Tensor:
        """[terms, runs, images, classes]: one term, or one for each of the two labels of mixup."""
        shape = (1 + (group.method.mixup > 0), self.feed.size, group.classes)
        members = self.members[group.first:group.stop]
        return torch.stack([draw_noise(m.spec.seed, epoch, group.method.noise, shape) for m in members], 1)

    def train_epoch(self, epoch: int) -> Tensor:
        """Train one epoch. Returns each run's mean loss per sample, float64 [runs] on the CPU."""
        self.begin_epoch(epoch)
        if self.ahead and epoch + 1 < self.protocol.epochs:
            self.ahead.begin(epoch + 1)
        for batch in self.batches():
            self._run_step(batch)
        return (self.loss_sum / sum(self.batch_sizes)).cpu()

    def _run_step(self, drawn: Drawn) -> None:
        size = drawn.images.shape[-1]
        compiled = size == self.protocol.batch_size  # one smaller batch an epoch is not worth a compilation
        if not self.captures:
            return self.step(drawn, compiled)
        kind = size, self.learns_weights
        if kind not in self._graphs:
            self._graphs[kind] = capture(self, drawn.map(torch.clone), compiled)
        self._graphs[kind](drawn)

    def step(self, drawn: Drawn, compiled: bool = True) -> None:
        """One optimisation step of all runs on a batch of draws."""
        learned = learn_weights(self, drawn) if self.learns_weights else None
        features, losses = self.features_and_losses(drawn, learned, compiled)
        self.loss_sum += losses.detach() * drawn.images.shape[-1]
        self.optimiser.zero_grad(set_to_none=True)
        losses.sum().backward()  # the runs share no weight, so each gets the gradient of its own loss
        self.optimiser.step()
        self.move_centres(features, drawn)

    def features_and_losses(self, drawn: Drawn, learned: Tensor | None, compiled: bool = True) -> tuple[Tensor, Tensor]:
        """Of a batch of draws: [runs, batch, width] or [runs, streams, batch, width], and [runs]; `learned` as in `_losses`."""
        batch, forward, criterion = (self._batch, self._forward, self._criterion) if compiled else (
            self.feed.batch, self.net, self._losses)
        images = [batch(drawn.images, drawn.blend if drawn.blend.numel() else None), *(batch(other) for other in drawn.others)]
        if self.shape.meta_rate:
            images = images[:1]  # the held-out images teach the weights only
        with self.autocast(), nullcontext() if self.protocol.trains == "all" else torch.no_grad():
            features = [forward(x, k if self.shape.network == "bilateral" else None) for k, x in enumerate(images)]
        features = (features[0] if len(features) == 1 else torch.stack(features, 1)).to(self.device.dtype)
        return features, criterion(features, drawn, learned)

    def move_centres(self, features: Tensor, drawn: Drawn) -> None:
        """Where heads have centres, which no gradient moves."""
        for group, head in zip(self.groups, self.heads, strict=True):
            if group.method.head.centres:
                part = slice(group.first, group.stop)
                head.move_centres(features[part].detach(), self.feed.labels[drawn.images[INDEX, part]])

    def autocast(self) -> AbstractContextManager:
        if self.device.precision == "bfloat16":
            return torch.autocast("cuda" if self.device.cuda else "cpu", dtype=torch.bfloat16)
        return nullcontext()

    def _losses(self, features: Tensor, drawn: Drawn, learned: Tensor | None = None) -> Tensor:
        """Each run's loss of its batch, [runs]. features: [runs, batch, width], or [runs, streams, batch, width];
        learned: sample weights [runs, batch] in the place of the class weights."""
        labels, noise, losses = self.feed.labels[drawn.images[INDEX]], iter(drawn.noise), []
        for group, head, weights in zip(self.groups, self.heads, self.weights, strict=True):
            part, method = slice(group.first, group.stop), group.method
            drawn_noise = next(noise) if method.noise else None
            outputs = make_outputs(method, head, features[part], self.context)
            mine = self.context._replace(parent=head.parent) if group.parent else self.context
            terms = [own_labels(group, head, labels[part], drawn.images[INDEX, part]) if method.task == "classes" else
                     drawn.images[TURN, part]]
            shares: list[Tensor | float] = [1.0]
            if method.mixup:
                share = drawn.blend[part]
                terms.append(terms[0].gather(-1, drawn.images[PARTNER, part]))
                shares = [share, 1 - share]
            total, weight = 0.0, 0.0
            for k, (y, share) in enumerate(zip(terms, shares, strict=True)):
                context = mine if drawn_noise is None else mine._replace(noise=drawn_noise[k])
                w = share * (weights[head.parent[y] if group.parent else y] if learned is None else learned[part])
                loss = per_sample(method.loss(outputs, self._seen(y, drawn, part), context), y, method)
                total, weight = total + (w * loss).sum(-1), weight + w
            losses.append(total / (weight.sum(-1) if method.reduction == "weighted" else labels.shape[-1]))
        return torch.cat(losses)

    def _seen(self, labels: Tensor, drawn: Drawn, part: slice) -> Tensor:
        """The labels as the loss wants them: [runs, batch], or [runs, streams, batch] where it sees several streams."""
        if self.streams == 1 or self.shape.meta_rate:
            return labels
        others = self.feed.labels[drawn.others[:, INDEX, part]].transpose(0, 1)
        return torch.cat([labels.unsqueeze(1), others], 1)

    @torch.no_grad()
    def evaluate(self, stride: int = 1) -> list[Tally]:
        """One tally a group over every `stride`-th image of the test set (which is ordered by class)."""
        self.net.eval()
        self.heads.eval()
        tallies = [Tally(g.size, g.classes, self.rate.device) for g in self.groups]
        for start in range(0, len(self.feed.test_labels), TEST_BATCH * stride):
            stop = min(start + TEST_BATCH * stride, len(self.feed.test_labels))
            images, labels, quarters = self.feed.test_batch(start, stop, stride, self.turns)
            forward = self._forward if len(images) == TEST_BATCH else self.net  # a remainder is not worth a compilation
            with self.autocast():
                features = forward(images)
            features = features.to(self.device.dtype)
            for group, head, adjust, tally in zip(self.groups, self.heads, self.adjusts, tallies, strict=True):
                part = features[group.first:group.stop]
                logits = class_scores(group, head, part)
                tally.add(logits + adjust, head.seen(part), labels if group.method.task == "classes" else quarters,
                          unadjusted=logits if group.method.adjust else None)
        return tallies

    @torch.no_grad()
    def features(self, run: int, split: str, most: int) -> tuple[Tensor, Tensor]:
        """One run's features [images, width] and labels of at most `most` images of each class of "train" or "test"."""
        self.net.eval()
        images, labels = self.feed.first_of_each(split, most, self.runs)
        head = next(h for g, h in zip(self.groups, self.heads, strict=True) if g.first <= run < g.stop)
        with self.autocast():
            found = torch.cat([head.seen(self.net(part)[run].float()) for part in images.split(TEST_BATCH)])
        return found, labels

    @torch.no_grad()
    def plain_features(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Features [runs, batch, width] and labels [batch] of all training images as they are, batch by batch."""
        self.net.eval()
        for part in torch.arange(self.feed.size, device=self.rate.device).split(TEST_BATCH):
            with self.autocast():
                features = self.net(self.feed.plain("train", part, self.runs))
            yield features.to(self.device.dtype), self.feed.labels[part]

    @property
    def alive(self) -> list[bool]:
        return [epoch is None for epoch in self.ended]

    def stop_run(self, run: int, epoch: int) -> None:
        """End a run that left the finite range in `epoch`: its weights become zero, its neighbours are untouched."""
        self.ended[run] = epoch
        with torch.no_grad():
            for tensor in self.run_state(run).values():
                tensor.zero_()

    def group_of(self, run: int) -> int:
        """The number of the group that a run belongs to."""
        return next(i for i, g in enumerate(self.groups) if g.first <= run < g.stop)

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """First and last + 1 run of every group."""
        return [(g.first, g.stop) for g in self.groups]

    def state(self) -> dict[str, Tensor]:
        """All weights, statistics and moments, packed: views, named `backbone.*`, `heads.<group>.*`, `momentum.*`, `square.*`."""
        parts = {"backbone": self.net, "heads": self.heads}
        found = {f"{part}.{n}": t.detach() for part, module in parts.items() for n, t in module.state_dict().items()}
        for part, module in parts.items():
            for name, p in module.named_parameters():
                for kind, entry in MOMENTS[self.protocol.optimiser].items() if p.requires_grad else ():
                    found[f"{kind}.{part}.{name}"] = self.optimiser.state[p][entry]
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
            each = len(tensor) // runs
            share[name] = tensor[run * each:(run + 1) * each]
            continue
        group, _, rest = after.partition(".")
        first, stop = bounds[int(group)]
        if first <= run < stop:
            share[f"{before}head.{rest}"] = tensor[run - first:run - first + 1]
    return share
