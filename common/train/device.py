"""The device that computes: how it is chosen, what it is called, and the settings of PyTorch that it wants."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from common.errors import UserError

Precision = Literal["bfloat16", "float32", "float64"]


@dataclass(frozen=True)
class Device:
    """Where and how to compute. Never part of a run's identity; the record names it."""

    name: str
    precision: Precision
    compile: bool
    graph: bool = True  # on CUDA: whether a step is captured once and replayed, else launched kernel by kernel

    @property
    def cuda(self) -> bool:
        return self.name.startswith("cuda")

    @property
    def captures(self) -> bool:
        """Whether a step is a CUDA graph."""
        return self.cuda and self.graph

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and statistics; bfloat16 is used by autocast only."""
        return torch.float64 if self.precision == "float64" else torch.float32


def use_device(device: Device) -> torch.device:
    """Make the device this process's own, with the settings of cuDNN that it wants; returns it with its number.

    TF32 is for bfloat16 alone: float32 means float32.
    """
    at = torch.device(device.name)
    if not device.cuda:
        return at
    if at.index is None:
        at = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.set_device(at)  # streams and captures are those of the current device
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = device.precision == "bfloat16"
    return at


def choose_device(name: str | None, precision: str | None, compiled: bool | None, graph: bool = True) -> Device:
    """What the user named, else CUDA where it is: bfloat16 and compiled there, float32 and eager on a CPU."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        cuda = torch.device(name).type == "cuda"
    except RuntimeError:
        raise UserError(f"{name!r} is not a device; use cpu, cuda or cuda:N.") from None
    if cuda and (not torch.cuda.is_available() or (torch.device(name).index or 0) >= torch.cuda.device_count()):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise UserError(f"{name} was asked for, but {count} CUDA devices are here; use --device cpu, or see `doctor`.")
    default = "bfloat16" if cuda else "float32"
    return Device(name, precision or default, cuda if compiled is None else compiled, graph)


def use_threads(processes: int | None) -> int:
    """How many trainings a CPU does at a time, each on its own threads: as many as the user says, else one a core. A training
    has one thread, or as many as OMP_NUM_THREADS says; from here on this process has that many, too."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
    torch.set_num_threads(threads)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return processes or max(1, cores // threads)


def place_of(device: Device) -> dict[str, Any]:
    """Name and precision of a device, as records have them, whether packs are compiled there, and its memory in bytes (0: a
    CPU, whose arithmetic is the limit)."""
    memory = torch.cuda.get_device_properties(torch.device(device.name)).total_memory if device.cuda else 0
    return {"device": device_name(device), "precision": device.precision, "compiled": device.compile, "memory": memory}


def device_name(device: Device) -> str:
    """What the machine calls the device."""
    return torch.cuda.get_device_name(torch.device(device.name)) if device.cuda else _processor()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'CPU'} ({torch.get_num_threads()} threads)"
