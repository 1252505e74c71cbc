"""A method (a table's row) and a paper (a folder of methods, columns, tables, figures and claims) as plain data.

A method is made of plain functions, or `functools.partial`s of them with keywords: their names and keywords are its
identity, so a loss that two papers use under one protocol is trained once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from common.data.sampling import shuffled, uniform_weights
from common.data.sets import SETS
from common.errors import UserError
from common.models.sizes import BACKBONES
from common.spec import Column, Profile, Protocol, Reading, Run, describe_function
from common.store import has_diverged

if TYPE_CHECKING:
    from torch import Tensor


class Outputs(NamedTuple):
    """What a loss sees of the network, float32 with leading run axes.

    logits: [..., batch, classes]; the raw cosines where the head is the cosine head.
    features: [..., batch, width], the input of the head.
    """

    logits: "Tensor"
    features: "Tensor"


class Context(NamedTuple):
    """What else a loss may need: class counts [classes] in any order of size, and the epoch from 0 as a 0-d tensor
    (a tensor, so that a captured CUDA graph reads today's value)."""

    counts: "Tensor"
    epoch: "Tensor"


@dataclass(frozen=True)
class Head:
    """A classifier on the features. kind "cosine" yields unscaled cosines and has no bias (the scale lives in the loss).

    bias: initial value of a linear head's bias; None is PyTorch's uniform(+-1 / sqrt(width)).
    decay_bias: whether weight decay reaches that bias.
    """

    kind: Literal["linear", "cosine"]
    bias: float | None = None
    decay_bias: bool = True


LINEAR, COSINE = Head("linear"), Head("cosine")


@dataclass(frozen=True)
class Method:
    """A row of a table in one reading.

    loss(outputs, labels, context) -> per-sample values [..., batch]
    weights(counts, epoch) -> class weights [classes]; sampler(counts, epoch) -> class probabilities, or None for a shuffle
    reduction: "weighted" divides a batch's weighted sum by the sum of its weights (PyTorch's weighted mean), "batch" by its size
    task: "classes", or "rotation" for the self-supervised pretext (four labels, the image turned by 0, 90, 180, 270 degrees)
    starts_from: the method whose trained backbone this one starts with (same column, protocol and seed)
    variant: tells rows of one name apart, spelled as in published.csv's notes ("beta=1.4;delta=0.6")
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

    @property
    def label(self) -> str:
        """`name`, or `name[variant]`, then `@reading`: how the command line and the logs call it."""
        return self.name + (f"[{self.variant}]" if self.variant else "") + f"@{self.reading}"

    @property
    def scale(self) -> float:
        """The factor s by which the loss multiplies the logits (1 where it has none): what a softmax at test time uses."""
        return float(describe_function(self.loss).get("s", 1.0))

    def describe(self) -> dict[str, Any]:
        """All that decides the numbers, as JSON; name, reading and variant do not."""
        head = {"kind": self.head.kind}
        if self.head.kind == "linear":
            head |= {"bias": self.head.bias, "decay_bias": self.head.decay_bias}
        return {
            "loss": describe_function(self.loss),
            "head": head,
            "weights": describe_function(self.weights),
            "sampler": describe_function(self.sampler),
            "reduction": self.reduction,
            "task": self.task,
            "starts_from": self.starts_from.describe() if self.starts_from else None,
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
    """One paper. methods(column, protocol) lists everything that is trained on a column, rows and grids alike.

    own, main: the names of the paper's own methods, and the numbers of the tables that its claim rests on: with
    cross-entropy, they are trained first.
    stand_ins: for a column of the quick profile, the published column in whose place it is shown.
    """

    name: str
    title: str
    folder: Path
    columns: Mapping[Profile, tuple[Column, ...]]
    protocols: Mapping[Profile, Protocol]
    seeds: Mapping[Profile, int]
    methods: Callable[[Column, Protocol], tuple[Method, ...]]
    own: tuple[str, ...] = ()
    main: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    stand_ins: Mapping[str, str] = field(default_factory=dict)

    def results(self, profile: Profile) -> Path:
        return self.folder / "results" / profile


@dataclass(frozen=True)
class Planned:
    """A run that a paper wants, with the method object that trains it and the place where its record goes."""

    run: Run
    method: Method
    folder: Path

    @property
    def label(self) -> str:
        return f"{self.run.column.name} {self.method.label} seed {self.run.seed}"

    @property
    def root(self) -> Path:
        """The folder of all papers, under which records are looked up."""
        return self.folder.parents[3]

    @property
    def checkpoint(self) -> Path:
        """Where the weights of the finished run are: <paper>/checkpoints/<profile>/<column>/<key>.safetensors."""
        profile = self.folder.parent
        return profile.parents[1] / "checkpoints" / profile.name / self.folder.name / f"{self.run.key}.safetensors"

    @property
    def start(self) -> "Planned | None":
        """The run whose backbone this one starts with."""
        first = self.method.starts_from
        return Planned(make_run(self.run.column, self.run.protocol, first, self.run.seed), first, self.folder) if first else None


def make_run(column: Column, protocol: Protocol, method: Method, seed: int) -> Run:
    if column.dataset not in SETS:
        raise UserError(f"Unknown dataset {column.dataset!r}; known: {', '.join(SETS)}.")
    if column.backbone not in BACKBONES:
        raise UserError(f"Unknown backbone {column.backbone!r}; known: {', '.join(BACKBONES)}.")
    return Run(column, protocol, method.describe(), SETS[column.dataset].digest, seed)


def missing_runs(planned: Sequence[Planned], have: Mapping[str, Path]) -> list[Planned]:
    """The planned runs that have no record, each after the run that it starts from, where its weights are not here.

    have: key -> file of the records. A start that diverged has no weights and is not tried again.
    """
    needed: dict[str, Planned] = {}
    for item in planned:
        if item.run.key in have:
            continue
        chain = [item]
        while (start := chain[-1].start) and not start.checkpoint.exists() and not has_diverged(start.run.key, have):
            chain.append(start)
        for link in reversed(chain):
            needed.setdefault(link.run.key, link)
    return list(needed.values())


def plan(paper: Paper, profile: Profile, *, columns: tuple[str, ...] = (), methods: tuple[str, ...] = (),
         seeds: int | None = None) -> list[Planned]:
    """Every run that the paper's tables and figures need, each key once, in the order of its columns, methods and seeds.

    columns, methods: keep these names only (a method by `name`, `name@reading` or its whole label); unknown ones are refused.
    """
    known = {c.name: c for c in paper.columns[profile]}
    if unknown := [c for c in columns if c not in known]:
        raise UserError(f"{paper.name} has no column {unknown[0]!r} in profile {profile!r}; it has: {', '.join(known)}.")
    protocol, found, seen = paper.protocols[profile], {}, set()
    for name in columns or known:
        for method in paper.methods(known[name], protocol):
            names = {method.name, method.label, f"{method.name}@{method.reading}"}
            seen |= names
            if methods and not names & set(methods):
                continue
            for seed in range(paper.seeds[profile] if seeds is None else seeds):
                run = make_run(known[name], protocol, method, seed)
                found.setdefault(run.key, Planned(run, method, paper.results(profile) / name))
    if unknown := [m for m in methods if m not in seen]:
        names = ", ".join(sorted(n for n in seen if "@" not in n))
        raise UserError(f"{paper.name} has no method {unknown[0]!r}; it has: {names} (also as name@reading, or a whole label "
                        "as `status --variants` shows it).")
    return list(found.values())
