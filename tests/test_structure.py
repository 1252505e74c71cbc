"""The rooms and who may know whom: import order, no paper's name in common, sizes, no address or machine path."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEVELS = [
    {"errors", "stopping", "checkout", "spec", "models", "metrics"},
    {"data", "store", "record_form", "predictions"},
    {"methods"},
    {"paper"},
    {"draws", "plan", "cost"},
    {"train", "report"},
    {"campaign", "pipeline", "publish", "zoo"},
    {"guests", "cli"},
]
LEVEL = {room: i for i, rooms in enumerate(LEVELS) for room in rooms}
SOURCES = [p for folder in ("common", "papers") for p in sorted((ROOT / folder).rglob("*.py"))]
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n") if (
    ROOT / ".git").exists() else []


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    found = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    return found | {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "common" and len(parts) > 1 else None


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parts[len(ROOT.parts)] == "common"],
                         ids=lambda p: str(p.relative_to(ROOT)))
def test_common_imports_downwards_only(path):
    mine = path.relative_to(ROOT / "common").parts[0].removesuffix(".py")
    if mine == "__init__":
        return
    for module in imports(path):
        assert not module.startswith("papers"), f"{path} imports {module}: common never imports a paper"
        if (other := room(module)) and other != mine:
            annotation_only = mine == "data" and other == "methods"
            assert LEVEL[other] <= LEVEL[mine] or annotation_only, f"{path} ({mine}) imports {other} from a room above"
            assert {mine, other} != {"train", "report"}, f"{path}: train and report know each other"


def test_papers_never_import_papers():
    names = {p.parent.name for p in ROOT.glob("papers/*/replicate.py")}
    for name in names:
        for path in (ROOT / "papers" / name).rglob("*.py"):
            others = {m for m in imports(path) if m.startswith("papers.") and not m.startswith(f"papers.{name}")}
            assert not others, f"{path} imports {others}"


def test_common_names_no_paper():
    names = ("icu", "mm", "two_head", "kps", "fbl", "gcl", "cben")
    pattern = re.compile(r"(?<![A-Za-z0-9])(" + "|".join(names) + r")(?![A-Za-z0-9])", re.IGNORECASE)
    for path in ROOT.glob("common/**/*.py"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not pattern.search(line), f"{path}:{number} names a paper: {line.strip()}"


def test_files_and_functions_stay_small():
    for path in SOURCES:
        text = path.read_text()
        assert text.count("\n") <= 450, f"{path} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 70, f"{path}: {node.name}"


def test_no_paper_defines_a_function_under_a_name_that_another_uses():
    """A run's identity holds function names, so two functions of one name would share records."""
    seen: dict[str, Path] = {}
    shared = [ROOT / "common" / "methods" / f"{name}.py" for name in ("losses", "one_stage", "two_stage", "sampling")]
    for path in [*shared, *ROOT.glob("papers/*/replicate.py"), *ROOT.glob("papers/*/equations.py")]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and any(a.arg in ("outputs", "counts") for a in node.args.args):
                assert node.name not in seen, f"{node.name} is in {seen.get(node.name)} and in {path}"
                seen[node.name] = path


@pytest.mark.parametrize("module", ["papers.mm.replicate", "papers"])
def test_a_dry_run_imports_no_torch(module):
    target = "papers.catalog" if module == "papers" else module
    code = f"import sys; import {target}; sys.exit(any(m in sys.modules for m in ('torch', 'matplotlib', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def names_packages(name: str) -> bool:
    """Whether a tracked file says what is installed."""
    return name.endswith((".lock", "pyproject.toml", "Dockerfile")) or "requirements" in name


def test_nothing_tracked_names_an_index_or_a_machine():
    """Of an index neither the option nor, where packages are named, any address at all: each machine has its own."""
    forbidden, address = re.compile(r"(?i)(--|pip_)(extra.)?index.url|find.links|/work/|/root/|/home/"), re.compile(r"[a-z]+://")
    for name in TRACKED:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".lock", ".yaml", ".yml", ".txt", ".json", ""} and path.is_file():
            if path == Path(__file__):
                continue
            found = forbidden.search(path.read_text(errors="ignore"))
            assert not found, f"{name}: {found[0]}"
        if path.is_file() and names_packages(name):
            assert not address.search(path.read_text()), f"{name} has an address"


def test_every_link_to_a_file_of_ours_leads_to_one():
    for name in TRACKED:
        if name.endswith(".md"):
            for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", (ROOT / name).read_text()):
                assert ((ROOT / name).parent / link).exists(), f"{name} links to {link}"


def test_no_module_hard_codes_cuda():
    for path in ROOT.glob("common/**/*.py"):
        assert ".cuda(" not in path.read_text(), path


def chooses_for_itself(call: ast.Call) -> bool:
    """Whether this calls something of scipy.stats that picks how it computes, or the BCa interval, which three equal distances
    and a last bit turn into another. With three seeds and a tie `mannwhitneyu` takes the normal approximation: p 0.038, not 0.05.
    """
    import scipy.stats

    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    function = getattr(scipy.stats, name, None)
    if not inspect.isfunction(function) or "method" not in inspect.signature(function).parameters:
        return False
    given = next((k.value for k in call.keywords if k.arg == "method"), None)
    return getattr(given, "value", "auto") in ("auto", "BCa", "bca")


@pytest.mark.parametrize(("line", "refused"), [
    ("mannwhitneyu(a, b)", True), ("stats.mannwhitneyu(a, b, method='auto')", True),
    ("mannwhitneyu(a, b, method='exact')", False),
    ("stats.bootstrap((a,), np.mean)", True), ("stats.bootstrap((a,), np.mean, method='BCa')", True),
    ("stats.bootstrap((a,), np.mean, method='basic')", False), ("wilcoxon(a, b)", True), ("kendalltau(a, b)", True),
    ("ttest_ind_from_stats(m, s, 3, n, t, 3)", False), ("t.ppf(0.975, 2)", False)])
def test_the_rule_of_the_next_test(line, refused):
    assert chooses_for_itself(ast.parse(line).body[0].value) == refused


def test_no_statistic_is_computed_in_a_way_that_the_numbers_choose():
    for path in [*SOURCES, *ROOT.glob("benchmarks/*.py")]:
        if "scipy" in path.read_text():
            for node in ast.walk(ast.parse(path.read_text())):
                assert not (isinstance(node, ast.Call) and chooses_for_itself(node)), f"{path}:{node.lineno}"
