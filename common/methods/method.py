"""A method (a table's row) and a paper (a folder of methods, columns, tables, figures and claims) as plain data.

A method is made of plain functions, or `functools.partial`s of them with keywords: their names and keywords are its
identity, so a loss that two papers use under one protocol is trained once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from common.data.large_sets import LARGE
from common.data.sets import SETS
from common.errors import UserError, line_of, unknown
from common.methods.digest import definition_digest, file_of, method_digest
from common.methods.sampling import shuffled, uniform_weights
from common.models.sizes import BACKBONES, NETWORKS, describe_backbone
from common.spec import Column, Protocol, Reading, RunSpec, describe_function, unwrap

if TYPE_CHECKING:
    from torch import Tensor


class Outputs(NamedTuple):
    """What a loss sees of the network, float32 with leading run axes.

    logits: [..., batch, classes]; the raw cosines where the head is the cosine head.
    features: [..., batch, width], the input of the head.
    projected: [..., batch, project] where the head has a projection, else None.
    head: the head's own tensors by name, for losses that need them: weight [..., width, classes] (of a Gaussian head the
    means), bias, log_variances, inverse_deviations, centres, centroids.
    balanced: [..., batch, classes] where the head has groups of channels, one a class; else None.
    Of a method with extra samplers and no `combine`, all but `head` have an axis of streams before the batch's:
    [..., streams, batch, .].
    Of a method with clusters, `logits` has an entry for each cluster.
    """

    logits: "Tensor"
    features: "Tensor"
    projected: "Tensor | None" = None
    head: "Mapping[str, Tensor]" = MappingProxyType({})
    balanced: "Tensor | None" = None


class Context(NamedTuple):
    """What else a loss may need: class counts [classes] in any order of size, and the epoch from 0 as a 0-d tensor
    (a tensor, so that a captured CUDA graph reads today's value).

    noise: [..., batch, classes], drawn by the run's own generator, where the method asks for it; each of the two label
    terms of mixup gets a fresh one.
    parent: int64 [clusters], the class of each cluster, where the method divides classes; its labels are then clusters.
    """

    counts: "Tensor"
    epoch: "Tensor"
    noise: "Tensor | None" = None
    parent: "Tensor | None" = None


@dataclass(frozen=True)
class Head:
    """A classifier on the features. kind "cosine" yields unscaled cosines and has no bias (the scale lives in the loss);
    "causal" is the normalised multi-head classifier of De-confound-TDE; "gaussian" yields minus half the Mahalanobis
    distances and log-determinants of diagonal Gaussians, "centres" minus half the squared distances to means, and
    "quadratic" a Gaussian head whose square of the features is summed over all classes; "memory" is OLTR's classifier on
    features that a memory of class centroids enriches (`common.models.memory`; a second stage after a linear head).

    bias: initial value of a linear head's bias; None is PyTorch's uniform(+-1 / sqrt(width)).
    decay_bias: whether weight decay reaches that bias.
    keep: whether weight and bias start as the run that this one starts from has left them (a second stage).
    rate: factor on the learning rate of weight and bias (of a memory head on that of all but its centroids); 0 leaves them
    as they are.
    rescale: "class" learns a factor on each class's logit (1 at first); "tau" learns the exponent in w / |w|^tau of a
    head without its bias (0 at first, 1 for a cosine head); "align" learns a factor and an addend on each class's logit,
    shared out by a learned confidence of the sample (DisAlign).
    project: width of a projection of the features for a contrastive loss; 0 for none.
    alpha: of the causal head at test time: how much of the mean feature's direction is taken away.
    means: how the means of the three kinds that have some start: standard normal, or by width as Caffe's fillers have it:
    "msra", normal with variance 2 / width, or "xavier", uniform(+-sqrt(3 / width)).
    biased: whether a linear head has a bias. centres: rate at which each class's centre, beside the head, moves towards
    the mean of its features in the batch; 0 for none.
    groups: an auxiliary output for each class beside a linear head, from a group of channels that is the class's own:
    "uneven" gives all channels to groups whose sizes differ by one at most, "drop" leaves the remainder of channels over
    classes out, "cyclic" lets classes share where there are fewer channels than classes. The kernel of a group is 1x1, and
    3x3 in a "shifted" network.
    """

    kind: Literal["linear", "cosine", "causal", "gaussian", "centres", "quadratic", "memory"]
    bias: float | None = None
    decay_bias: bool = True
    keep: bool = False
    rate: float = 1.0
    rescale: Literal["", "class", "tau", "align"] = ""
    project: int = 0
    alpha: float = 0.0
    biased: bool = True
    centres: float = 0.0
    groups: Literal["", "uneven", "drop", "cyclic"] = ""
    means: Literal["normal", "msra", "xavier"] = "normal"


LINEAR, COSINE = Head("linear"), Head("cosine")


@dataclass(frozen=True)
class Net:
    """What stands between the images and the head. kind: "plain", "bilateral" with a last block for each of two streams (BBN),
    "two-branch" with these two blocks side by side for one stream, or "shifted", whose features are nine means of each channel
    (`common.models.pooling`). adapter: channels of a 1x1 convolution with batch normalisation and ReLU at the end of the
    backbone, 0 for none."""

    kind: Literal["plain", "bilateral", "two-branch", "shifted"] = "plain"
    adapter: int = 0


@dataclass(frozen=True)
class Streams:
    """What a step sees beside its batch. samplers: of further images, each as many as the batch has (`again`: the same images
    under another crop; `held_out`: of the held-out images); the loss then gets labels [..., 1 + samplers, batch].
    combine(features [..., streams, batch, width], context) -> [..., batch, .]: what the head sees of the streams, or None."""

    samplers: tuple[Callable, ...] = ()
    combine: Callable | None = None

    @property
    def number(self) -> int:
        """How many there are, the batch itself among them."""
        return 1 + len(self.samplers)


@dataclass(frozen=True)
class Meta:
    """Meta-learning. held_out: images of each class that are taken from the training set first. rate: step size of the sample
    weights that are learned on them; 0 for none."""

    held_out: int = 0
    rate: float = 0.0


@dataclass(frozen=True)
class Clusters:
    """Classes that are divided once, before training; the head then has an output for each cluster.

    numbers(counts) -> int [classes]: into how many clusters each class is divided
    by: "random" with sizes as equal as can be, or "kmeans" or "hierarchical" (Ward) on features of the run it starts from
    pooling: at test time a class has the "largest" logit of its clusters, or the "sum" of their probabilities
    """

    numbers: Callable
    by: Literal["random", "kmeans", "hierarchical"] = "random"
    pooling: Literal["largest", "sum"] = "largest"


@dataclass(frozen=True)
class Start:
    """The method whose trained run a run starts with (same column and seed; its own protocol if it names one). takes: that run's
    "backbone" (and what `head.keep` says), or features for "clusters"."""

    method: "Method"
    takes: Literal["backbone", "clusters"] = "backbone"


@dataclass(frozen=True)
class Method:
    """A row of a table in one reading.

    loss(outputs, labels, context) -> per-sample values [..., batch]
    weights(counts, epoch) -> class weights [classes]; sampler(counts, epoch) -> class probabilities, or None for a shuffle
    (of all three, a keyword `start` is an epoch, and one that the run never reaches is refused)
    reduction: "weighted" divides a batch's weighted sum by the sum of its weights (PyTorch's weighted mean), "batch" by its size
    task: "classes", or "rotation" for the self-supervised pretext (four labels, the image turned by 0, 90, 180, 270 degrees)
    start: the run that this one starts with, or None
    variant: tells rows of one name apart, spelled as in published.csv's notes ("beta=1.4;delta=0.6")
    protocol: the setting, where it is not the paper's for this reading
    mixup: alpha of the Beta(alpha, alpha) with which a batch is mixed with a permutation of itself; 0 for none
    noise: what is drawn per sample and class for the loss: "normal" (standard) or "uniform" (on [0, 1))
    adjust(counts) -> [classes], added to the logits at test time
    clusters: how classes are divided, or None
    keep_features: whether the record of seed 0 holds features for a figure; no part of the identity
    last: whether a campaign takes it after everything else, as it costs more than it tells; no part of the identity
    """

    name: str
    reading: Reading
    loss: Callable[..., "Tensor"]
    head: Head = LINEAR
    weights: Callable = uniform_weights
    sampler: Callable = shuffled
    reduction: Literal["weighted", "batch"] = "weighted"
    task: Literal["classes", "rotation"] = "classes"
    start: Start | None = None
    variant: str = ""
    protocol: Protocol | None = None
    mixup: float = 0.0
    noise: Literal["", "normal", "uniform"] = ""
    net: Net = Net()
    streams: Streams = Streams()
    meta: Meta = Meta()
    clusters: Clusters | None = None
    adjust: Callable | None = None
    keep_features: bool = False
    last: bool = False

    @property
    def label(self) -> str:
        """`name`, or `name[variant]`, then `@reading`: how the command line and the logs call it."""
        return self.name + (f"[{self.variant}]" if self.variant else "") + f"@{self.reading}"

    @property
    def scale(self) -> float:
        """The factor s by which the loss multiplies the logits (1 where it has none): what a softmax at test time uses."""
        return float(describe_function(self.loss).get("s", 1.0))

    @property
    def shape(self) -> tuple:
        """What the runs of a pack have in common, beside column and protocol."""
        return self.net, self.streams.number, self.meta.held_out, self.meta.rate > 0

    @property
    def first_stage(self) -> "Method | None":
        """The method of the run that this one starts with."""
        return self.start and self.start.method

    @property
    def functions(self) -> dict[str, Callable]:
        """The functions that it is made of, by what they are for."""
        extra = {f"stream {k}": sampler for k, sampler in enumerate(self.streams.samplers, 2)}
        parts = {"loss": self.loss, "class weights": self.weights, "sampler": self.sampler, **extra,
                 "streams combined by": self.streams.combine, "logits adjusted by": self.adjust,
                 "clusters": self.clusters and self.clusters.numbers}
        return {use: part for use, part in parts.items() if part}

    def describe(self) -> dict[str, Any]:
        """All of a method that decides the numbers, as JSON; name, reading and variant do not.

        What came after the first records is named only where a method has it, so that their keys hold.
        """
        head = {name: value for name, value in vars(self.head).items() if name != "groups" or value}
        if self.head.kind != "linear":
            head = {name: value for name, value in head.items() if name not in ("bias", "decay_bias")}
        if self.head.kind not in ("gaussian", "centres", "quadratic"):
            head.pop("means")
        start, first, clusters = self.start, self.first_stage, self.clusters
        return {
            "loss": describe_function(self.loss),
            "head": head,
            "weights": describe_function(self.weights),
            "sampler": describe_function(self.sampler),
            "reduction": self.reduction,
            "task": self.task,
            "starts_from": first.describe() | {"protocol": vars(first.protocol) if first.protocol else None} if first else None,
            "mixup": self.mixup,
            "noise": self.noise,
            "companions": [describe_function(f) for f in self.streams.samplers],
            "combine": describe_function(self.streams.combine) if self.streams.combine else None,
            "network": self.net.kind,
            "held_out": self.meta.held_out,
            "meta_rate": self.meta.rate,
            "adjust": describe_function(self.adjust) if self.adjust else None,
            **({"adapter": self.net.adapter} if self.net.adapter else {}),
            **({"takes": start.takes} if start and start.takes != "backbone" else {}),
            **({"clusters": describe_function(clusters.numbers), "clustering": clusters.by, "decide": clusters.pooling}
               if clusters else {}),
        }


def check_column(column: Column, path: Path | None = None) -> None:
    """A dataset or a backbone that is not known is a UserError. path: the file that names them."""
    place = path and f"{line_of(path, column.dataset, column.backbone)}: column {column.name}: "
    sets, backbones = (LARGE, NETWORKS) if column.dataset in LARGE else (SETS, BACKBONES)
    if column.dataset not in sets:
        raise unknown("dataset", column.dataset, (*SETS, *LARGE), place=place or "")
    if column.backbone not in backbones:
        raise unknown("backbone", column.backbone, backbones, f" for {column.dataset}", place or "")


def run_spec(column: Column, protocol: Protocol, method: Method, seed: int) -> RunSpec:
    check_column(column)
    described = method.describe() | {"backbone": describe_backbone(column.backbone)}  # its shape and weights, beside its name
    for part in (described["loss"], described["weights"], described["sampler"]):
        start = part.get("start", 0)
        if protocol.epochs and not 0 <= start < protocol.epochs:  # what has no epochs is only tested
            raise UserError(f"{method.label}: {part['function']} starts at epoch {start}, which a run of {protocol.epochs} never "
                            "reaches (epochs are counted from 0); give it an earlier start.")
    return RunSpec(column, protocol, described, (LARGE if column.dataset in LARGE else SETS)[column.dataset].digest, seed)


@cache
def digest_of(method: Method, column: Column) -> str:
    """`common.methods.digest.method_digest`, asked for once a method and column: the seeds share it."""
    return method_digest(method, column)


def named_parts(method: Method) -> Iterator[tuple[str, Path, str]]:
    """Name, file and digest of every function that a method is made of, and of those that are bound to them."""
    waiting = list(method.functions.values())
    while waiting:
        function, values = unwrap(waiting.pop())
        waiting += [value for value in values.values() if callable(value)]
        path = file_of(function)
        yield function.__name__, path, definition_digest(path, function.__name__)


def check_names(methods: Iterable[Method]) -> None:
    """Refuse two different functions of one name: the identity of a run holds names, so their records would be one."""
    seen: dict[str, tuple[Path, str]] = {}
    for name, path, digest in (part for method in methods for part in named_parts(method)):
        other, same = seen.setdefault(name, (path, digest))
        if same != digest:
            raise UserError(f"{name} is one function in {other} and another in {path}: the identity of a run is made of names, "
                            "so rename one of them.")
