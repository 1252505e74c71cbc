"""A shim that counts what a process does to the files of a folder, and kills it with SIGKILL at a given one.

Counted are, in their order: opening a file to write, writing to one of `write_atomically` (killed with half of it on the disk),
fsync, rename, removal and the making of folders.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVENTS = {"os.rename": "rename", "os.remove": "remove", "os.mkdir": "mkdir", "os.rmdir": "remove"}
WRITING = os.O_WRONLY | os.O_RDWR


class Shim:
    """at: the number of the operation at which the process dies, counted from 0 (-1: never). log: file that gets a line for
    every operation, where it is given."""

    def __init__(self, folder: Path, at: int = -1, log: Path | None = None):
        self.folder, self.at, self.count = str(folder), at, 0
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if log else -1
        self.owner = 0

    def install(self) -> None:
        """In the process that is to be watched; those that it forks later are not."""
        self.owner = os.getpid()
        sys.addaudithook(self.on_event)
        fsync, fdopen = os.fsync, os.fdopen

        def counted_fsync(file: int) -> None:
            self.step("fsync")
            fsync(file)

        def counted_fdopen(file: int, mode: str = "r", *rest: Any, **more: Any) -> Any:
            opened = fdopen(file, mode, *rest, **more)
            return Written(opened, self.step) if mode == "wb" else opened

        os.fsync, os.fdopen = counted_fsync, counted_fdopen

    def on_event(self, event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str) and arguments[2] and arguments[2] & WRITING:
            self.seen("open", arguments[0])
        elif event in EVENTS:
            self.seen(EVENTS[event], os.fspath(arguments[0]))

    def seen(self, kind: str, path: Any) -> None:
        if isinstance(path, str) and (path.startswith(self.folder) or not path.startswith("/")):
            self.step(kind)

    def step(self, kind: str, half: Callable[[], None] = lambda: None) -> None:
        if os.getpid() != self.owner:
            return
        if self.log >= 0:
            os.write(self.log, f"{kind}\n".encode())
        if self.count == self.at:
            half()
            os.kill(self.owner, signal.SIGKILL)
        self.count += 1


class Written:
    """A file whose writes are counted; the last one may get half-way only."""

    def __init__(self, file: Any, step: Callable[..., None]):
        self._file, self._step = file, step

    def write(self, content: Any) -> int:
        self._step("write", lambda: self._half(content))
        return self._file.write(content)

    def _half(self, content: Any) -> None:
        self._file.write(bytes(content)[:len(bytes(content)) // 2])
        self._file.flush()

    def __enter__(self) -> "Written":
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
