"""`--tensorboard DIR`: what the log has of every run, as files that TensorBoard shows while they train.

TensorBoard is an optional extra. The log stays the only place to which training writes; this follows it.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.plan import Run

if TYPE_CHECKING:
    from common.train.loop import Progress

Watch = Callable[[Sequence[Run]], AbstractContextManager[Callable[["Progress"], None]]]


class TensorBoard:
    """Event files of the planned runs under `folder`, a folder a run: `loss/train` and `accuracy/test` (percent) by epoch, which
    is counted from 1.

    log: the file to which training appends a line after every epoch. What it has of these runs already is written too. A
    UserError where TensorBoard is not installed.
    """

    def __init__(self, folder: Path, log: Path, planned: Sequence[Run]):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--tensorboard needs TensorBoard, which is not here: pip install '.[tensorboard]'.") from None
        self._open: Callable[..., Any] = SummaryWriter
        self._log, self._read = log, 0  # bytes of the log
        self._folders = {link.spec.key: folder / _name(link) for item in planned for link in item.chain}
        self._writers: dict[str, Any] = {}
        self._last: dict[str, int] = {}  # epoch of each run

    def update(self) -> None:
        """Write what the log has that is not written yet. A line that is only half there waits for the next time."""
        touched = set()
        for event in self._news():
            for key, (loss, accuracy) in event.get("loss_and_accuracy", {}).items():
                if key in self._folders:
                    self._add(key, event["epoch"], event["time"], loss, accuracy)
                    touched.add(key)
        for key in touched:
            self._writers[key].flush()

    def _news(self) -> Iterator[dict[str, Any]]:
        if not self._log.is_file():
            return
        with open(self._log, "rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._read += len(line)
                yield json.loads(line)

    def _add(self, key: str, epoch: int, at: float, loss: float | None, accuracy: float) -> None:
        """A run that went on from an earlier state, or begins anew, takes back what its later epochs had."""
        if key not in self._writers:
            for old in self._folders[key].glob("events.out.tfevents.*"):  # of another process, which the log has, too
                old.unlink()
            self._writers[key] = self._open(str(self._folders[key]))
        elif epoch <= self._last[key]:
            self._writers[key].close()
            self._writers[key] = self._open(str(self._folders[key]), purge_step=epoch)
        self._last[key] = epoch
        if loss is not None:
            self._writers[key].add_scalar("loss/train", loss, epoch, at)
        self._writers[key].add_scalar("accuracy/test", accuracy, epoch, at)


def _name(item: Run) -> str:
    """The folder of a run, which is what TensorBoard calls it."""
    method = re.sub(r"[^A-Za-z0-9.@]+", "-", item.method.label).strip("-")
    return f"{item.spec.column.name}/{method}-s{item.spec.seed}-{item.spec.key[:8]}"


def observer_of(folder: Path | None, log: Path, planned: Sequence[Run], watch: Watch) -> Watch:
    """`watch`, and where there is a folder for it TensorBoard beside it, which first gets what the log has already."""
    if not folder:
        return watch
    board = TensorBoard(folder, log, planned)
    board.update()
    return with_tensorboard(watch, board)


def with_tensorboard(watch: Watch, board: TensorBoard) -> Watch:
    """An observer of packs that also lets the board follow the log, up to the pack's end."""
    @contextmanager
    def watching(pack: Sequence[Run]) -> Iterator[Callable[["Progress"], None]]:
        with watch(pack) as observe:
            def both(epoch: "Progress") -> None:
                observe(epoch)
                board.update()

            try:
                yield both
            finally:
                board.update()

    return watching
