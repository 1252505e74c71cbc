"""What decides the numbers of a run: column, protocol, method, data, seed; and the strict YAML that states them.

Nothing here imports torch: a plan, a table and a DVC stage start without it.
"""

import dataclasses
import hashlib
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal, Self

import yaml

from common.errors import UserError, meant

Imbalance = Literal["none", "lt", "step", "counts"]
Subset = Literal["authors", "hash", "seed-666", "draw-1", "draw-2", "draw-3", "draw-4", "draw-5"]
ProfileName = Literal["quick", "paper"]
Reading = Literal["written", "released"]
FURTHER_DRAWS = ("draw-1", "draw-2", "draw-3", "draw-4", "draw-5")
ARCHIVE_ORDER_KNOWN = ("cifar10", "cifar100")  # datasets of which data/lists/ holds the order of the official archive


@dataclass(frozen=True)
class Column:
    """What a table's column names: dataset, imbalance and backbone.

    ratio: largest over smallest class, rho >= 1 (1 where `imbalance` is "none" or "counts", and where the set itself is
    long-tailed).
    counts: with imbalance "counts", the training images of the first len(counts) classes; the others are left out of
    training and test set.
    subset: which images are kept where not all are. "authors": those that the authors' scripts keep (NumPy's seed 0 shuffles
    the positions of a class in the official archive); "seed-666": the same with seed 666, and "draw-n" with
    seed n; all need a dataset of ARCHIVE_ORDER_KNOWN. "hash": the first of a class by the hash of their pixels.
    """

    dataset: str
    imbalance: Imbalance
    ratio: int
    backbone: str
    subset: Subset = "authors"
    counts: tuple[int, ...] = ()

    def __post_init__(self):
        if self.ratio < 1:
            raise UserError(f"ratio {self.ratio}: the largest class has at least as many images as the smallest, so 1 or more.")

    @property
    def name(self) -> str:
        """Readable and unique within a paper, for example `cifar10-lt-100`.

        It says the backbone where that is not the usual one, and the subset where the authors' is known and not the one kept.
        """
        parts = [self.dataset, *map(str, self.counts)]
        parts += [self.imbalance, str(self.ratio)] if self.imbalance in ("lt", "step") and self.ratio > 1 else []
        parts += [] if self.backbone in ("resnet32", "resnet8") else [self.backbone]
        parts += [self.subset] if self.is_drawn else []
        return "-".join(parts)

    @property
    def is_drawn(self) -> bool:
        """Whether it keeps other images than the authors' scripts where theirs are known: to see what the choice does."""
        return self.subset != "authors" and self.dataset in ARCHIVE_ORDER_KNOWN


RANGES = (("batch_size", 1, math.inf), ("rate", 0, math.inf), ("momentum", 0, 1), ("weight_decay", 0, math.inf),
          ("decay_factor", 0, math.inf))  # of a protocol's numbers


@dataclass(frozen=True)
class Protocol:
    """Optimiser and schedule, which the papers call "the setting".

    optimiser: "sgd" with momentum, "nesterov", "adam" with the weight decay in the gradient (Kingma and Ba, 2015; beta_1
    is `momentum`, beta_2 0.999), or "adamw" with the decay apart from it.
    The rate of an epoch (counted from 0) is `rate`, times w + (1 - w) (epoch + 1) / warmup_epochs with w = warmup_start in
    the first warmup_epochs; in steps, times decay_factor for every entry of decay_epochs that has been reached; as a
    cosine, times (1 + cos(pi epoch / epochs)) / 2.
    decay_epochs: where a text says "at epoch N" or "at the N-th epoch", N epochs are trained before, so the entry is N, the
    first epoch with the smaller rate (so does LDAM's code with its 160 and 180). What follows a released code has the
    entry at which that code decays, counted from 0.
    An epoch that the run never reaches is a UserError, and so are decay_epochs under a cosine, which has none.
    trains: "all", or "head" for a second stage, whose backbone keeps every weight. moving_statistics: whether that
    backbone is in training mode all the same, so that its batch statistics follow the second stage's sampling.
    """

    epochs: int
    batch_size: int
    rate: float
    momentum: float
    weight_decay: float
    warmup_epochs: int
    decay_epochs: tuple[int, ...]
    decay_factor: float
    drop_last: bool
    schedule: Literal["steps", "cosine"] = "steps"
    trains: Literal["all", "head"] = "all"
    moving_statistics: bool = False
    optimiser: Literal["sgd", "nesterov", "adam", "adamw"] = "sgd"
    warmup_start: float = 0.0

    def __post_init__(self):
        names = f"decay_epochs {list(self.decay_epochs)}"
        for name, least, most in RANGES:
            if not least <= (value := getattr(self, name)) <= most:
                raise UserError(f"{name} {value:g}: it lies between {least:g} and {most:g}.")
        if self.epochs < 0:
            raise UserError(f"epochs {self.epochs}: a run has 0 epochs (it is only tested) or more.")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise UserError(f"warmup_epochs {self.warmup_epochs}: a warm-up ends within the run, which has {self.epochs} epochs.")
        if not 0 <= self.warmup_start <= 1:
            raise UserError(f"warmup_start {self.warmup_start:g}: a warm-up starts from a share of the rate, 0 to 1.")
        if self.decay_epochs and self.schedule == "cosine":
            raise UserError(f"{names}: a cosine has no such steps; leave the list empty, or let schedule be steps.")
        if outside := [e for e in self.decay_epochs if not 0 <= e < self.epochs]:
            raise UserError(f"{names}: epoch {outside[0]} is never reached in a run of {self.epochs}, whose epochs are counted "
                            "from 0; list only epochs of the run.")
        if list(self.decay_epochs) != sorted(set(self.decay_epochs)):
            raise UserError(f"{names}: the epochs must rise from one to the next.")

    @property
    def first_decay(self) -> int:
        """The epoch at which the rate first falls, where deferred re-balancing begins; a UserError where it never does."""
        if not self.decay_epochs:
            raise UserError("decay_epochs []: what is deferred to the first decay of the rate would never begin; list an epoch, "
                            "or give the row a start of its own.")
        return self.decay_epochs[0]

    def only_tested(self) -> Self:
        """The setting of a stage that trains nothing: no epochs, so no warm-up and no decay."""
        return dataclasses.replace(self, epochs=0, warmup_epochs=0, decay_epochs=(), trains="head")

    def learning_rate(self, epoch: int) -> float:
        """The learning rate of `epoch`, counted from 0."""
        warm = min(1.0, (epoch + 1) / self.warmup_epochs) if self.warmup_epochs else 1.0
        warm = self.warmup_start + (1 - self.warmup_start) * warm
        if self.schedule == "cosine":
            return self.rate * warm * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.rate * warm * self.decay_factor ** sum(epoch >= e for e in self.decay_epochs)


@dataclass(frozen=True)
class LargeProtocol(Protocol):
    """A `Protocol` and what only images of 224 pixels need.

    trains: also "last": the last block of the backbone, drawn anew, an adapter behind it and the head; the rest keeps weights
    and statistics (the second stage of a network that was trained elsewhere).
    batch_norm: over the images of one process and forward pass ("device", which the released codes' DataParallel does), or
    over those of all processes ("synchronised").
    pretrained: start with weights trained on ImageNet.
    crop: of training images, a random part of the image (8 to 100 % of its area) resized, or a random square of the image
    whose shorter side was resized to 256. jitter: the most by which brightness, contrast and saturation change.
    """

    trains: Literal["all", "last", "head"] = "all"
    batch_norm: Literal["device", "synchronised"] = "device"
    pretrained: bool = False
    crop: Literal["random-resized", "resize-crop"] = "random-resized"
    jitter: float = 0.0


@dataclass(frozen=True)
class LargeColumns:
    """A paper's columns of large sets by name, and for each its settings as `Paper.protocols` has them for the others."""

    columns: dict[str, Column]
    protocols: dict[str, dict[str, LargeProtocol]]

    def __post_init__(self):
        for name, column in self.columns.items():
            if name != column.name:
                raise UserError(f"columns: {name} is {column.name} by its own values; give it that name, there and in protocols.")


@dataclass(frozen=True)
class RunSpec:
    """One training: its spec decides every number that it yields.

    method: the resolved method as `common.methods.method.Method.describe` gives it, so without its name; and the
    column's backbone, as `common.models.sizes.describe_backbone` gives it.
    data: content digest of the dataset.
    """

    column: Column
    protocol: Protocol
    method: Mapping[str, Any]
    data: str
    seed: int

    def as_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["column"], fields["protocol"] = dataclasses.asdict(self.column), dataclasses.asdict(self.protocol)
        return json.loads(json.dumps(fields))

    @cached_property
    def key(self) -> str:
        """`spec_key` of the spec. A campaign asks each of some thousand runs for it again and again."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return spec_key(fields | {"column": vars(self.column), "protocol": vars(self.protocol)})


def canonical_json(value: Any) -> bytes:
    """One spelling for equal values: sorted keys, no spaces. NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def spec_key(spec: Mapping[str, Any]) -> str:
    """The key of a run: the first 16 hexadecimal digits of the SHA-256 of its spec."""
    return hashlib.sha256(canonical_json(spec)).hexdigest()[:16]


def unwrap(function: typing.Callable) -> tuple[typing.Callable, dict[str, Any]]:
    """A plain function, or a `functools.partial` of one, as the function and the values of its parameters: what is bound, and
    the defaults of the rest. So `f`, and `f` with a default spelled out, are one thing, and 30 is 30.0 where a float is due.

    A lambda, a nested function, a method or an object is a UserError: a record has to name what it is made of.
    """
    keywords: dict[str, Any] = {}
    while isinstance(function, partial):
        if function.args:
            raise UserError(f"{function.func.__name__} is bound to values by their places; bind keywords, so that a record can "
                            "name them.")
        keywords = {**function.keywords, **keywords}
        function = function.func
    name = getattr(function, "__qualname__", repr(function))
    if not inspect.isfunction(function) or "<" in name or "." in name:
        raise UserError(f"{name} cannot be a part of a method, as a record has to name it: write a function with a name at the "
                        "top of a file, and bind its numbers with functools.partial.")
    parameters = parameters_of(function)
    if unknown := sorted(set(keywords) - set(parameters)):
        raise UserError(f"{name} has no parameter {unknown[0]!r}; it has: {', '.join(parameters)}.")
    values = {n: p.default for n, p in parameters.items() if p.default is not p.empty} | keywords
    as_float = {n for n, p in parameters.items() if p.annotation in (float, "float") and type(values.get(n)) is int}
    return function, {name: float(value) if name in as_float else value for name, value in sorted(values.items())}


@cache
def parameters_of(function: typing.Callable) -> Mapping[str, inspect.Parameter]:
    """The parameters of a plain function; a plan asks some hundred functions some ten thousand times."""
    return inspect.signature(function).parameters


def describe_function(function: typing.Callable) -> dict[str, Any]:
    """A function as `unwrap` takes it, as JSON: its name, and the values of its parameters. What it computes is not in here,
    but in `common.methods.digest`."""
    function, values = unwrap(function)
    return {"function": function.__name__,
            **{name: describe_function(value) if callable(value) else value for name, value in values.items()}}


class _Reader(yaml.SafeLoader):
    """YAML without a surprise: a key that stands twice is an error, not the last one, and an unquoted 5e-05 is a number.

    PyYAML follows YAML 1.1, to which a number with an exponent has a point and the exponent a sign; DVC writes by YAML 1.2.
    """

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", node.value[i][0].start_mark)
        return super().construct_mapping(node, deep)


FLOAT = "tag:yaml.org,2002:float"
_Reader.add_implicit_resolver(FLOAT, re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789"))


@dataclass(frozen=True)
class FilePlace:
    """Where a value stands: in which file (or in what else), behind which keys and, where it was read from a file, its line."""

    name: str
    keys: str = ""
    line: int = 0
    node: yaml.Node | None = None

    def __str__(self) -> str:
        return self.name + (f", line {self.line}" if self.line else "") + self.keys

    def at(self, key: Any, text: str) -> "FilePlace":
        """The place of an entry of this mapping or list; text: how a sentence goes on to it."""
        line, node, entries = self.line, None, getattr(self.node, "value", ())
        if isinstance(self.node, yaml.MappingNode):
            name, node = next(((k, v) for k, v in entries if k.value == str(key)), (self.node, None))
            line = name.start_mark.line + 1 if node else line
        elif isinstance(self.node, yaml.SequenceNode):
            node = entries[key]
            line = node.start_mark.line + 1
        return FilePlace(self.name, self.keys + text, line, node)


class Entries(dict):
    """A mapping of a file. To ask for a key that is not there is a UserError: only its reader knows which keys it needs."""

    def __init__(self, entries: Mapping, where: str):
        super().__init__(entries)
        self.where = where

    def __missing__(self, key: Any) -> typing.NoReturn:
        raise UserError(f"{self.where}: key {key!r} is missing{meant(key, self)}.")

    def __or__(self, other: Mapping) -> "Entries":
        return Entries({**self, **other}, self.where)

    def __reduce__(self) -> tuple:
        return Entries, (dict(self), self.where)


def load_yaml(path: Path, shape: type) -> Any:
    """Read a YAML file into the frozen dataclass `shape`; an unknown or missing key, a wrong type or a number that is not finite
    is a UserError, which names the file and the line."""
    try:
        reader = _Reader(Path(path).read_text(encoding="utf-8"))
        node = reader.get_single_node()
        value = reader.construct_document(node) if node else None
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        why = f"{error.context or ''} {error.problem}".strip() if mark else error
        where = FilePlace(str(path), line=mark.line + 1 if mark else 0)
        raise UserError(f"{where}: not valid YAML: {' '.join(str(why).split())}.") from None
    return build(value, shape, FilePlace(str(path), node=node))


def build(value: Any, shape: Any, where: FilePlace | str) -> Any:
    """Turn parsed YAML into `shape` (a dataclass, a tuple, a dictionary, a Literal or a scalar), strictly.

    An integer is accepted where a float is asked for and nothing else is converted: text in quotes is no number, whatever
    it says. where: for the message of the UserError.
    """
    where = FilePlace(where) if isinstance(where, str) else where
    origin, args = typing.get_origin(shape), typing.get_args(shape)
    if dataclasses.is_dataclass(shape):
        return _build_dataclass(value, shape, where)
    if origin is tuple and isinstance(value, list):
        return tuple(build(v, args[0], where.at(i, f"[{i}]")) for i, v in enumerate(value))
    if origin in (dict, Mapping) and isinstance(value, dict):
        places = {k: where.at(k, f": {k}") for k in value}
        return Entries({build(k, args[0], places[k]): build(v, args[1], places[k]) for k, v in value.items()}, str(where))
    if origin is Literal:
        if value not in args:
            raise UserError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}{meant(value, args)}.")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return build(value, next(a for a in args if a is not type(None)), where)
    if shape is float and type(value) is int:
        return float(value)
    if shape is float and type(value) is float and not math.isfinite(value):
        raise UserError(f"{where}: {value} is not a finite number.")
    if shape in (int, float, str, bool) and type(value) is shape:
        return value
    quoted = shape in (int, float) and isinstance(value, str) and re.fullmatch(r"[-+.\deE]+", value)
    hint = " (a number stands without quotes)" if quoted else ""
    name = getattr(shape, "__name__", str(shape)) if origin is None else str(shape)
    raise UserError(f"{where}: expected {name}, found {type(value).__name__} {value!r}{hint}.")


def _build_dataclass(value: Any, shape: type, where: FilePlace) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected the keys of {shape.__name__}, found {value!r}.")
    hints = typing.get_type_hints(shape)
    fields = {f.name: f for f in dataclasses.fields(shape)}
    if unknown := sorted(set(value) - set(fields), key=str):
        raise UserError(f"{where.at(unknown[0], '')}: unknown key {unknown[0]!r}{meant(unknown[0], fields)}; known: "
                        f"{', '.join(fields)}.")
    required = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [n for n in required if n not in value]:
        raise UserError(f"{where}: key {missing[0]!r} is missing.")
    parts = {name: build(v, hints[name], where.at(name, f": {name}")) for name, v in value.items()}
    try:
        return shape(**parts)
    except UserError as error:  # parts that are right by themselves and do not fit together
        raise UserError(f"{where}: {error}") from None
