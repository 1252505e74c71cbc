"""What stands around the code: the image, the workflow, the hook. They install what the lock says and run what CI runs."""

import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from tests.test_structure import ROOT, TRACKED

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


def steps(kind: str) -> list[str]:
    """The arguments of every instruction of a kind."""
    return [line.split(maxsplit=1)[1] for line in DOCKERFILE.splitlines() if line.startswith(f"{kind} ")]


def ignored(name: str) -> bool:
    """Whether .dockerignore leaves a path out of the image: it or a folder above it. `*` is a part of one name, `**/`
    any folders."""
    rules = [r for r in (ROOT / ".dockerignore").read_text().splitlines() if r and not r.startswith("#")]
    parts = name.split("/")
    return any(_fits(parts[:i], rule.split("/")) for i in range(1, len(parts) + 1) for rule in rules)


def _fits(parts: list[str], rule: list[str]) -> bool:
    if rule[0] == "**":
        return any(_fits(parts[i:], rule[1:]) for i in range(len(parts)))
    return len(parts) == len(rule) and all(map(fnmatch, parts, rule))


@pytest.mark.parametrize(("name", "out"), [
    (".git/config", True), (".venv-2.11/bin/python", True), ("data/cifar10.npz", True), ("common/train/__pycache__/x.pyc", True),
    ("data/lists/cifar10-archive-order.npz", False), ("papers/mm/results/paper/a/b.json", False),
    ("papers/mm/checkpoints/paper/w", True)])
def test_the_rules_of_the_next_test(name, out) -> None:
    assert ignored(name) == out


@pytest.mark.skipif(not TRACKED, reason="a copy without git's list of files")
def test_an_image_has_every_tracked_file() -> None:
    assert [name for name in TRACKED if name and ignored(name)] == []


def test_both_images_have_the_locks_packages_on_a_python_that_the_package_takes() -> None:
    assert [step.split(" AS ")[1] for step in steps("FROM")] == ["environment", "checkout", "cuda", "cpu"]
    [base] = [step for step in steps("FROM") if ":" in step]
    assert re.match(r"python:3\.(11|12|13)-slim", base)
    assert steps("COPY")[0].split()[:-1] == ["Makefile", "requirements.lock"]
    assert steps("RUN")[1] == "make setup"  # what a newcomer runs, and CI before its tests
    recipe = (ROOT / "Makefile").read_text().split("$(STAMP): requirements.lock\n")[1].split("\n\n")[0]
    assert "pip install --quiet --disable-pip-version-check -r requirements.lock" in recipe


def test_the_steps_of_the_image_work_in_what_it_copies(tmp_path) -> None:
    """No container can be built here, so its last steps are run on a copy of the same files."""
    left_out = shutil.ignore_patterns(".git", ".work", "__pycache__")
    copy = tmp_path / "image"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=lambda folder, names: {
        *left_out(folder, names), *(n for n in names if ignored((Path(folder) / n).relative_to(ROOT).as_posix()))})
    [made] = [step for step in steps("RUN") if "prepare digits" in step]
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "LONGTAIL_COMMIT": "0123456789ab",
                   "HOME": str(tmp_path)}
    done = subprocess.run(["sh", "-c", made], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (copy / "data" / "digits.npz").is_file()
    code = "from common.checkout import commit; print(commit())"
    said = subprocess.run([sys.executable, "-c", code], cwd=copy, env=environment, capture_output=True, text=True).stdout
    assert said == "0123456789ab\n"
    assert 'ENTRYPOINT ["python", "-m", "papers"]' in DOCKERFILE.splitlines()


def test_the_workflow_runs_what_ci_runs() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]
    assert [step["run"] for step in jobs["test"]["steps"] if "run" in step] == ["bash .ci/run"]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for job in jobs.values():
        for step in job["steps"]:
            assert set(step) <= {"uses", "with", "run"}
            words = shlex.split(step.get("run", ""))
            assert words[:1] != ["make"] or set(words[1:]) <= targets


def test_the_hook_is_the_lint_of_the_makefile() -> None:
    [repository] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"  # so that there is one ruff, that of the lock
    [hook] = repository["hooks"]
    assert hook["entry"] == ".venv/bin/python -m ruff check --force-exclude"
    assert "ruff==" in (ROOT / "requirements.lock").read_text()


def test_the_changelog_has_the_version_of_the_package() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.*)"', project, re.MULTILINE)[1]
    assert f"## [{version}] - " in (ROOT / "CHANGELOG.md").read_text()
