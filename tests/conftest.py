"""Fixtures that several tests share: the real CIFAR sets, where this machine has a copy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from common.data.second_tests import prepare_second_tests
from common.data.sources import VARIABLE, prepare
from common.errors import UserError

# Two test processes with two spinning threads each take many times as long as with one; before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
UNPACK = ROOT.parent / "shared" / "data" / "unpack.py"
SECOND_TESTS = ROOT.parent / "shared" / "data" / "second_tests"


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the prepared CIFAR-10."""
    return real_data("cifar10", tmp_path_factory)


@pytest.fixture(scope="session")
def cifar100(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the prepared CIFAR-100."""
    return real_data("cifar100", tmp_path_factory)


@pytest.fixture(scope="session")
def second_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `prepare second-tests` makes of the public lists."""
    if not SECOND_TESTS.exists():
        pytest.skip(f"the public lists about test sets are not here: {SECOND_TESTS}")
    folder = tmp_path_factory.mktemp("second-tests")
    prepare_second_tests(SECOND_TESTS, folder, str)
    return folder


def real_data(name: str, factory: pytest.TempPathFactory) -> Path:
    """The folder that holds `<name>.npz`: the repository's data/, or a temporary one that is filled once a session."""
    if (ROOT / "data" / f"{name}.npz").exists():
        return ROOT / "data"
    base = factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "real-data"  # pytest-xdist: one for all workers
    shared.mkdir(exist_ok=True)
    with FileLock(shared / f"{name}.lock"):
        if not (shared / f"{name}.npz").exists():
            _fill(name, shared)
    return shared


def _fill(name: str, folder: Path) -> None:
    if given := os.environ.get(VARIABLE):
        try:
            prepare(name, folder, Path(given).expanduser())
        except UserError as error:
            pytest.skip(f"real {name} is not here: {error}")
    elif UNPACK.exists():
        unpacked = folder / f"{name}-unpacked"
        subprocess.run([sys.executable, UNPACK, unpacked, name], check=True, stdout=subprocess.DEVNULL)
        prepare(name, folder, unpacked)
        (unpacked / f"{name}.npz").unlink()
    else:
        pytest.skip(f"real {name} is not here: put {name}.npz into data/ with prepare, or set {VARIABLE} to a copy")
