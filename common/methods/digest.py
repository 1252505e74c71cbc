"""What a method computes, as a digest of its code; and the version of the engine that all methods share. No torch.

The digest is taken over normalised syntax trees: of a method's own functions and head, and of every function, class and
module constant of this repository that they reach. Docstrings, comments, annotations, layout, and the names of local
variables, parameters, helpers and constants do not count, nor does the file in which something stands; an operator, a number,
a default or the order of two operations does. Sources are read, not imported, so that a plan has no need of torch.

What every method shares (pack, feed, draws, networks, optimiser, evaluation) has one number, ENGINE, which the golden runs of
tests/golden guard.
"""

import ast
import builtins
import dataclasses
import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.checkout import ROOT
from common.data.large_sets import LARGE
from common.data.sets import SETS
from common.errors import UserError
from common.models.sizes import BACKBONES, NETWORKS
from common.spec import parameters_of, unwrap

if TYPE_CHECKING:
    from common.methods.method import Head, Method
    from common.spec import Column

ENGINE = 1  # raise it where the golden runs change: records of an older engine are stale then
OURS = ("common", "papers", "tests")  # packages whose code is followed
HEADS = {  # the class of a head by its kind; `common.train.groups.make_head` builds it
    "linear": "heads.LinearHead", "cosine": "heads.CosineHead", "causal": "heads.CausalHead", "gaussian": "heads.GaussianHead",
    "centres": "heads.CentreHead", "quadratic": "heads.QuadraticHead", "memory": "memory.MemoryHead",
    "balanced": "heads.BalancedHead",
}
LEFT_OUT = ("ctx", "annotation", "returns", "type_comment", "type_params", "type_ignores", "kind")


@dataclasses.dataclass(frozen=True)
class Source:
    """The module-level names of a file: definitions, expressions of constants, and where imported names come from."""

    path: Path
    defined: Mapping[str, ast.AST]
    constants: Mapping[str, ast.AST]
    imported: Mapping[str, tuple[str, str]]  # alias -> (module, name there, or "" for the module itself)


@dataclasses.dataclass
class Scope:
    """Where a name is looked up: the file, and the local names of the functions around it, numbered as they first appear."""

    source: Source
    local: dict[str, str]

    def inside(self, names: set[str]) -> "Scope":
        """The scope of a function in this one, whose own names hide those outside."""
        depth = 1 + max((int(number.split(".")[0]) for number in self.local.values() if number), default=0)
        return Scope(self.source, {**self.local, **{name: f"{depth}." for name in names}})

    def number(self, name: str) -> str:
        """What a local name is called in the tree; "" for a name that is not local."""
        number = self.local.get(name, "")
        if number.endswith("."):  # its first appearance
            used = sum(other.startswith(number) and other != number for other in self.local.values())
            self.local[name] = number = f"{number}{used}"
        return number


def method_digest(method: "Method", column: "Column") -> str:
    """16 hexadecimal digits for all that a method computes on a column, those of its first stage included.

    In it are too, as values, what no function of the method says: how the dataset is normalised, padded and mirrored, and
    the layers of the backbone.
    """
    parts = [method.loss, method.weights, method.sampler, *method.streams.samplers, method.streams.combine, method.adjust,
             method.clusters and method.clusters.numbers]
    network, images = (NETWORKS, LARGE) if column.dataset in LARGE else (BACKBONES, SETS)
    return _hash([
        [part and part_tree(part) for part in parts],
        head_digest(method.head),
        _values(network[column.backbone]), _facts(images[column.dataset]),
        method_digest(method.first_stage, column) if method.first_stage else None,
    ])


@cache
def file_of(function: Callable) -> Path:
    """Where a function stands."""
    return Path(inspect.getsourcefile(function)).resolve()


def head_digest(head: "Head") -> str:
    """The digest of the class that makes a head."""
    module, name = HEADS["balanced" if head.groups else head.kind].split(".")
    return definition_digest(ROOT / "common" / "models" / f"{module}.py", name)


def part_tree(part: Callable) -> list:
    """A function, or a partial of one (`common.spec.unwrap`), as a tree: its digest, and the values of its parameters, which
    are named by their places."""
    function, values = unwrap(part)
    order = list(parameters_of(function))
    known = {order.index(name): part_tree(value) if callable(value) else _values(value) for name, value in values.items()}
    return [definition_digest(file_of(function), function.__name__), sorted(known.items())]


_known: dict[tuple[Path, str], str] = {}  # digests that do not depend on what reached the definition
_first: dict[tuple[Path, str], str] = {}  # digests of what was asked for from outside
_open: list[tuple[Path, str]] = []  # what is being read now: a definition that reaches itself is named by how far back it is
_lowest: list[int] = []  # for each of those, the first in the list that it reaches, or NOTHING
NOTHING = 10**9


def definition_digest(path: Path, name: str) -> str:
    """The digest of a function, class or constant that a file defines at its top."""
    known = _known if _open else _first
    if (path, name) in known:
        return known[path, name]
    tree, lowest = _definition(path, name)
    digest = _hash(tree)
    if not _open:
        _first[path, name] = digest
    if lowest > len(_open):  # of a circle nothing is kept: the one that it is entered by would decide what the others are
        _known[path, name] = digest
    return digest


def _definition(path: Path, name: str) -> tuple[Any, int]:
    """The tree of a definition, and the first place in `_open` that it reaches."""
    if (path, name) in _open:
        place = _open.index((path, name))
        _lowest[-1] = min(_lowest[-1], place)
        return ["again", len(_open) - place], place
    source = read_source(path)
    _open.append((path, name))
    _lowest.append(NOTHING)
    try:
        node = source.defined.get(name) or source.constants[name]
        if isinstance(node, ast.expr) and _reads_parameters(node, source):
            tree = _values(getattr(importlib.import_module(_module_name(path)), name))
        else:
            tree = _tree(node, Scope(source, {}))
        return tree, _lowest[-1]
    finally:
        _open.pop()
        lowest = _lowest.pop()
        if _lowest:
            _lowest[-1] = min(_lowest[-1], lowest)


def forget() -> None:
    """Read every file anew."""
    for cached in (read_source, _fields):
        cached.cache_clear()
    _known.clear()
    _first.clear()


def _reads_parameters(node: ast.AST, source: Source) -> bool:
    """Whether a constant is read from a params.yaml: then its value counts, which no syntax tree shows."""
    called = [n.func.id for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    return any(source.imported.get(name) == ("common.spec", "load_yaml") for name in called)


def _module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def read_source(path: Path) -> Source:
    """Parse a file and list what stands at its top."""
    defined: dict[str, ast.AST] = {}
    constants: dict[str, ast.AST] = {}
    imported: dict[str, tuple[str, str]] = {}
    for node in _statements(ast.parse(read_text(path)).body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imported.update(_imports(node))
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                constants.update(_assigned(target, node.value))
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            constants.update(_assigned(node.target, node.value))
    return Source(path, defined, constants, imported)


def _statements(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements of a module, those inside a top-level `if` or `try` among them."""
    statements = []
    for node in body:
        inner = [part for name in ("body", "orelse", "finalbody") for part in getattr(node, name, ())]
        statements += _statements(inner) if isinstance(node, ast.If | ast.Try) else [node]
    return statements


def _imports(node: ast.Import | ast.ImportFrom) -> dict[str, tuple[str, str]]:
    if isinstance(node, ast.ImportFrom):
        return {alias.asname or alias.name: (node.module or "", alias.name) for alias in node.names}
    return {alias.asname or alias.name.partition(".")[0]: (alias.name if alias.asname else alias.name.partition(".")[0], "")
            for alias in node.names}


def _assigned(target: ast.expr, value: ast.expr) -> dict[str, ast.expr]:
    """Names -> expressions of an assignment; of `a, b = 1, 2` each its own."""
    if isinstance(target, ast.Name):
        return {target.id: value}
    if not isinstance(target, ast.Tuple):
        return {}
    same = isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts)
    parts = value.elts if same else [ast.Subscript(value, ast.Constant(i), ast.Load()) for i in range(len(target.elts))]
    return {name: part for one, given in zip(target.elts, parts, strict=True) for name, part in _assigned(one, given).items()}


# ---------------------------------------------------------------- the tree of a definition


def _tree(node: Any, scope: Scope) -> Any:
    """A syntax tree as nested lists, without what does not count."""
    if isinstance(node, list):
        return [_tree(part, scope) for part in node if not _is_text(part)]
    if not isinstance(node, ast.AST):
        return node if isinstance(node, str | int | None) else repr(node)
    special = _SPECIAL.get(type(node))
    return special(node, scope) if special else _plain(node, scope)


def _plain(node: ast.AST, scope: Scope) -> list:
    return [type(node).__name__, *(_tree(value, scope) for name, value in ast.iter_fields(node) if name not in LEFT_OUT)]


def _is_text(node: Any) -> bool:
    """A docstring, or another text that stands for itself; or an annotation without a value."""
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return text or (isinstance(node, ast.AnnAssign) and node.value is None)


def _constant(node: ast.Constant, scope: Scope) -> list:
    return ["value", type(node.value).__name__, repr(node.value)]


def _name(node: ast.Name, scope: Scope) -> Any:
    return scope.number(node.id) or _global(node.id, scope.source)


def _argument(node: ast.arg, scope: Scope) -> str:
    return scope.number(node.arg)


def _annotated(node: ast.AnnAssign, scope: Scope) -> list:
    """`x: int = 1` is `x = 1`."""
    return ["Assign", [_tree(node.target, scope)], _tree(node.value, scope)]


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, scope: Scope) -> list:
    """Defaults and decorators are read outside, the body inside. A function inside another is bound to a local name."""
    a = node.args
    outside = [_tree([*a.defaults, *a.kw_defaults], scope), _tree(getattr(node, "decorator_list", []), scope)]
    inside = scope.inside(_local_names(node))
    names = [p.arg for p in (*a.posonlyargs, *a.args, *filter(None, [a.vararg]), *a.kwonlyargs, *filter(None, [a.kwarg]))]
    numbers = [inside.number(name) for name in names]
    kinds = [len(a.posonlyargs), len(a.args), len(a.kwonlyargs), a.vararg is not None, a.kwarg is not None]
    return ["function", scope.number(getattr(node, "name", "")), kinds, numbers, *outside, _tree(node.body, inside)]


def _local_names(node: ast.AST) -> set[str]:
    """The names that a function binds: parameters, assignments, loops, imports, functions inside it (whose own are theirs)."""
    a, names = node.args, set()
    names |= {p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg]))}
    waiting = list(node.body) if isinstance(node.body, list) else [node.body]
    while waiting:
        part = waiting.pop()
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(part.name)
            continue
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store | ast.Del):
            names.add(part.id)
        elif isinstance(part, ast.Import | ast.ImportFrom):
            continue  # resolved by what is imported
        elif isinstance(part, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and part.name:
            names.add(part.name)
        waiting += [] if isinstance(part, ast.Lambda) else ast.iter_child_nodes(part)
    return names


def _class(node: ast.ClassDef, scope: Scope) -> list:
    """Bases, then everything in the body under its own name: methods are called, and weights are stored, by these names."""
    body = []
    for part in node.body:
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            body.append([part.name, _function(part, scope)])
        elif not _is_text(part):
            names = [t.id for t in getattr(part, "targets", [getattr(part, "target", None)]) if isinstance(t, ast.Name)]
            body.append([names, _tree(getattr(part, "value", part), scope)])
    return ["class", _tree(node.bases, scope), _tree(node.decorator_list, scope), sorted(body, key=json.dumps)]


def _attribute(node: ast.Attribute, scope: Scope) -> Any:
    """A name inside a module is that name, however the module was imported; any other attribute stays an attribute."""
    dotted = _dotted(node)
    if dotted and not scope.number(dotted[0]):
        module = scope.source.imported.get(dotted[0])
        if module:
            return _imported(module[0], ".".join(filter(None, [module[1], *dotted[1:]])))
    return ["Attribute", _tree(node.value, scope), _field(node.attr)]


def _dotted(node: ast.expr) -> list[str]:
    """["a", "b", "c"] of `a.b.c`, else nothing."""
    if isinstance(node, ast.Name):
        return [node.id]
    inner = _dotted(node.value) if isinstance(node, ast.Attribute) else []
    return [*inner, node.attr] if inner else []


@cache
def _fields() -> Mapping[str, str]:
    """What a loss reads of `Outputs` and `Context`, by its place there."""
    source = read_source(ROOT / "common" / "methods" / "method.py")
    return {part.target.id: f"{name} {place}" for name in ("Outputs", "Context")
            for place, part in enumerate(p for p in source.defined[name].body if isinstance(p, ast.AnnAssign))}


def _field(name: str) -> str:
    return _fields().get(name, name)


def _call(node: ast.Call, scope: Scope) -> list:
    """Keywords of a function of this repository are named by the places of its parameters, in any order."""
    known = _parameters(node.func, scope)
    if not known and node.args:  # partial(f, a=1)
        known = _parameters(node.args[0], scope) if isinstance(node.func, ast.Name) and node.func.id == "partial" else []
    keywords = [[known.index(k.arg) if k.arg in known else _field(k.arg) if k.arg else "**", _tree(k.value, scope)]
                for k in node.keywords]
    return ["Call", _tree(node.func, scope), _tree(node.args, scope), sorted(keywords, key=json.dumps)]


def _parameters(function: ast.expr, scope: Scope) -> list[str]:
    """The names of the parameters of a function that this repository defines, else nothing."""
    if not isinstance(function, ast.Name) or scope.number(function.id):
        return []
    source, name = scope.source, function.id
    while name in source.imported and _is_ours(source.imported[name][0]):
        module, name = source.imported[name]
        source = read_source(_file_of(module))
    node = source.defined.get(name)
    if not isinstance(node, ast.FunctionDef):
        return []
    return [p.arg for p in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]


def _local_import(node: ast.Import | ast.ImportFrom, scope: Scope) -> str:
    """An import inside a function: its names are looked up as if it stood at the top."""
    scope.source = dataclasses.replace(scope.source, imported={**scope.source.imported, **_imports(node)})
    return "import"


def _global(name: str, source: Source) -> Any:
    """What a name at the top of a file stands for."""
    if name in source.constants or (source.path, name) in _open:  # a constant is what it stands for, as if it were written there
        return _definition(source.path, name)[0]
    if name in source.defined:
        return definition_digest(source.path, name)
    if name in source.imported:
        return _imported(*source.imported[name])
    return ["builtin" if hasattr(builtins, name) else "unknown", name]


def _imported(module: str, name: str) -> Any:
    """A name of another module: of ours what it stands for, of others the name itself, dots and all."""
    if not _is_ours(module):
        return ["outside", ".".join(filter(None, [module, name]))]
    if not name:
        return ["module"]
    first, _, rest = name.partition(".")
    try:
        source = read_source(_file_of(module))
    except FileNotFoundError:  # a package: the name is a module in it
        return _imported(f"{module}.{first}", rest)
    return [_global(first, source), rest] if rest else _global(first, source)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in OURS


def _file_of(module: str) -> Path:
    return (ROOT / Path(*module.split("."))).with_suffix(".py")


_SPECIAL: dict[type, Callable[[Any, Scope], Any]] = {
    ast.Constant: _constant, ast.Name: _name, ast.arg: _argument, ast.AnnAssign: _annotated, ast.FunctionDef: _function,
    ast.AsyncFunctionDef: _function, ast.Lambda: _function, ast.ClassDef: _class, ast.Attribute: _attribute, ast.Call: _call,
    ast.Import: _local_import, ast.ImportFrom: _local_import,
}


# ---------------------------------------------------------------- values


def _values(value: Any) -> Any:
    """A number, text, container or frozen dataclass as JSON holds it."""
    if dataclasses.is_dataclass(value):
        return [type(value).__name__, {f.name: _values(getattr(value, f.name)) for f in dataclasses.fields(value)}]
    if isinstance(value, Mapping):
        return {str(key): _values(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_values(one) for one in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise UserError(f"{value!r} cannot be bound to a part of a method: a record has to hold it, so bind numbers, text or "
                    "functions.")


def _facts(images: Any) -> Any:
    """Of a dataset what decides how its images reach a network; its name and digests stand in the key."""
    left_out = ("name", "digest_train", "digest_test")
    return {name: value for name, value in _values(images)[1].items() if name not in left_out}


def _hash(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
