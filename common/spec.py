"""What decides the numbers of a run: column, protocol, method, data, seed; and the strict YAML that states them.

Nothing here imports torch: a plan, a table and a DVC stage start without it.
"""

import dataclasses
import hashlib
import inspect
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import yaml

from common.errors import UserError

Imbalance = Literal["none", "lt", "step", "counts"]
Subset = Literal["canonical", "archive"]
Profile = Literal["quick", "paper"]
Reading = Literal["written", "released"]


@dataclass(frozen=True)
class Column:
    """What a table's column names: dataset, imbalance and backbone.

    ratio: largest over smallest class, rho >= 1 (1 where `imbalance` is "none" or "counts", and where the set itself is
    long-tailed).
    counts: with imbalance "counts", the training images of the first len(counts) classes; the others are left out of
    training and test set.
    subset: which images are kept; "canonical" ranks a class by the hash of its pixels, "archive" is the
    authors' own draw (NumPy seed 0 over the order of the official archive).
    """

    dataset: str
    imbalance: Imbalance
    ratio: int
    backbone: str
    subset: Subset = "canonical"
    counts: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Readable and unique within a paper, for example `cifar10-lt-100`; says the backbone where it is not the usual one."""
        parts = [self.dataset, *map(str, self.counts)]
        parts += [self.imbalance, str(self.ratio)] if self.imbalance in ("lt", "step") and self.ratio > 1 else []
        parts += [] if self.backbone in ("resnet32", "resnet8") else [self.backbone]
        parts += [] if self.subset == "canonical" else [self.subset]
        return "-".join(parts)


@dataclass(frozen=True)
class Protocol:
    """Optimiser and schedule, which the papers call "the setting".

    optimiser: "sgd" with momentum, "nesterov", "adam" with the weight decay in the gradient (Kingma and Ba, 2015; beta_1
    is `momentum`, beta_2 0.999), or "adamw" with the decay apart from it.
    The rate of an epoch (counted from 0) is `rate`, times w + (1 - w) (epoch + 1) / warmup_epochs with w = warmup_start in
    the first warmup_epochs; in steps, times decay_factor for every entry of decay_epochs that has been reached; as a
    cosine, times (1 + cos(pi epoch / epochs)) / 2.
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

    def learning_rate(self, epoch: int) -> float:
        """The learning rate of `epoch`, counted from 0 (LDAM family: the epochs with index >= 160 are the decayed ones)."""
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


@dataclass(frozen=True)
class Run:
    """One training: its spec decides every number that it yields.

    method: the resolved method as `common.method.Method.describe` gives it, so without its name.
    data: content digest of the dataset.
    """

    column: Column
    protocol: Protocol
    method: Mapping[str, Any]
    data: str
    seed: int

    def spec(self) -> dict[str, Any]:
        """The spec as JSON holds it."""
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


def describe_function(function: typing.Callable) -> dict[str, Any]:
    """A plain function, or a `functools.partial` of one, as JSON: its name, its bound keywords and its defaults.

    So `f`, and `f` with a default spelled out, are one thing, and 30 is 30.0 where a float is due. A mend that changes
    what a function computes must change its name or a keyword, or old records would pass for new ones.
    """
    keywords: dict[str, Any] = {}
    while isinstance(function, partial):
        if function.args:
            raise TypeError(f"{function} binds positional arguments; bind keywords, so that a record can name them")
        keywords = {**function.keywords, **keywords}
        function = function.func
    parameters = inspect.signature(function).parameters
    defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    bound = {}
    for name, value in sorted({**defaults, **keywords}.items()):
        is_float = name in parameters and parameters[name].annotation in (float, "float") and type(value) is int
        bound[name] = describe_function(value) if callable(value) else float(value) if is_float else value
    return {"function": function.__name__, **bound}


class _Reader(yaml.SafeLoader):
    """YAML without a surprise: a key that stands twice is an error, not the last one."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", node.value[i][0].start_mark)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path, shape: type) -> Any:
    """Read a YAML file into the frozen dataclass `shape`; an unknown or missing key or a wrong type is a UserError."""
    try:
        value = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Reader)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    return build(value, shape, str(path))


def build(value: Any, shape: Any, where: str) -> Any:
    """Turn parsed YAML into `shape` (a dataclass, a tuple, a dictionary, a Literal or a scalar), strictly.

    An integer is accepted where a float is asked for and nothing else is converted: `5e-4` without a decimal point
    is text to PyYAML, so text where a number is due is refused with that hint.
    """
    origin, args = typing.get_origin(shape), typing.get_args(shape)
    if dataclasses.is_dataclass(shape):
        return _build_dataclass(value, shape, where)
    if origin is tuple and isinstance(value, list):
        return tuple(build(v, args[0], f"{where}[{i}]") for i, v in enumerate(value))
    if origin in (dict, Mapping) and isinstance(value, dict):
        pairs = {build(k, args[0], f"key {k!r} of {where}"): build(v, args[1], f"{where}: {k}") for k, v in value.items()}
        return types.MappingProxyType(pairs)
    if origin is Literal:
        if value not in args:
            raise UserError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}.")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return build(value, next(a for a in args if a is not type(None)), where)
    if shape is float and type(value) is int:
        return float(value)
    if shape in (int, float, str, bool) and type(value) is shape:
        return value
    hint = " (write 0.0005, not 5e-4)" if shape in (int, float) and isinstance(value, str) else ""
    name = getattr(shape, "__name__", str(shape)) if origin is None else str(shape)
    raise UserError(f"{where}: expected {name}, found {type(value).__name__} {value!r}{hint}.")


def _build_dataclass(value: Any, shape: type, where: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected the keys of {shape.__name__}, found {value!r}.")
    hints = typing.get_type_hints(shape)
    fields = {f.name: f for f in dataclasses.fields(shape)}
    if unknown := sorted(set(value) - set(fields), key=str):
        raise UserError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(fields)}.")
    required = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [n for n in required if n not in value]:
        raise UserError(f"{where}: key {missing[0]!r} is missing.")
    return shape(**{name: build(v, hints[name], f"{where}: {name}") for name, v in value.items()})
