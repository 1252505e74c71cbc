"""`pip install .`: the wheel has all that the code reads, and nothing else; what is installed alone says what it is for."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.common.cli.test_main import make_small
from tests.test_structure import ROOT

WANTED = {".py", ".yaml", ".csv", ".cpp", ".js", ".css", ".j2", ".txt"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built of a copy: a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = make_small(folder / "repo")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-build-isolation",
               "--no-deps", "--no-index", "--wheel-dir", str(folder), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [path] = folder.glob("*.whl")
    return path


def test_the_wheel_has_every_file_that_the_code_reads(wheel) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    made = {"results", "tables", "figures", "summaries", "plans", "scores", "checkpoints", "__pycache__"}
    files = [path.relative_to(ROOT) for room in ("common", "papers") for path in (ROOT / room).rglob("*")]
    assert packed == {path.as_posix() for path in files if path.suffix in WANTED and not made & set(path.parts)}


def test_what_is_installed_loads_models_and_says_that_the_rest_needs_a_checkout(wheel, tmp_path) -> None:
    site = tmp_path / "site-packages"
    zipfile.ZipFile(wheel).extractall(site)

    def run(*words: str) -> subprocess.CompletedProcess:
        code = f"import sys; sys.path.insert(0, {str(site)!r}); "
        return subprocess.run([sys.executable, "-c", code + words[0], *words[1:]], cwd=tmp_path, capture_output=True, text=True)

    done = run("from common.zoo import load; load('digits-lt-20/ce', source='nowhere')")
    assert "UserError: nowhere is not a folder" in done.stderr
    done = run("import runpy; runpy.run_module('papers', run_name='__main__')", "plan")
    assert done.returncode == 2
    assert "clone the repository and run this in its folder" in done.stderr


def test_every_extra_is_in_the_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = {line.partition("==")[0] for line in (ROOT / "requirements.lock").read_text().splitlines()}
    wanted = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    assert {name.partition(">=")[0] for name in wanted} <= locked
