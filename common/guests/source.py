"""A file with a loss of one's own, read and asked for its rows; whatever is wrong with it is one sentence with its line.

The file is Python and is executed, with all the rights of whoever runs the command. No torch by itself.
"""

import ast
import builtins
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import get_args

from common.errors import UserError, meant
from common.methods.digest import OURS
from common.methods.method import Method
from common.spec import Protocol, Reading, parameters_of, unwrap

PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
HOW = "METHODS = [Method(\"my-loss\", \"written\", my_loss)]"


@dataclass(frozen=True)
class Guest:
    """A file with losses. name: the file's without `.py`; text: its content; rows(protocol): its methods under a setting."""

    name: str
    path: Path
    text: str
    rows: Callable[[Protocol], tuple[Method, ...]]


def load_guest(path: Path) -> Guest:
    """Execute the file and find its METHODS, or its methods(protocol)."""
    path = path.expanduser().resolve()
    if path.suffix != ".py" or not PLAIN_NAME.fullmatch(path.stem):
        raise UserError(f"{path.name} is not the name of a file with a loss: letters, digits, - and _, and .py in the end.")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read as text: {error}.") from None
    _check_imports(path, text)
    module = _execute(path)
    listed = vars(module).get("methods", vars(module).get("METHODS"))
    if listed is None:
        near = meant("METHODS", (name for name in vars(module) if name.isupper()))
        raise UserError(f"{path} names no rows{near}: end it with {HOW}.")

    def rows(protocol: Protocol) -> tuple[Method, ...]:
        return _check_rows(path, call(path, "methods", listed, protocol) if callable(listed) else listed)

    return Guest(path.stem, path, text, rows)


def _check_imports(path: Path, text: str) -> None:
    """A card carries one file, and a digest follows that file and this repository: what else it needs must be installed."""
    try:
        tree = ast.parse(text, str(path))
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid Python: {error.msg}.") from None
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else (
            ["." * node.level + (node.module or "")] if isinstance(node, ast.ImportFrom) else [])
        for name in names:
            first = name.partition(".")[0]
            beside = first not in OURS and ((path.parent / f"{first}.py").exists() or (path.parent / first).is_dir())
            if not first or beside:
                raise UserError(f"{path}, line {node.lineno}: it imports {name} from beside it; keep all that the loss computes "
                                "in this one file, so that a digest and a card can hold it.")


def module_name(path: Path) -> str:
    """What the file is called as a module."""
    return f"guest_{re.sub('[^A-Za-z0-9]', '_', path.stem)}"


def _execute(path: Path) -> ModuleType:
    name = module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where a dataclass, or torch's compiler, looks for it
    call(path, "the file", spec.loader.exec_module, module)
    return module


def call(path: Path, what: str, function: Callable, *arguments):
    """What the function returns; an exception out of the file is a UserError with its line there. A UserError stays one."""
    try:
        return function(*arguments)
    except UserError as error:
        raise UserError(f"{at(path, error)}: {error}") from None
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        raise UserError(f"{at(path, error)}, in {what}: {type(error).__name__}: {text}{_hint(error, path)}") from None


def at(path: Path, error: BaseException) -> str:
    """The file, with the last of its lines that an exception passed through."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def _hint(error: Exception, path: Path) -> str:
    """What was probably meant by a name, a keyword or an attribute that is not there."""
    text, known = str(error), ()
    if match := re.search(r"unexpected keyword argument '(\w+)'", text):
        known = (f.name for f in fields(Method)) if "Method" in text else ()
    elif match := re.search(r"cannot import name '(\w+)' from '([\w.]+)'", text):
        known = vars(sys.modules.get(match[2], sys))
    elif match := re.search(r"name '(\w+)' is not defined", text):
        own = vars(sys.modules[module_name(path)])
        known = own if meant(match[1], own) else vars(builtins)
    elif isinstance(error, AttributeError) and error.obj is not None and (match := re.search(r"attribute '(\w+)'", text)):
        known = dir(error.obj)
    return meant(match[1], known) if match else ""


def _check_rows(path: Path, rows: object) -> tuple[Method, ...]:
    """The rows, if they are methods with names of their own, readings that exist, and losses that can be called."""
    if not isinstance(rows, Sequence) or not rows or not all(isinstance(one, Method) for one in rows):
        kind = f"a list with {type(rows[0]).__name__}" if isinstance(rows, Sequence) and rows else type(rows).__name__
        raise UserError(f"{path}: its rows are a list of Method, and this is {kind}; for example {HOW}.")
    labels, readings = [one.label for one in rows], get_args(Reading)
    for method in rows:
        if method.reading not in readings:
            raise UserError(f"{path}: row {method.name!r} has reading {method.reading!r}{meant(method.reading, readings)}; it is "
                            f"one of {', '.join(readings)}.")
        if labels.count(method.label) > 1:
            raise UserError(f"{path}: two rows are called {method.label}; give one another name, or a variant.")
        _check_loss(path, method)
    return tuple(rows)


def _check_loss(path: Path, method: Method) -> None:
    """loss(outputs, labels, context), and a value for everything else that it takes."""
    try:
        function, values = unwrap(method.loss)
    except UserError as error:
        raise UserError(f"{path}: row {method.name!r}: {error}") from None
    names = list(parameters_of(function))
    lacking = [n for n, p in parameters_of(function).items() if n not in names[:3] and n not in values and p.kind in (
        inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    line = inspect.getsourcelines(function)[1]
    if len(names) < 3 or set(names[:3]) & set(values):
        raise UserError(f"{path}, line {line}: {function.__name__} takes {', '.join(names) or 'nothing'}; a loss takes outputs, "
                        "labels and context first, and its own numbers as keywords after them.")
    if lacking:
        raise UserError(f"{path}: row {method.name!r}: {function.__name__} needs a value for {lacking[0]!r}: "
                        f"partial({function.__name__}, {lacking[0]}=...).")
