"""Several machines: a Ray cluster in which every task is one pack. Ray is an optional extra (`pip install .[cluster]`).

The machines need the environment and nothing else: code travels from the driver's checkout, images through Ray's object
store, records and weights come back when a pack ends. Resume states come as they are saved, so that a pack whose machine
is lost goes on elsewhere from its last saved epoch.
"""

import os
import pickle
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from common.checkout import ROOT, commit
from common.data.sets import Images, load
from common.errors import UserError
from common.plan import Run
from common.store import record_files, write_atomically
from common.train.device import choose_device, place_of
from common.train.loop import Progress
from common.train.state import Workspace
from common.train.work import Observe, Outcome, try_pack

CODE = {".py", ".yaml", ".toml", ".csv", ".json"}  # what a machine is sent of the checkout, up to LARGEST bytes a file
LARGEST = 2**20
NOT_CODE = {"figures", "results", "checkpoints", "tables", "summaries", "plans", "scores", "__pycache__"}  # folders, anywhere
NOT_AT_THE_TOP = {"data", "report"}  # folders; below, rooms of the code have these names
POLL = 0.5  # seconds between two looks at the cluster
TOKEN = ("The Ray cluster at {!r} asks for a token: set RAY_AUTH_MODE=token for this command and for every `ray start`, and copy "
         "~/.ray/auth_token of its first machine to each (an earlier ray.init() made it). Or start the cluster with "
         "RAY_AUTH_MODE=disabled, where nobody but you can reach it: without a token it lets anyone in.")
Choice = tuple[str | None, str | None, bool | None, bool]  # device, precision, compile, graph, as the user gave them


class Cluster:
    """An `Engine` over the machines of a Ray cluster: a place a GPU, or a place a machine where there is none.

    address: of the cluster; "auto" finds the one that this machine belongs to.
    choice: as `choose_device` takes it, on each machine.
    """

    def __init__(self, address: str, root: Path, data: Path, choice: Choice):
        try:
            import ray
            from ray.util.queue import Queue
        except ImportError:
            raise UserError("Ray is not installed here; on every machine of the cluster: pip install '.[cluster]'.") from None
        self.ray, self.root, self.data, self.choice = ray, root, data, choice
        try:
            _knock(address)
            with tempfile.TemporaryDirectory() as folder:  # Ray packs it while it connects
                copy_code(ROOT, Path(folder))
                code = {"working_dir": folder, "env_vars": {"LONGTAIL_COMMIT": commit()}}
                ray.init(address=address, runtime_env=code, log_to_driver=False, logging_level="error")
        except (OSError, ValueError, ray.exceptions.AuthenticationError) as error:
            if asks_for_token(error):
                raise UserError(TOKEN.format(address)) from None
            raise UserError(f"No Ray cluster answers at {address!r} ({' '.join(str(error).split())[:200]}); start one with "
                            "`ray start --head`, and on the others `ray start --address=HOST:6379`.") from None
        nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
        self.needs = {"num_gpus": 1} if any(n.get("GPU") for n in nodes) else {
            "num_cpus": min((n["CPU"] for n in nodes if n.get("CPU")), default=1)}
        kind, amount = ("GPU" if "num_gpus" in self.needs else "CPU"), next(iter(self.needs.values()))
        self.places = int(sum(n.get(kind, 0) // amount for n in nodes))
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.inbox = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self._images: dict[str, Any] = {}
        self._tasks: dict[Any, tuple[int, Workspace, Observe]] = {}

    def call(self, function: Callable, *arguments: Any) -> Any:
        """`function(device, *arguments)` on one machine of the cluster."""
        task = self.ray.remote(**self.needs, max_retries=0)(_on_device)
        return self.ray.get(task.remote(function, self.choice, *arguments))

    def describe(self) -> dict[str, Any]:
        """`place_of` a machine's device; the machines are expected to be alike."""
        return self.call(place_of)

    def begin(self, place: int, pack: Sequence[Run], work: Workspace, observe: Observe, plainer: int = 0) -> None:
        sent = {path.name: path.read_bytes() for path, state in work.states().items()
                if {m.identity for m in pack} <= set(state["identities"])}
        for start in (m.start for m in pack if m.start):
            needed = start.checkpoint if start.checkpoint.exists() else record_files(self.root)[start.identity]
            sent[str(needed.relative_to(self.root))] = needed.read_bytes()
        minutes = replace(work, deadline=time.time() + work.deadline - time.monotonic(), mirror=_nowhere)
        task = self.ray.remote(**self.needs, max_retries=0)(_train_elsewhere)
        given = (list(pack), self.root, sent, minutes, self.choice, plainer, self.inbox, place)
        self._tasks[task.remote(self._put(pack[0].spec.column.dataset), *given)] = place, work, observe

    def _put(self, dataset: str) -> Any:
        if dataset not in self._images:
            self._images[dataset] = self.ray.put(load(dataset, self.data))
        return self._images[dataset]

    def wait(self) -> tuple[int, Outcome]:
        while True:
            done, _ = self.ray.wait(list(self._tasks), timeout=POLL)
            self._read_inbox()
            if not done:
                continue
            place, *_ = self._tasks.pop(done[0])
            try:
                outcome, files = self.ray.get(done[0])
            except self.ray.exceptions.RayTaskError as error:  # outside the pack: its files, its device
                return place, Outcome("failed", str(error), plainest=False)
            except self.ray.exceptions.RayError:  # its machine or process is gone
                return place, Outcome("lost", plainest=False)
            for name, content in sorted(files.items(), key=lambda item: item[0].endswith(".json")):  # weights before records
                write_atomically(self.root / name, content)
            return place, outcome

    def _read_inbox(self) -> None:
        observers = {place: (work, observe) for place, work, observe in self._tasks.values()}
        while not self.inbox.empty():
            place, message = self.inbox.get()
            message = pickle.loads(message)
            if place in observers:
                work, observe = observers[place]
                if isinstance(message, Progress):
                    observe(message)
                else:
                    write_atomically(work.folder / "resume" / message[0], message[1])

    def close(self) -> None:
        self.ray.shutdown()


def copy_code(root: Path, to: Path) -> None:
    """Copy the code and its settings, and nothing else that a checkout may hold: images, archives, weights, environments."""
    for folder, inner, files in os.walk(root):
        unwanted = NOT_CODE | (NOT_AT_THE_TOP if Path(folder) == root else set())
        inner[:] = [name for name in inner if not name.startswith(".") and name not in unwanted
                    and not (Path(folder) / name / "pyvenv.cfg").exists()]
        for file in (Path(folder) / name for name in files if Path(name).suffix in CODE and not name.startswith(".")):
            if file.is_file() and file.stat().st_size <= LARGEST:
                (to / file.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, to / file.relative_to(root))


def asks_for_token(error: BaseException | None) -> bool:
    """Whether a cluster refused this machine, as Ray's chain of exceptions says; its last one says that nobody answers."""
    from ray.exceptions import AuthenticationError

    while error and not isinstance(error, AuthenticationError):
        error = error.__cause__ or error.__context__
    return error is not None


def _knock(address: str) -> None:
    """Ray itself waits for minutes where nobody answers."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()


def _nowhere(name: str, content: bytes) -> None:
    """Stands in for a mirror that a machine puts in for itself."""


def _on_device(function: Callable, choice: Choice, *arguments: Any) -> Any:
    return function(choose_device(*choice), *arguments)


def _train_elsewhere(images: Images, pack: list[Run], root: Path, sent: dict[str, bytes], work: Workspace, choice: Choice,
                     plainer: int, inbox: Any, place: int) -> tuple[Outcome, dict[str, bytes]]:
    """What a machine of the cluster does: train the pack in a folder of its own, and return the files it made."""
    if time.time() > work.deadline:  # it waited too long for a machine
        return Outcome("paused"), {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for name, content in sent.items():
            write_atomically(home / ("resume" if name.endswith(".pt") else "papers") / name, content)
        moved = [replace(m, folder=home / "papers" / m.folder.relative_to(root)) for m in pack]
        deadline = time.monotonic() + work.deadline - time.time()
        local = Workspace(home, work.save_seconds, deadline, mirror=partial(_send, inbox, place))
        outcome = try_pack(moved, images, choose_device(*choice), local, partial(_tell, inbox, place), plainer)
        made = [p for p in (home / "papers").rglob("*") if p.is_file() and str(p.relative_to(home / "papers")) not in sent]
        return outcome, {str(p.relative_to(home / "papers")): p.read_bytes() for p in made}


def _send(inbox: Any, place: int, name: str, content: bytes) -> None:
    """Messages are bytes to the process of the inbox, which would import torch for what it only passes on, and may die of it."""
    inbox.put((place, pickle.dumps((name, content))))


def _tell(inbox: Any, place: int, progress: Progress) -> None:
    inbox.put((place, pickle.dumps(progress)))
