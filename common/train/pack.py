"""A pack: M runs of one column and protocol, trained side by side as one network. A pack of one is the single run.

Runs of one method are a group: they share a head module and a loss, over a leading run axis. Here are their state and their
losses; how a step comes to its images and features is for `ResidentSteps` and `ShardedSteps`.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from common.data.feed import INDEX, PARTNER, TURN, EpochDraws, generator_for
from common.methods.method import Context
from common.plan import Run
from common.train.checks import per_sample
from common.train.clusters import cluster_counts, divide_randomly
from common.train.device import Device
from common.train.groups import class_scores, group_runs, make_head, make_outputs, own_labels
from common.train.tally import Tally

SGD, ADAM = {"momentum": "momentum_buffer"}, {"momentum": "exp_avg", "square": "exp_avg_sq"}
MOMENTS = {"sgd": SGD, "nesterov": SGD, "adam": ADAM, "adamw": ADAM}  # what a state calls the optimiser's averages


class Pack:
    """The state of M runs: network, heads, optimiser; and the losses of their batches.

    members: runs of one column, one protocol and one shape; equal methods must stand together. net: with its first weights.
    counts: training images of each class, [classes]. labels: int64 on the device, of the training images and, after them, of
    the held-out ones; cpu_labels: of the training images, on the CPU.
    """

    def __init__(self, members: Sequence[Run], net: nn.Module, device: Device, counts: np.ndarray, labels: Tensor,
                 cpu_labels: Tensor):
        self.members, self.device = list(members), device
        self.column, self.protocol, self.shape = members[0].spec.column, members[0].spec.protocol, members[0].method
        self.runs, self.streams = len(members), self.shape.streams.number
        self.counts, self.labels, self.cpu_labels, self.size = counts, labels, cpu_labels, len(cpu_labels)
        self.groups = group_runs(members, counts)
        self.heads = nn.ModuleList(make_head(g, net.width, net.copies, self.size) for g in self.groups)
        self._draw_heads()
        self.net = net.to(labels.device, device.dtype).to(memory_format=torch.channels_last)
        self.heads.to(labels.device, device.dtype)
        self._allocate(labels.device)
        self.optimiser = self._make_optimiser()

    def _draw_heads(self) -> None:
        """First weights of every run's head, and its random clusters, from the run's own generators."""
        seeds = [m.spec.seed for m in self.members]
        for group, head in zip(self.groups, self.heads, strict=True):
            head.initialise([generator_for(s, "head") for s in seeds[group.first:group.stop]])
            if group.parent and group.method.clusters.by == "random":
                each, labels = cluster_counts(group.method, self.counts), self.cpu_labels
                for clusters, seed in zip(head.clusters, seeds[group.first:group.stop], strict=True):
                    clusters.copy_(divide_randomly(labels, each, generator_for(seed, "clusters")))

    def _allocate(self, at: torch.device) -> None:
        """Everything that a captured step reads or writes lives as long as the pack."""
        dtype = self.device.dtype
        # a fused optimiser reads its rate as float32; in float64 on a CPU the rate is exact
        self.rate = torch.zeros((), dtype=torch.float32 if self.device.cuda else dtype, device=at)
        self.rates = {factor: torch.zeros_like(self.rate) for factor in {g.method.head.rate for g in self.groups} - {0.0, 1.0}}
        self.rates[1.0] = self.rate
        self.context = Context(torch.tensor(self.counts, dtype=dtype, device=at), torch.zeros((), dtype=dtype, device=at))
        self.weights = [torch.ones(g.classes, dtype=dtype, device=at) for g in self.groups]
        self.adjusts = [torch.zeros((), dtype=dtype, device=at) if g.method.adjust is None else
                        torch.tensor(np.asarray(g.method.adjust(self.counts)), dtype=dtype, device=at) for g in self.groups]
        self.epoch_drawn: EpochDraws | None = None
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
        groups = [{"params": kept, "weight_decay": decay, "lr": self.rates[factor]}
                  for (factor, decay), parameters in decays.items() if (kept := [p for p in parameters if p.requires_grad])]
        how = {"lr": self.rate, "fused": self.device.cuda or None}
        kind, momentum = self.protocol.optimiser, self.protocol.momentum
        if kind in ("sgd", "nesterov"):
            optimiser = torch.optim.SGD(groups, momentum=momentum, nesterov=kind == "nesterov", **how)
        else:
            optimiser = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind](
                groups, betas=(momentum, 0.999), capturable=self.device.captures, **how)
        for parameter in self.parameters():  # from the start, so that a captured step and a resumed one find theirs
            zeros = {name: torch.zeros_like(parameter) for name in MOMENTS[kind].values()}
            count = {} if kind in ("sgd", "nesterov") else {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device)}
            optimiser.state[parameter].update(zeros | count)
        return optimiser

    @property
    def trained_parts(self) -> list[nn.Module]:
        """What of the backbone is trained."""
        if self.protocol.trains == "last":
            return self.net.ending
        return [self.net] if self.protocol.trains == "all" else []

    def freeze(self) -> None:
        """Only what is trained gets a gradient; which of the heads' weights do, `_make_optimiser` says."""
        self.net.requires_grad_(False)
        for part in self.trained_parts:
            part.requires_grad_(True)

    def counters(self) -> list[Tensor]:
        """The optimiser's own counts of steps, where it keeps them: the same number for every run."""
        return [self.optimiser.state[p]["step"] for p in self.parameters() if "step" in self.optimiser.state[p]]

    def set_steps(self, epochs: int, batches: int = 0) -> None:
        """Let the optimiser know that so many epochs have been trained, and so many batches of the next one."""
        for counter in self.counters():
            counter.fill_(epochs * len(self.batch_sizes) + batches)

    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [p for p in (*self.net.parameters(), *self.heads.parameters()) if p.requires_grad]

    @property
    def drawn(self) -> Tensor:
        """What every run draws of its own images in this epoch, int64 [rows, runs, images]."""
        return self.epoch_drawn.images

    @property
    def batch_sizes(self) -> list[int]:
        """The sizes of an epoch's batches; the last, smaller one is kept or dropped as the protocol says."""
        full, rest = divmod(self.size, self.protocol.batch_size)
        return [self.protocol.batch_size] * full + ([rest] if rest and not self.protocol.drop_last else [])

    def begin_epoch(self, epoch: int, drawn: EpochDraws, first: int = 0) -> None:
        """Set the epoch's rate, weights and draws. first: the number of its first batch; the losses of those before stay."""
        for factor, rate in self.rates.items():
            rate.fill_(factor * self.protocol.learning_rate(epoch))
        self.context.epoch.fill_(epoch)
        if not first:
            self.loss_sum.zero_()
        if self.epoch_drawn is None:
            self.epoch_drawn = drawn.map(self.place)
        else:
            self.epoch_drawn.copy_(drawn)
        for group, weights in zip(self.groups, self.weights, strict=True):
            if group.method.task == "classes":
                weights.copy_(torch.from_numpy(np.asarray(group.method.weights(self.counts, epoch), float)))
        self.net.train(self.protocol.moving_statistics)
        for part in self.trained_parts:
            part.train()
        self.heads.train()

    def place(self, drawn: Tensor) -> Tensor:
        """A copy on the device, in its precision where it is no integer."""
        dtype = self.device.dtype if drawn.is_floating_point() else drawn.dtype
        return drawn.to(self.rate.device, dtype, non_blocking=True, copy=True)

    def autocast(self) -> AbstractContextManager:
        if self.device.precision == "bfloat16":
            return torch.autocast("cuda" if self.device.cuda else "cpu", dtype=torch.bfloat16)
        return nullcontext()

    def losses(self, features: Tensor, drawn: EpochDraws, learned: Tensor | None = None) -> Tensor:
        """Each run's loss of its batch, [runs]. features: [runs, batch, width], or [runs, streams, batch, width];
        learned: sample weights [runs, batch] in the place of the class weights."""
        labels, noise, losses = self.labels[drawn.images[INDEX]], iter(drawn.noise), []
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

    def _seen(self, labels: Tensor, drawn: EpochDraws, part: slice) -> Tensor:
        """The labels as the loss wants them: [runs, batch], or [runs, streams, batch] where it sees several streams."""
        if self.streams == 1 or self.shape.meta.rate:
            return labels
        others = self.labels[drawn.others[:, INDEX, part]].transpose(0, 1)
        return torch.cat([labels.unsqueeze(1), others], 1)

    def move_centres(self, features: Tensor, drawn: EpochDraws) -> None:
        """Where heads have centres, which no gradient moves."""
        for group, head in zip(self.groups, self.heads, strict=True):
            if group.method.head.centres:
                part = slice(group.first, group.stop)
                head.move_centres(features[part].detach(), self.labels[drawn.images[INDEX, part]])

    def mean_losses(self) -> Tensor:
        """Each run's mean loss per sample in the epoch, float64 [runs] on the CPU."""
        return (self.loss_sum / sum(self.batch_sizes)).cpu()

    def new_tallies(self, images: int, large: bool = False) -> list[Tally]:
        """One a group, for a test set of so many images."""
        return [Tally(g.size, g.classes, images, self.rate.device, adjusted=g.method.adjust is not None, large=large)
                for g in self.groups]

    def judge(self, tallies: Sequence[Tally], features: Tensor, labels: Tensor, at: slice | Tensor, quarters: Tensor | None = None
              ) -> None:
        """Add what the runs answer to a batch of test images. features [runs, batch, width]; labels [batch], and of the rotation
        task quarters [batch]; at: the places of the images in the test set."""
        features = features.to(self.device.dtype)
        for group, head, adjust, tally in zip(self.groups, self.heads, self.adjusts, tallies, strict=True):
            part = features[group.first:group.stop]
            logits = class_scores(group, head, part)
            tally.add(logits + adjust, head.seen(part), labels if group.method.task == "classes" else quarters, at,
                      unadjusted=logits if group.method.adjust else None)

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
        tensors = {f"{part}.{n}": t.detach() for part, module in parts.items() for n, t in module.state_dict().items()}
        for part, module in parts.items():
            for name, p in module.named_parameters():
                for kind, entry in MOMENTS[self.protocol.optimiser].items() if p.requires_grad else ():
                    tensors[f"{kind}.{part}.{name}"] = self.optimiser.state[p][entry]
        return tensors

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
        before, marker, after = name.partition("heads.")
        if not marker:
            each = len(tensor) // runs
            share[name] = tensor[run * each:(run + 1) * each]
            continue
        group, _, rest = after.partition(".")
        first, stop = bounds[int(group)]
        if first <= run < stop:
            share[f"{before}head.{rest}"] = tensor[run - first:run - first + 1]
    return share
