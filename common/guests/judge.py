"""What a loss has to be before it is trained, and what is worth knowing of it: tried on drawn outputs, a sentence each.

Drawn are outputs of a linear or cosine head on images of few classes. A loss that sees more (extra samplers, clusters, a head of
another kind) is tried on its first real batch alone, which every training begins with.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.guests.source import call
from common.methods.method import Context, Method, Outputs
from common.spec import Protocol, unwrap
from common.train.checks import check_parts, per_sample

COUNTS = (5, 500, 50, 120)  # not sorted by size
BATCH, WIDTH, RUNS = 12, 7, 3
ORDER = [2, 0, 3, 1]  # another order of the classes
EXTREME = 120.0  # a logit that far above the others


class Finding(NamedTuple):
    """sign: "ok", "note" for what may be meant, or "bad" for what keeps the loss from being trained."""

    sign: Literal["ok", "note", "bad"]
    text: str


class Case(NamedTuple):
    """A batch as a loss sees it."""

    outputs: Outputs
    labels: Tensor
    context: Context

    def map(self, function: Callable[[Tensor], Tensor]) -> "Case":
        """With every tensor that is a number of the network changed."""
        o, c = self.outputs, self.context
        head = {name: function(tensor) for name, tensor in o.head.items()}
        projected = None if o.projected is None else function(o.projected)
        noise = None if c.noise is None else function(c.noise)
        context = Context(function(c.counts), function(c.epoch), noise)
        return Case(Outputs(function(o.logits), function(o.features), projected, head), self.labels, context)


def judge(method: Method, path: Path, counts: np.ndarray, protocol: Protocol) -> list[Finding]:
    """Everything that can be said of a row before it is trained. counts: of the column that it will be trained on.

    What leaves nothing else to be tried (another shape, an exception) is the last finding.
    """
    try:
        check_parts(method, counts, protocol)
    except UserError as error:
        return [Finding("bad", str(error))]
    if not is_plain(method):
        return [Finding("note", "its loss sees more than one image's logits, so it is tried on its first real batch alone")]
    trial, findings = Trial(method, path, protocol.epochs), []
    for check in (trial.shape, trial.inputs_kept, trial.finite, trial.gradient, trial.repeatable, trial.runs_apart,
                  trial.images_apart, trial.order_of_classes):
        try:
            findings.append(check())
        except UserError as error:
            return [*findings, Finding("bad", str(error))]
    return findings


def is_plain(method: Method) -> bool:
    """Whether outputs can be drawn for the loss."""
    head = method.head
    usual = head.kind in ("linear", "cosine") and not (head.groups or head.centres or head.rescale)
    return usual and not (method.streams.samplers or method.streams.combine or method.clusters) and method.task == "classes"


class Trial:
    """A loss and the drawn batches that it is tried on, in float64 but for the gradient."""

    def __init__(self, method: Method, path: Path, epochs: int):
        self.method, self.path, self.name, self.last = method, path, unwrap(method.loss)[0].__name__, max(epochs - 1, 0)

    def draw(self, seed: int = 0, runs: int = 0) -> Case:
        """Outputs of a batch in which every class occurs; runs: with so many runs as a first axis."""
        if runs:
            each = [self.draw(s) for s in range(runs)]
            return self._stack(each)
        g, classes, head = torch.Generator().manual_seed(seed), len(COUNTS), self.method.head
        cosine = head.kind == "cosine"
        logits = torch.rand(BATCH, classes, generator=g, dtype=torch.float64) * 2 - 1
        parts = {"weight": torch.randn(WIDTH, classes, generator=g, dtype=torch.float64)}
        if not cosine and head.biased:
            parts["bias"] = torch.randn(1, classes, generator=g, dtype=torch.float64)
        features = torch.randn(BATCH, WIDTH, generator=g, dtype=torch.float64)
        projected = torch.randn(BATCH, head.project, generator=g, dtype=torch.float64) if head.project else None
        noise = {"": None, "normal": torch.randn, "uniform": torch.rand}[self.method.noise]
        labels = (torch.arange(BATCH) % classes)[torch.randperm(BATCH, generator=g)]
        context = Context(torch.tensor(COUNTS, dtype=torch.float64), torch.zeros((), dtype=torch.float64),
                          noise and noise(BATCH, classes, generator=g, dtype=torch.float64))
        return Case(Outputs(logits * (1 if cosine else 5), features, projected, parts), labels, context)

    def _stack(self, each: list[Case]) -> Case:
        first = each[0]
        head = {name: torch.stack([c.outputs.head[name] for c in each]) for name in first.outputs.head}
        projected = None if first.outputs.projected is None else torch.stack([c.outputs.projected for c in each])
        noise = None if first.context.noise is None else torch.stack([c.context.noise for c in each])
        logits, features = (torch.stack(several) for several in zip(*(c.outputs[:2] for c in each), strict=True))
        labels, context = torch.stack([c.labels for c in each]), first.context._replace(noise=noise)
        return Case(Outputs(logits, features, projected, head), labels, context)

    def values(self, case: Case) -> Tensor:
        """What the loss returns, one value a sample."""
        return per_sample(call(self.path, self.name, self.method.loss, *case), case.labels, self.method)

    def shape(self) -> Finding:
        for runs in (0, RUNS):
            self.values(self.draw(runs=runs))
        return Finding("ok", "one value a sample, for a run alone and for several side by side")

    def finite(self) -> Finding:
        case = self.draw()
        late = case._replace(context=case.context._replace(epoch=case.context.epoch + self.last))
        if not all(self.values(one).isfinite().all() for one in (case, late)):
            return Finding("bad", "it is not finite on ordinary outputs: look for a logarithm, a power or a division of 0 in it")
        height = 1.0 if self.method.head.kind == "cosine" else EXTREME
        for sign in (1, -1):
            own = sign * height * torch.nn.functional.one_hot(case.labels, len(COUNTS)).to(case.outputs.logits)
            far = case._replace(outputs=case.outputs._replace(logits=own)).map(Tensor.float)
            if not self.values(far).isfinite().all():
                side = "above" if sign > 0 else "below"
                where = f"a cosine of {sign}" if height == 1 else f"a logit {height:g} {side} the others"
                return Finding("note", f"it is not finite in float32 where the true class has {where}, which ends a run")
        return Finding("ok", "finite, at the ends of what a network can say too")

    def gradient(self) -> Finding:
        """Through logits, features and what else comes from the network, in float32 as on a device."""
        plain = self.draw(runs=RUNS).map(Tensor.float)
        case = plain.map(lambda tensor: tensor.clone().requires_grad_())._replace(context=plain.context)
        values, o = self.values(case), case.outputs
        learned = [t for t in (o.logits, o.features, o.projected, *o.head.values()) if t is not None]
        if not values.requires_grad:
            return Finding("bad", "no gradient reaches the network: something in it is detached, or a constant")
        gradients = [g for g in torch.autograd.grad(values.sum(), learned, allow_unused=True) if g is not None]
        if not all(g.isfinite().all() for g in gradients):
            return Finding("bad", "its gradient is not finite on ordinary outputs: look for a root or a norm of 0 in it")
        if not sum(float(g.abs().sum()) for g in gradients):
            return Finding("bad", "its gradient is 0 everywhere: the network would learn nothing")
        slope = torch.autograd.grad(self.values(case).sum(), o.logits, allow_unused=True)[0]
        if slope is not None and float(slope.gather(-1, case.labels.unsqueeze(-1)).mean()) > 0:
            return Finding("note", "on the mean it pushes the logit of the true class down: is a sign turned?")
        return Finding("ok", "its gradient is finite and reaches the network")

    def repeatable(self) -> Finding:
        case = self.draw()
        if torch.equal(self.values(case), self.values(case)):
            return Finding("ok", "the same outputs give the same values")
        return Finding("bad", "the same outputs give other values the second time: it draws numbers by itself; let the row say "
                              "noise=\"normal\" or \"uniform\", and read context.noise, which is the run's own")

    def runs_apart(self) -> Finding:
        whole = self.values(self.draw(runs=RUNS))
        alone = torch.stack([self.values(self.draw(seed)) for seed in range(RUNS)])
        if torch.allclose(whole, alone, rtol=1e-9, atol=1e-12):
            return Finding("ok", "runs that are trained side by side do not mix")
        return Finding("bad", "it mixes the runs that are trained side by side: count axes from the end, as in sum(-1), as the "
                              "first axis is that of the runs")

    def inputs_kept(self) -> Finding:
        case = self.draw()
        kept = case.map(Tensor.clone)
        self.values(case)
        same = torch.equal(case.outputs.logits, kept.outputs.logits) and torch.equal(case.context.counts, kept.context.counts)
        same = same and torch.equal(case.labels, self.draw().labels)
        if same and torch.equal(case.outputs.features, kept.outputs.features):
            return Finding("ok", "it leaves its inputs as they are")
        return Finding("bad", "it changes its inputs in place; make new tensors, as in logits + margin")

    def images_apart(self) -> Finding:
        """How much a sample's value depends on the others of the batch."""
        case, keep = self.draw(), BATCH // 2

        def first_half(tensor: Tensor) -> Tensor:
            return tensor[:keep] if tensor.dim() and len(tensor) == BATCH else tensor

        half = case.map(first_half)._replace(labels=case.labels[:keep])
        if torch.allclose(self.values(half), self.values(case)[:keep], rtol=1e-9, atol=1e-12):
            return Finding("ok", "a sample's value is its own")
        return Finding("note", "a sample's value depends on the rest of the batch, and so on the batch size, which differs "
                               "between settings")

    def order_of_classes(self) -> Finding:
        """Renaming the classes, with their counts, should change nothing."""
        case, classes = self.draw(), len(COUNTS)
        order = torch.tensor(ORDER)

        def renamed(tensor: Tensor) -> Tensor:
            return tensor[..., order] if tensor.dim() and tensor.shape[-1] == classes else tensor

        other = case.map(renamed)._replace(labels=torch.argsort(order)[case.labels])
        if torch.allclose(self.values(other), self.values(case), rtol=1e-9, atol=1e-12):
            return Finding("ok", "classes in another order give the same values")
        return Finding("note", "it depends on the order in which the classes are listed: it is another loss on sets whose "
                               "classes are not sorted by size")
