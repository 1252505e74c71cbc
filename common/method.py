"""A method (a table's row) and a paper (a folder of methods, columns, tables, figures and claims) as plain data.

A method is made of plain functions, or `functools.partial`s of them with keywords: their names and keywords are its
identity, so a loss that two papers use under one protocol is trained once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from common.data.large_sets import LARGE
from common.data.sampling import shuffled, uniform_weights
from common.data.sets import SETS
from common.digest import ENGINE, check_names, method_digest
from common.errors import UserError
from common.models.sizes import BACKBONES, NETWORKS, describe_backbone
from common.spec import Column, Entries, Profile, Protocol, Reading, Run, describe_function
from common.store import has_diverged, identity

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
    Of a method with companions and no `combine`, all but `head` have a stream axis before the batch: [..., streams, batch, .].
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
class Method:
    """A row of a table in one reading.

    loss(outputs, labels, context) -> per-sample values [..., batch]
    weights(counts, epoch) -> class weights [classes]; sampler(counts, epoch) -> class probabilities, or None for a shuffle
    (of all three, a keyword `start` is an epoch, and one that the run never reaches is refused)
    reduction: "weighted" divides a batch's weighted sum by the sum of its weights (PyTorch's weighted mean), "batch" by its size
    task: "classes", or "rotation" for the self-supervised pretext (four labels, the image turned by 0, 90, 180, 270 degrees)
    starts_from: the method whose trained backbone this one starts with (same column and seed; its own protocol if it names one)
    variant: tells rows of one name apart, spelled as in published.csv's notes ("beta=1.4;delta=0.6")
    protocol: the setting, where it is not the paper's for this reading
    mixup: alpha of the Beta(alpha, alpha) with which a batch is mixed with a permutation of itself; 0 for none
    noise: what is drawn per sample and class for the loss: "normal" (standard) or "uniform" (on [0, 1))
    companions: samplers of further images that a step sees beside its own (`again`: the same images under another crop;
    `held_out`: of the held-out images); the loss then gets labels [..., 1 + companions, batch]
    combine(features [..., streams, batch, width], context) -> [..., batch, .]: what the head sees of the streams, or None
    network: "plain", "bilateral" with a last block for each of two streams (BBN), "two-branch" with these two blocks side by
    side for one stream, or "shifted", whose features are nine means of each channel (`common.models.tail`); adapter: channels
    of a 1x1 convolution with batch normalisation and ReLU at the end of the backbone, 0 for none
    held_out: images of each class that are taken from the training set first, for meta-learning
    meta_rate: step size of the sample weights that are learned on held-out images; 0 for none
    adjust(counts) -> [classes], added to the logits at test time
    clusters(counts) -> int [classes]: into how many clusters each class is divided once, before training; the head then has
    an output for each cluster. clustering: "random" with sizes as equal as can be, or "kmeans" or "hierarchical" (Ward) on
    the features of the run that it starts from. decide: at test time a class has the "largest" logit of its clusters, or
    the "sum" of their probabilities
    takes: what of the run in `starts_from` it starts with: its backbone (and what `head.keep` says), or features for "clusters"
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
    starts_from: "Method | None" = None
    variant: str = ""
    protocol: Protocol | None = None
    mixup: float = 0.0
    noise: Literal["", "normal", "uniform"] = ""
    companions: tuple[Callable, ...] = ()
    combine: Callable | None = None
    network: Literal["plain", "bilateral", "two-branch", "shifted"] = "plain"
    held_out: int = 0
    meta_rate: float = 0.0
    adjust: Callable | None = None
    adapter: int = 0
    clusters: Callable | None = None
    clustering: Literal["random", "kmeans", "hierarchical"] = "random"
    decide: Literal["largest", "sum"] = "largest"
    takes: Literal["backbone", "clusters"] = "backbone"
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
        return self.network, self.adapter, len(self.companions), self.held_out, self.meta_rate > 0

    def describe(self) -> dict[str, Any]:
        """All of a method that decides the numbers, as JSON; name, reading and variant do not.

        What came after the first records is named only where a method has it, so that their keys hold.
        """
        head = {name: value for name, value in vars(self.head).items() if name != "groups" or value}
        if self.head.kind != "linear":
            head = {name: value for name, value in head.items() if name not in ("bias", "decay_bias")}
        if self.head.kind not in ("gaussian", "centres", "quadratic"):
            head.pop("means")
        first = self.starts_from
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
            "companions": [describe_function(f) for f in self.companions],
            "combine": describe_function(self.combine) if self.combine else None,
            "network": self.network,
            "held_out": self.held_out,
            "meta_rate": self.meta_rate,
            "adjust": describe_function(self.adjust) if self.adjust else None,
            **({"adapter": self.adapter} if self.adapter else {}),
            **({"takes": self.takes} if self.takes != "backbone" else {}),
            **({"clusters": describe_function(self.clusters), "clustering": self.clustering, "decide": self.decide}
               if self.clusters else {}),
        }


@dataclass(frozen=True)
class Table:
    """A table of the paper; its cells are the rows of published.csv with this number."""

    number: str
    caption: str


@dataclass(frozen=True)
class Figure:
    """A figure of the paper. draw(paper, profile, records) -> common.report.figures.Drawing, or a sentence on what is missing."""

    number: str
    caption: str
    draw: Callable


@dataclass(frozen=True)
class Paper:
    """One paper. methods(column, protocols) lists everything that is trained on a column, rows and grids alike.

    protocols: of each profile, by reading ("written", "released"), and by other names that `methods` may want; a method
    without a protocol of its own takes that of its reading.
    own, main: the names of the paper's own methods, and the numbers of the tables that its claim rests on: with
    cross-entropy, they are trained first.
    stand_ins: for a column of the quick profile, the published column in whose place it is shown.
    notes: of a column, what every number of ours there must be read with.
    not_comparable: why numbers of ours have another setting than the printed ones' source, so that their difference is shown
    without a verdict: of a whole column by its name, of a method there by "column/name" (all its rows) or "column/label".
    large: of each column that is trained under torchrun, its own `protocols`; such a column is planned only where it is named.
    """

    name: str
    title: str
    folder: Path
    columns: Mapping[Profile, tuple[Column, ...]]
    protocols: Mapping[Profile, Mapping[str, Protocol]]
    seeds: Mapping[Profile, int]
    methods: Callable[[Column, Mapping[str, Protocol]], tuple[Method, ...]]
    own: tuple[str, ...] = ()
    main: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    not_comparable: Mapping[str, str] = field(default_factory=dict)
    large: Mapping[str, Mapping[str, Protocol]] = field(default_factory=dict)

    def __post_init__(self):
        for column in (c for columns in self.columns.values() for c in columns):
            try:
                check_column(column)
            except UserError as error:
                raise UserError(f"{self.folder / 'params.yaml'}: column {column.name}: {error}") from None

    def results(self, profile: Profile) -> Path:
        return self.folder / "results" / profile

    def settings(self, profile: Profile, column: Column) -> Mapping[str, Protocol]:
        """The settings of a column by reading, and by the other names that `methods` wants."""
        found = self.large.get(column.name, self.protocols[profile])
        return Entries(found, f"{self.folder / 'params.yaml'}: protocols of {column.name}")

    def rows(self, profile: Profile, column: Column) -> tuple[Method, ...]:
        """Everything that is trained on a column."""
        return self.methods(column, self.settings(profile, column))

    def run(self, profile: Profile, column: Column, method: Method, seed: int) -> Run:
        return make_run(column, method.protocol or self.settings(profile, column)[method.reading], method, seed)


@dataclass(frozen=True)
class Planned:
    """A run that a paper wants, with the method object that trains it and the place where its record goes."""

    run: Run
    method: Method
    folder: Path

    @property
    def label(self) -> str:
        return f"{self.run.column.name} {self.method.label} seed {self.run.seed}"

    @cached_property
    def digest(self) -> str:
        """What the method computes today (`common.digest.method_digest`)."""
        return digest_of(self.method, self.run.column)

    @property
    def identity(self) -> str:
        """What its record must bear to count: the key, the digest of today, and the engine of today."""
        return identity(self.run.key, self.digest, ENGINE)

    @property
    def root(self) -> Path:
        """The folder of all papers, under which records are looked up."""
        return self.folder.parents[3]

    @property
    def checkpoint(self) -> Path:
        """Where the weights of the finished run are: <paper>/checkpoints/<profile>/<column>/<key>.safetensors, of the paper that
        trained it, or else of this one."""
        mine = checkpoint_path(self.folder, self.run.key)
        return mine if mine.exists() else min(self.root.glob(f"*/{mine.relative_to(mine.parents[3])}"), default=mine)

    @cached_property
    def start(self) -> "Planned | None":
        """The run whose backbone this one starts with."""
        first = self.method.starts_from
        if first is None:
            return None
        return Planned(make_run(self.run.column, first.protocol or self.run.protocol, first, self.run.seed), first, self.folder)

    @cached_property
    def chain(self) -> list["Planned"]:
        """The run, and before it those that it starts from, the first stage first."""
        return [*(self.start.chain if self.start else ()), self]


def checkpoint_path(folder: Path, key: str) -> Path:
    """Where the weights of a run are whose record is in `folder`, <paper>/results/<profile>/<column>."""
    return folder.parents[2] / "checkpoints" / folder.parent.name / folder.name / f"{key}.safetensors"


def check_column(column: Column) -> None:
    """A dataset or a backbone that is not known is a UserError."""
    sets, backbones = (LARGE, NETWORKS) if column.dataset in LARGE else (SETS, BACKBONES)
    if column.dataset not in sets:
        raise UserError(f"Unknown dataset {column.dataset!r}; known: {', '.join((*SETS, *LARGE))}.")
    if column.backbone not in backbones:
        raise UserError(f"Unknown backbone {column.backbone!r} for {column.dataset}; known: {', '.join(backbones)}.")


def make_run(column: Column, protocol: Protocol, method: Method, seed: int) -> Run:
    check_column(column)
    described = method.describe() | {"backbone": describe_backbone(column.backbone)}  # its shape and weights, beside its name
    for part in (described["loss"], described["weights"], described["sampler"]):
        start = part.get("start", 0)
        if protocol.epochs and not 0 <= start < protocol.epochs:  # what has no epochs is only tested
            raise UserError(f"{method.label}: {part['function']} starts at epoch {start}, which a run of {protocol.epochs} never "
                            "reaches (epochs are counted from 0); give it an earlier start.")
    return Run(column, protocol, described, (LARGE if column.dataset in LARGE else SETS)[column.dataset].digest, seed)


def missing_runs(planned: Sequence[Planned], have: Mapping[str, Path]) -> list[Planned]:
    """The planned runs that have no record, each after the run that it starts from, where its weights are not here.

    have: identity -> file of the records, so that a run whose code has changed counts as missing. A start that diverged has no
    weights and is not tried again.
    """
    needed: dict[str, Planned] = {}
    for item in planned:
        if item.identity in have:
            continue
        chain = [item]
        while (start := chain[-1].start) and not _can_start(start, have):
            chain.append(start)
        for link in reversed(chain):
            needed.setdefault(link.run.key, link)
    return list(needed.values())


def _can_start(start: Planned, have: Mapping[str, Path]) -> bool:
    """Whether the weights that its record speaks of are here, or will never be. Weights without a record of today's code are
    nobody's."""
    return start.identity in have and (start.checkpoint.exists() or has_diverged(start.identity, have))


@cache
def digest_of(method: Method, column: Column) -> str:
    """`common.digest.method_digest`, asked for once a method and column: the seeds share it."""
    return method_digest(method, column)


def merged(planned: Iterable[Planned]) -> dict[str, Planned]:
    """Key -> run, each once, in order: the first one of a key, or the first that keeps features for a figure."""
    found: dict[str, Planned] = {}
    for item in planned:
        if item.run.key not in found or (item.method.keep_features and not found[item.run.key].method.keep_features):
            found[item.run.key] = item
    return found


def plan(paper: Paper, profile: Profile, *, columns: tuple[str, ...] = (), methods: tuple[str, ...] = (),
         seeds: int | None = None) -> list[Planned]:
    """Every run that the paper's tables and figures need, each key once, in the order of its columns, methods and seeds; of
    the large columns only those that are named.

    columns, methods: keep these names only (a column by its name, or all of a dataset by that; a method by `name`, with all
    its readings and variants, or by its whole label, so `name@reading` is the plain row); unknown ones are refused.
    """
    known = {c.name: c for c in paper.columns[profile]}
    if unknown := [c for c in columns if c not in known and c not in {k.dataset for k in known.values()}]:
        raise UserError(f"{paper.name} has no column {unknown[0]!r} in profile {profile!r}; it has: {', '.join(known)}.")
    named = [name for name, c in known.items() if {name, c.dataset} & set(columns)]
    found, seen = [], set()
    for name in named or [name for name in known if name not in paper.large]:
        for method in paper.rows(profile, known[name]):
            names = {method.name, method.label}
            seen |= names
            if methods and not names & set(methods):
                continue
            first = paper.run(profile, known[name], method, 0)
            for seed in range(paper.seeds[profile] if seeds is None else seeds):
                found.append(Planned(replace(first, seed=seed), method, paper.results(profile) / name))
    check_names({id(item.method): item.method for item in found}.values())
    if unknown := [m for m in methods if m not in seen]:
        names = ", ".join(sorted(n for n in seen if "@" not in n))
        raise UserError(f"{paper.name} has no method {unknown[0]!r}; it has: {names} (or a whole label, as `status --variants` "
                        "shows it: name@reading, name[variant]@reading).")
    return list(merged(found).values())
