"""Classifiers on the features of the M runs of one method, packed: a batched product over the leading run axis.

All weights are [runs, width, classes]; a second stage may take them over, rescale or align the logits of each class or
learn by which power of its norm a weight is divided.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError

PARTS, STRENGTH, SLACK, MOVE = 2, 16.0, 1 / 32, 0.9  # of the causal head: K, tau, gamma, and the decay of its mean feature


class PackedHead(nn.Module):
    """What the heads share: the weight, an optional projection, and the three ways of rescaling.

    rescale: "class" has a learned factor `scale` on each logit, 1 at first; "tau" a learned exponent, at first 0 (of a
    cosine head 1, which is what such a head computes); "align" (DisAlign, Zhang et al., 2021) has (1 + g a_c) z_c + g b_c
    with a confidence g = sigmoid(v . f + v_0) of the sample, at first a = 1, b = 0, v = 0.1, v_0 uniform(+-1 / sqrt(width)).
    project: width of the projection, 0 for none. centres: rate at which the classes' centres move, 0 for none.
    parent: the class of each output where the outputs are clusters of classes; `clusters` then holds the cluster of each of
    so many training `images`, [runs, images].
    """

    FIRST_TAU = 0.0

    def __init__(self, runs: int, width: int, classes: int, rescale: str = "", project: int = 0, centres: float = 0.0,
                 parent: Sequence[int] = (), images: int = 0):
        super().__init__()
        if parent:
            self.register_buffer("parent", torch.tensor(parent), persistent=False)
            self.register_buffer("clusters", torch.zeros(runs, images, dtype=torch.int64))
        self.centre_rate = centres
        if centres:
            self.register_buffer("centres", torch.zeros(runs, width, classes))
        self.weight = nn.Parameter(torch.empty(runs, width, classes))
        self.scale = nn.Parameter(torch.ones(runs, 1, classes)) if rescale == "class" else None
        self.tau = nn.Parameter(torch.full((runs, 1, 1), self.FIRST_TAU)) if rescale == "tau" else None
        self.aligns = rescale == "align"
        if self.aligns:
            self.a, self.b = (nn.Parameter(torch.full((runs, 1, classes), value)) for value in (1.0, 0.0))
            self.v, self.v0 = nn.Parameter(torch.full((runs, width, 1), 0.1)), nn.Parameter(torch.empty(runs, 1, 1))
        self.projection = Projection(runs, width, project) if project else None

    def initialise(self, generators: Sequence[torch.Generator]) -> None:
        """Draw every run's weights from its own generator."""
        with torch.no_grad():
            for run, generator in enumerate(generators):
                self.draw(run, generator)
                if self.aligns:
                    self.v0[run] = (torch.rand(1, 1, generator=generator) * 2 - 1) / math.sqrt(self.v.shape[1])
        if self.projection is not None:
            self.projection.initialise(generators)

    def factor(self, name: str, rate: float) -> float:
        """By what a parameter's learning rate is multiplied, where the method gives its head a `rate` of its own."""
        return rate if name in ("weight", "bias") else 1.0

    def tensors(self) -> dict[str, Tensor]:
        """The head's own parameters and buffers by name."""
        return dict(self.named_parameters(recurse=False)) | dict(self.named_buffers(recurse=False))

    @torch.no_grad()
    def move_centres(self, features: Tensor, labels: Tensor) -> None:
        """c_j <- c_j - rate * sum_{i: y_i = j} (c_j - x_i) / (1 + n_j), n_j images of class j in the batch (Wen et al., 2016).

        features [runs, batch, width], labels [runs, batch].
        """
        member = F.one_hot(labels, self.centres.shape[-1]).to(features.dtype)
        counts = member.sum(1, keepdim=True)
        self.centres -= self.centre_rate * (counts * self.centres - features.transpose(1, 2) @ member) / (1 + counts)

    def draw(self, run: int, generator: torch.Generator) -> None:
        raise NotImplementedError

    def logits(self, features: Tensor) -> Tensor:
        raise NotImplementedError

    def seen(self, features: Tensor) -> Tensor:
        """The part of a backbone's features that the classifier sees."""
        return features

    def scored(self, features: Tensor) -> Tensor:
        """What the weights are multiplied with."""
        return features

    def forward(self, features: Tensor) -> Tensor:
        """Features [runs, batch, width] -> logits [runs, batch, classes]."""
        if self.tau is not None:  # w / |w|^tau, without a bias (Kang et al., 2020)
            return torch.bmm(self.scored(features), self.weight / self.weight.norm(dim=1, keepdim=True) ** self.tau)
        z = self.logits(features)
        if self.aligns:
            confidence = torch.baddbmm(self.v0, self.seen(features), self.v).sigmoid()
            return (1 + confidence * self.a) * z + confidence * self.b
        return z if self.scale is None else self.scale * z

    def class_logits(self, z: Tensor, classes: int, decide: str) -> Tensor:
        """Logits of classes from those of clusters: the largest of a class's own (its softmax then is that of each class's
        best cluster), or the logarithm of the sum of their probabilities. [runs, batch, clusters] -> [runs, batch, classes]."""
        if decide == "largest":
            low = z.new_full((*z.shape[:-1], classes), float("-inf"))
            return low.scatter_reduce(-1, self.parent.expand(z.shape), z, "amax")
        member = F.one_hot(self.parent, classes).to(z.dtype)
        return (z.softmax(-1) @ member).log()


class LinearHead(PackedHead):
    """Logits w_c . f + b_c. Weights kaiming_normal (fan-in, gain sqrt 2); bias uniform(+-1 / sqrt(width)), or the constant
    `bias`."""

    def __init__(self, runs: int, width: int, classes: int, bias: float | None = None, biased: bool = True, **more):
        super().__init__(runs, width, classes, **more)
        self.initial_bias = bias
        self.bias = nn.Parameter(torch.empty(runs, 1, classes)) if biased else None

    def draw(self, run: int, generator: torch.Generator) -> None:
        weight = self.weight[run]
        weight.copy_(torch.randn(weight.shape, generator=generator) * math.sqrt(2 / len(weight)))
        if self.bias is None:
            return
        bias = self.bias[run]
        if self.initial_bias is None:
            bias.copy_((torch.rand(bias.shape, generator=generator) * 2 - 1) / math.sqrt(len(weight)))
        else:
            bias.fill_(self.initial_bias)

    def logits(self, features: Tensor) -> Tensor:
        return torch.bmm(features, self.weight) if self.bias is None else torch.baddbmm(self.bias, features, self.weight)


class BalancedHead(LinearHead):
    """A linear head on the plain means, and beside it an output for each class from a group of channels of its own.

    width: channels; copies: features of each channel (9 of a "shifted" network, whose kernels are 3x3). `kernel` is
    [runs, copies * width, classes] and zero outside a class's group (`channel_groups`); kaiming_normal, fan-in.
    """

    def __init__(self, runs: int, width: int, outputs: int, classes: int, copies: int, groups: str, **more):
        super().__init__(runs, width, outputs, **more)
        self.width = width
        mask = channel_groups(width, classes, groups).repeat(copies, 1)
        self.register_buffer("mask", mask.float(), persistent=False)
        self.kernel = nn.Parameter(torch.empty(runs, *mask.shape))

    def draw(self, run: int, generator: torch.Generator) -> None:
        super().draw(run, generator)
        kernel = self.kernel[run]
        drawn = torch.randn(kernel.shape, generator=generator) * (2 / self.mask.sum(0)).sqrt().cpu()
        kernel.copy_(drawn * self.mask.cpu())

    def seen(self, features: Tensor) -> Tensor:
        return features[..., :self.width]

    def logits(self, features: Tensor) -> Tensor:
        return super().logits(self.seen(features))

    def balanced(self, features: Tensor) -> Tensor:
        """[runs, batch, copies * width] -> [runs, batch, classes]."""
        return torch.bmm(features, self.kernel * self.mask)


def channel_groups(width: int, classes: int, rule: str) -> Tensor:
    """Which channels each class owns, bool [width, classes]; the rules are those of `common.methods.method.Head.groups`.

    "uneven" and "drop" need a channel for each class, else a UserError.
    """
    channel, owner = torch.arange(width)[:, None], torch.arange(classes)
    if rule == "cyclic":
        size = max(width // classes, 1)
        return (channel - owner * size) % width < size
    if width < classes:
        raise UserError(f"{width} channels cannot be divided among {classes} classes; put an adapter before them, or let "
                        'groups be "cyclic".')
    if rule == "drop":
        return channel // (width // classes) == owner
    first = owner * width // classes
    return (channel >= first) & (channel < (owner + 1) * width // classes)


class CosineHead(PackedHead):
    """Cosines of the angles to the class weights, unscaled. Weights uniform(-1, 1), then unit columns; no bias (the
    "normed" head of the LDAM code)."""

    def draw(self, run: int, generator: torch.Generator) -> None:
        drawn = torch.rand(self.weight[run].shape, generator=generator) * 2 - 1
        self.weight[run].copy_(F.normalize(drawn, dim=0))

    FIRST_TAU = 1.0

    def scored(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1)

    def logits(self, features: Tensor) -> Tensor:
        return torch.bmm(self.scored(features), F.normalize(self.weight, dim=1))


class CausalHead(PackedHead):
    """The normalised multi-head classifier of Tang et al. (2020): z_c = (tau / K) sum_k x_k / |x_k| . w_ck / (|w_ck| + gamma),
    with x_k the K parts of the feature. At test time the share of the mean training feature's direction d_k is taken away:
    x_k / |x_k| - alpha cos(x_k, d_k) d_k. Weights uniform(+-1 / sqrt(width))."""

    def __init__(self, runs: int, width: int, classes: int, alpha: float):
        super().__init__(runs, width, classes)
        self.alpha = alpha
        self.register_buffer("mean", torch.zeros(runs, 1, width))

    def draw(self, run: int, generator: torch.Generator) -> None:
        weight = self.weight[run]
        weight.copy_((torch.rand(weight.shape, generator=generator) * 2 - 1) / math.sqrt(len(weight)))

    def logits(self, features: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(MOVE).add_(features.detach().mean(1, keepdim=True))  # only its direction is used
        z = 0.0
        chunks = (t.chunk(PARTS, -1) for t in (features, self.mean))
        for x, d, w in zip(*chunks, self.weight.chunk(PARTS, 1), strict=True):
            x, d = F.normalize(x, dim=-1), F.normalize(d, dim=-1)
            if not self.training:
                x = x - self.alpha * (x * d).sum(-1, keepdim=True) * d
            z = z + torch.bmm(x, w / (w.norm(dim=1, keepdim=True) + SLACK))
        return STRENGTH / PARTS * z


class CentreHead(PackedHead):
    """Minus half the squared distances to the means mu_k, which are `weight`: -|x - mu_k|^2 / 2.

    means: how they start, as `common.methods.method.Head.means` says.
    """

    def __init__(self, runs: int, width: int, classes: int, means: str = "normal"):
        super().__init__(runs, width, classes)
        self.means = means

    def draw(self, run: int, generator: torch.Generator) -> None:
        weight = self.weight[run]
        if self.means == "xavier":
            weight.copy_((torch.rand(weight.shape, generator=generator) * 2 - 1) * math.sqrt(3 / len(weight)))
        else:
            deviation = math.sqrt(2 / len(weight)) if self.means == "msra" else 1.0
            weight.copy_(torch.randn(weight.shape, generator=generator) * deviation)

    def logits(self, features: Tensor) -> Tensor:
        return torch.bmm(features, self.weight) - (features**2).sum(-1, keepdim=True) / 2 - (self.weight**2).sum(1, True) / 2


class GaussianHead(CentreHead):
    """-d_k = -[sum_d (x_d - mu_kd)^2 / sigma_kd^2 + ln sigma_kd^2] / 2 for diagonal Gaussians. The parameter is
    log_variances = ln sigma^2, 0 at first, so that a variance is positive whatever the optimiser does."""

    def __init__(self, runs: int, width: int, classes: int, means: str = "normal"):
        super().__init__(runs, width, classes, means)
        self.log_variances = nn.Parameter(torch.zeros(runs, width, classes))

    def logits(self, features: Tensor) -> Tensor:
        precision = (-self.log_variances).exp()
        cross = torch.bmm(features, self.weight * precision) - torch.bmm(features**2, precision) / 2
        return cross - (self.weight**2 * precision + self.log_variances).sum(1, keepdim=True) / 2


class QuadraticHead(CentreHead):
    """A Gaussian head whose parameter is a = 1 / sigma, 1 at first and free to change its sign, and whose square of the
    features is summed over all classes, so that it is one number a sample:
    -[sum_jd a_jd^2 x_d^2 - 2 x . (a_k^2 mu_k) + sum_d a_kd^2 mu_kd^2] / 2 + sum_d ln a_kd / 2 (half the log-determinant)."""

    def __init__(self, runs: int, width: int, classes: int, means: str = "normal"):
        super().__init__(runs, width, classes, means)
        self.inverse_deviations = nn.Parameter(torch.ones(runs, width, classes))

    def logits(self, features: Tensor) -> Tensor:
        a = self.inverse_deviations
        square = torch.bmm(features**2, (a**2).sum(-1, keepdim=True)) / 2
        cross = torch.bmm(features, a**2 * self.weight) - (a**2 * self.weight**2).sum(1, keepdim=True) / 2
        return cross - square + a.log().sum(1, keepdim=True) / 2


class Projection(nn.Module):
    """Features [runs, batch, width] -> two layers with a ReLU between them -> unit vectors [runs, batch, project]."""

    def __init__(self, runs: int, width: int, project: int):
        super().__init__()
        self.first, self.second = LinearHead(runs, width, width), LinearHead(runs, width, project)

    def initialise(self, generators: Sequence[torch.Generator]) -> None:
        self.first.initialise(generators)
        self.second.initialise(generators)

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.second(F.relu(self.first(features))), dim=-1)
