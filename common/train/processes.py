"""Several devices of one machine: a process for each, which trains one pack at a time. A CPU is as many devices as it has cores:
threads of one process wait for each other, and where another program takes one core, all of them wait for that."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.plan import Run
from common.stopping import is_asked, listening
from common.train.device import Device
from common.train.state import Workspace
from common.train.work import LocalDevice, Observe, Outcome, way

POLL = 0.5  # seconds between two looks at whether this process is asked to end


class Processes:
    """An `Engine` of one place a device. A process that dies gives its pack back, and another one takes its place.

    Each process has as many threads as this one (`torch.set_num_threads`): its bits on a CPU depend on their number.
    """

    def __init__(self, devices: Sequence[Device], data: Path):
        self.devices, self.data = list(devices), data
        self.places = len(self.devices)
        self._workers: dict[int, tuple[Any, Connection]] = {}
        self._observers: dict[int, Observe] = {}
        self._plainest: dict[int, bool] = {}
        self._told = False

    def begin(self, place: int, pack: Sequence[Run], work: Workspace, observe: Observe, plainer: int = 0) -> None:
        self._observers[place], self._plainest[place] = observe, way(self.devices[place], plainer)[1]
        try:
            self._connection(place).send((list(pack), work, plainer))
        except (BrokenPipeError, ConnectionResetError):  # died while it had nothing to do
            self._workers.pop(place)
            self._connection(place).send((list(pack), work, plainer))

    def _connection(self, place: int) -> Connection:
        if place not in self._workers:
            context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
            mine, its = context.Pipe()
            process = context.Process(target=_serve, args=(its, self.devices[place], self.data, torch.get_num_threads()),
                                      daemon=True)
            process.start()
            its.close()
            self._workers[place] = process, mine
        return self._workers[place][1]

    def wait(self) -> tuple[int, Outcome]:
        while True:
            busy = {self._workers[place][1]: place for place in self._observers}
            if is_asked() and not self._told:
                self._told = True
                for process, _ in self._workers.values():  # they save where they are
                    process.terminate()
            for connection in wait(list(busy), POLL):
                place = busy[connection]
                try:
                    kind, value = connection.recv()
                except (EOFError, ConnectionResetError):
                    self._workers.pop(place)[0].join()
                    del self._observers[place]
                    return place, Outcome("lost", plainest=self._plainest[place])
                if kind == "result":
                    del self._observers[place]
                    return place, value
                self._observers[place](value)

    def close(self) -> None:
        """End the processes, which save where they are if that takes seconds."""
        for process, connection in self._workers.values():
            connection.close()
            process.terminate()
            process.join()
        self._workers.clear()


def _serve(connection: Connection, device: Device, data: Path, threads: int) -> None:
    """The life of a worker: packs come in, progress and results go out. It ends with its parent, however that ends: the next
    command goes on with the same packs."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with suppress(KeyboardInterrupt), listening():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
        _work(connection, LocalDevice(device, data))


def _work(connection: Connection, here: LocalDevice) -> None:
    """Train what comes, until nothing more can come."""
    while True:
        try:
            pack, work, plainer = connection.recv()
        except EOFError:
            return
        try:
            here.begin(0, pack, work, lambda progress: connection.send(("progress", progress)), plainer)
            outcome = here.wait()[1]
        except UserError as error:
            outcome = Outcome("refused", str(error))
        connection.send(("result", outcome))


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
