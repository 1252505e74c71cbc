"""`doctor`: what is wrong with this machine for this project, and how to mend it."""

import importlib.metadata
import shutil
import sys
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
    findings = [_python(), *map(_package, NEEDED), _dvc(), _device(), *(_dataset(n, data) for n in datasets), _disk(data)]
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
        return None, f"no CUDA device: runs use {torch.get_num_threads()} CPU threads; the quick profile is meant for that"
    names = ", ".join(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count()))
    return True, f"{names}, CUDA {torch.version.cuda}"


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
