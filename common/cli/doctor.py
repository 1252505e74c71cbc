"""`doctor`: what is wrong with this machine for this project, and how to mend it."""

import ctypes.util
import importlib.metadata
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from rich.console import Console

from common.data.large_sets import LARGE
from common.data.lists import load_large, summarise
from common.data.sets import load
from common.errors import UserError
from common.plan import how_to_get

NEEDED = ("torch", "torchvision", "timm", "numpy", "scipy", "pandas", "scikit-learn", "matplotlib", "rich", "PyYAML",
          "safetensors")
FREE_GIB = 5  # for the environment, the datasets and resume states


def examine(console: Console, data: Path, datasets: list[str]) -> int:
    """Print one line a finding. Returns 2 if something that every run needs is wrong, else 0."""
    findings = [_python(), *map(_package, NEEDED), _dvc(), _device(), *_processor(), *(_dataset(n, data) for n in datasets),
                _disk(data)]
    for good, text in findings:
        mark = {True: "[green]ok  [/]", None: "[yellow]note[/]", False: "[red]bad [/]"}[good]
        console.print(f"{mark} {text}")
    return 2 if any(good is False for good, _ in findings) else 0


def _python() -> tuple[bool, str]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return good, f"Python {version}" + ("" if good else ": use 3.11 to 3.13 (make setup PYTHON=python3.12)")


def _package(name: str) -> tuple[bool, str]:
    try:
        return True, f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return False, f"{name} is missing: run `make setup`"


def _dvc() -> tuple[bool | None, str]:
    try:
        return True, f"dvc {importlib.metadata.version('dvc')}"
    except importlib.metadata.PackageNotFoundError:
        return None, "dvc is missing: everything runs without it but `dvc repro`; `make setup` installs it"


def _device() -> tuple[bool | None, str]:
    try:
        import torch
        import torchvision  # noqa: F401  (fails where its build does not match torch's)
    except (ImportError, RuntimeError) as error:
        return False, f"torch and torchvision do not load together ({error}): rm -r .venv && make setup"
    if not torch.cuda.is_available():
        return None, "no CUDA device: runs use the CPU, one training a core; the quick profile is meant for that"
    names = ", ".join(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count()))
    return True, f"{names}, CUDA {torch.version.cuda}"


def _processor() -> list[tuple[bool | None, str]]:
    """What would make trainings on the CPU faster, where there is no GPU."""
    import torch

    if torch.cuda.is_available():
        return []
    from common.models.cpu_step import library_file

    tools = {"a C++ compiler": shutil.which(os.environ.get("CXX", "c++")), "ninja": _has_ninja(),
             "Python's headers": (Path(sysconfig.get_path("include")) / "Python.h").exists()}
    if library_file().exists() or all(tools.values()):
        findings = [(True, "residual networks train in C++ on this processor")]
    else:
        findings = [(None, f"with {' and '.join(name for name, there in tools.items() if not there)} residual networks would "
                     "train faster on this processor, in C++")]
    maps = Path("/proc/self/maps")
    if maps.exists() and "tcmalloc" not in maps.read_text():
        name = ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")
        findings.append((None, f"LD_PRELOAD={name} would make trainings on the CPU somewhat faster" if name else
                         "tcmalloc (libtcmalloc-minimal4 on Debian), preloaded, would make trainings on the CPU somewhat faster"))
    cores, busy = os.cpu_count() or 1, os.getloadavg()[0]
    if busy >= 0.5:
        findings.append((None, f"other programs keep {min(busy, cores):.1f} of {cores} cores busy: trainings take longer; "
                         f"--processes {max(1, round(cores - busy))} leaves them their share"))
    return findings


def _has_ninja() -> bool:
    return bool(shutil.which("ninja") or (Path(sys.executable).parent / "ninja").exists())


def _dataset(name: str, data: Path) -> tuple[bool | None, str]:
    if not (data / f"{name}.npz").exists():
        return None, f"data/{name}.npz is not here: {how_to_get(name)}"
    try:
        if name in LARGE:
            return True, f"data/{name}.npz: {summarise(load_large(name, data))}"
        images = load(name, data)
        order = ", archive order known" if images.archive_order is not None else ""
        return True, f"data/{name}.npz: {len(images.y_train):,} training and {len(images.y_test):,} test images{order}"
    except UserError as error:
        return False, str(error)


def _disk(data: Path) -> tuple[bool | None, str]:
    free = shutil.disk_usage(data).free / 2**30
    return (True if free >= FREE_GIB else None), f"{free:.0f} GiB free on the disk of data/" + (
        "" if free >= FREE_GIB else f"; at least {FREE_GIB} are wise")
