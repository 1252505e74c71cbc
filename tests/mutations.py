"""Single changes of the code: such as alter what it computes, and such as alter nothing.

    python -m tests.mutations 40 20      draws so many of each over losses, helpers, samplers, heads and the engine; each of the
                                         first must change a digest or fail the golden runs, none of the others may

The first kind swaps an operator, changes a number, or swaps two operands or arguments. The second renames locals and helpers,
adds docstrings and comments, moves definitions and lays code out anew.
"""

import ast
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    "digest": [ROOT / "common" / name for name in (
        "methods/losses.py", "methods/sampling.py", "models/heads.py", "models/memory.py")]
    + [ROOT / "papers" / "icu" / "equations.py"],
    "engine": [ROOT / "common" / name for name in (
        "data/feed.py", "data/augment.py", "data/imbalance.py", "models/resnet.py", "models/pooling.py", "models/backbones.py",
        "train/pack.py", "train/resident.py", "train/loop.py", "train/groups.py", "train/clusters.py", "train/meta.py", "metrics.py", "spec.py")],
}
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.MatMult: ast.Sub,
             ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv}
COMPARISONS = {ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
# What no number depends on: words, errors, devices and how states are kept.
QUIET = ("__post_init__", "load_yaml", "build", "_build_dataclass", "construct_mapping", "name", "label", "write_list",
         "read_list", "make_list", "write_lists", "canonical_json", "autocast", "tensors", "map", "copy_", "_place", "at")


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _sites(path: Path) -> list[ast.AST]:
    """The places of a file where one change can be made, in functions that compute."""
    found = []
    for function in [n for n in ast.walk(_tree(path)) if isinstance(n, ast.FunctionDef) and n.name not in QUIET]:
        skipped = {id(n) for part in ast.walk(function) if isinstance(part, ast.Raise | ast.JoinedStr | ast.FunctionDef)
                   and part is not function for n in ast.walk(part)}
        annotations = [a.annotation for a in ast.walk(function) if isinstance(a, ast.arg) and a.annotation]
        skipped |= {id(n) for part in [*annotations, *filter(None, [function.returns])] for n in ast.walk(part)}
        found += [n for n in ast.walk(function) if id(n) not in skipped and _can_change(n)]
    return sorted({id(n): n for n in found}.values(), key=lambda n: (n.lineno, n.col_offset, type(n).__name__))


def _can_change(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp):
        return type(node.op) in OPERATORS
    if isinstance(node, ast.Compare):
        return len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def changes(paths: list[Path]) -> list[tuple[Path, int]]:
    """Every single change that can be made: file and number of the place."""
    return [(path, number) for path in paths for number in range(len(_sites(path)))]


def change(path: Path, number: int) -> str:
    """The text of the file with one place changed."""
    site = _sites(path)[number]
    tree = ast.parse(path.read_text())
    node = next(n for n in ast.walk(tree) if type(n) is type(site) and hasattr(n, "lineno")
                and (n.lineno, n.col_offset, n.end_lineno, n.end_col_offset)
                == (site.lineno, site.col_offset, site.end_lineno, site.end_col_offset))
    if isinstance(node, ast.BinOp):
        node.op = OPERATORS[type(node.op)]()
    elif isinstance(node, ast.Compare):
        node.ops = [COMPARISONS[type(node.ops[0])]()]
    else:
        node.value = node.value + 1 if node.value != -1 else 2
    return ast.unparse(tree)


def describe(path: Path, number: int) -> str:
    site = _sites(path)[number]
    return f"{path.relative_to(ROOT)}:{site.lineno} {ast.unparse(site)}"


# ---------------------------------------------------------------- changes that alter nothing


def neutral_changes(seed: int) -> Iterator[tuple[str, dict[Path, str]]]:
    """Name -> the texts of files that are written otherwise and compute the same."""
    draw = random.Random(seed)
    losses, sampling, heads, memory = FILES["digest"][:4]
    for path in (losses, sampling, heads, memory):
        yield f"layout and comments of {path.name}", {path: _laid_out(path)}
        yield f"docstrings of {path.name}", {path: _documented(path)}
        yield f"a local of every function of {path.name}", {path: _with_locals_renamed(path, draw)}
        yield f"order of the functions of {path.name}", {path: _shuffled(path, draw)}
    helper, constant = draw.choice(["target", "shift_target", "largest_other", "cross_entropy"]), "HELD_BACK"
    yield f"helper {helper}", _renamed_everywhere(helper, f"{helper}_of_each")
    yield "a constant for a number", {losses: losses.read_text().replace("clamp(min=1e-7)", f"clamp(min={constant})").replace(
        "def target(", f"{constant} = 1e-7\n\n\ndef target(", 1)}
    yield "a constant of the heads", {heads: heads.read_text().replace("SLACK", "GAMMA_OF_TDE")}
    yield "a helper moved to another file", _moved(losses, ROOT / "common" / "metrics_of_losses.py", "target")


def _laid_out(path: Path) -> str:
    return "# laid out anew\n" + ast.unparse(ast.parse(path.read_text()))


def _documented(path: Path) -> str:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            has = isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)
            node.body = [ast.Expr(ast.Constant("Said otherwise.")), *(node.body[1:] if has else node.body)]
            node.returns = None
    return ast.unparse(ast.fix_missing_locations(tree))


def _with_locals_renamed(path: Path, draw: random.Random) -> str:
    """One assigned name of every function gets another name."""
    tree = ast.parse(path.read_text())
    for function in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]:
        stored = sorted({n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)})
        if stored:
            old = draw.choice(stored)
            for node in ast.walk(function):
                if isinstance(node, ast.Name) and node.id == old:
                    node.id = f"{old}_here"
    return ast.unparse(tree)


def _shuffled(path: Path, draw: random.Random) -> str:
    tree = ast.parse(path.read_text())
    first = [n for n in tree.body if not isinstance(n, ast.FunctionDef)]
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
    draw.shuffle(functions)
    return ast.unparse(ast.Module([*first, *functions], []))


def _renamed_everywhere(old: str, new: str) -> dict[Path, str]:
    word = re.compile(rf"(?<![\w.]){old}(?!\w)(?!=)")
    paths = [p for folder in ("common", "papers") for p in (ROOT / folder).rglob("*.py")]
    return {p: word.sub(new, text) for p in paths if word.search(text := p.read_text()) and f"{old}" in text
            and (f"def {old}(" in text or f"{old},\n" in text or f" {old}\n" in text or f"{old}(" in text)
            and ("common.methods.losses" in text or p.name == "losses.py")}


def _moved(path: Path, to: Path, name: str) -> dict[Path, str]:
    """A definition in a file of its own, imported where it was."""
    tree = ast.parse(path.read_text())
    node = next(n for n in tree.body if getattr(n, "name", "") == name)
    rest = [n for n in tree.body if n is not node]
    at = next(i for i, n in enumerate(rest) if isinstance(n, ast.Import | ast.ImportFrom))
    rest.insert(at, ast.ImportFrom(f"common.{to.stem}", [ast.alias(name)], 0))
    return {path: ast.unparse(ast.fix_missing_locations(ast.Module(rest, []))), to: ast.unparse(node)}


# ---------------------------------------------------------------- over the engine too, in a copy of the repository

DIGESTS = "from tests.common.methods.test_digest import digests; import json; print(json.dumps(digests()))"
GOLDEN = ("import json; from tests.golden.golden import golden_runs, FILE; from tests.golden.test_golden import alike; "
          "there = json.loads(FILE.read_text()); found = golden_runs(); "
          "raise SystemExit(not all(alike(one, there[name]) for name, one in found.items()))")


def main(altering: int, neutral: int, seed: int = 0) -> None:
    """Print a table, one change a line, and whether the digests or the golden runs saw it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("common", "papers", "tests", "data/lists", "pyproject.toml"):
            source, target = ROOT / name, copy / name
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        before = _run(copy, DIGESTS).stdout
        drawn = random.Random(seed).sample(changes(FILES["digest"] + FILES["engine"]), altering)
        unseen = 0
        for path, number in drawn:
            seen = _seen(copy, {path: change(path, number)}, before)
            unseen += seen == "-"
            print(f"| {describe(path, number)} | {seen} |", flush=True)
        for name, texts in list(neutral_changes(seed))[:neutral]:
            print(f"| nothing altered: {name} | {_seen(copy, texts, before)} |", flush=True)
    print(f"{unseen} of {altering} changes were not seen.")


def _seen(copy: Path, texts: dict[Path, str], before: str) -> str:
    """Who sees the changed files: "digest", "golden", "error" where nothing runs any more, or "-"."""
    kept = {path: path.read_text() if path.exists() else None for path in texts}
    for path, text in texts.items():
        (copy / path.relative_to(ROOT)).write_text(text)
    try:
        found = _run(copy, DIGESTS)
        if found.returncode or found.stdout != before:
            return "error" if found.returncode else "digest"
        return "golden" if _run(copy, GOLDEN).returncode else "-"
    finally:
        for path, text in kept.items():
            there = copy / path.relative_to(ROOT)
            there.unlink() if text is None else there.write_text(text)


def _run(copy: Path, code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, timeout=600)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
