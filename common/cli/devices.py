"""Where a command trains: one device or several here, the cores of a CPU, or the machines of a cluster."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.train.device import Device
    from common.train.work import Engine


def find_engine(options: argparse.Namespace, root: Path, data: Path) -> tuple["Engine", dict[str, Any]]:
    """The engine for --ray, --device and --processes, and what `place_of` says of its first place."""
    if not options.ray:
        return local_engine(choose_devices(options), data)
    from common.train.cluster import Cluster

    cluster = Cluster(options.ray, root, data, (options.device, options.precision, options.compile, options.graph))
    return cluster, cluster.describe()


def choose_devices(options: argparse.Namespace) -> list["Device"]:
    """Those of --device, else all GPUs, else the CPU: that one as many times as it trains runs at a time."""
    import torch

    from common.train.device import choose_device, use_threads

    names = options.device.split(",") if options.device else [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    devices = [choose_device(name, options.precision, options.compile, options.graph) for name in names]
    if len(devices) > 1 or devices[0].cuda:
        return devices
    return devices * use_threads(options.processes)


def local_engine(devices: Sequence["Device"], data: Path) -> tuple["Engine", dict[str, Any]]:
    """The engine over devices of this machine, and what `place_of` says of the first."""
    from common.train.device import place_of
    from common.train.processes import Processes
    from common.train.work import LocalDevice

    return LocalDevice(devices[0], data) if len(devices) == 1 else Processes(devices, data), place_of(devices[0])
