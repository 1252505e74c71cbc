"""What a person sees in the terminal while and after runs train. No torch."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from common.cost import clock
from common.plan import Run

if TYPE_CHECKING:
    from common.train.loop import Progress as Epoch

MINUTE = 60.0  # seconds between two lines about a pack where there is no terminal
HOUR = 3600.0  # the same for a campaign on a CPU, which goes on for days
BLOCK = 3  # columns side by side in a terminal of 80 characters


class Terminal(Console):
    """Where commands print. What they train and write does not end because nobody listens any more (`train | head`)."""

    def on_broken_pipe(self) -> None:
        """Go on without words; Rich's own way ends the process with exit code 1, with half of the files written."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def pack_observer(every: float = MINUTE, so_far: Callable[[], str] = lambda: ""
                  ) -> Callable[[Sequence[Run]], AbstractContextManager[Callable[["Epoch"], None]]]:
    """What tells a person about packs in training: a bar each with epoch, loss, worst and best accuracy and time left, and
    a line when it ends; where there is no terminal, also a line every so many seconds, with what is done `so_far`."""
    bars = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[numbers]}"),
                    TimeRemainingColumn(compact=True), transient=True, disable=not sys.stdout.isatty(), console=Terminal())
    return partial(_observe, bars, every, so_far)


@contextmanager
def _observe(bars: Progress, every: float, so_far: Callable[[], str], pack: Sequence[Run]
             ) -> Iterator[Callable[["Epoch"], None]]:
    title = f"{pack[0].spec.column.name}, {len(pack)} run{'s' * (len(pack) > 1)}"
    last: list[Epoch] = []
    seen: list[tuple[int, float]] = []  # epochs and time of the first and the last progress
    task = bars.add_task(title, total=pack[0].spec.protocol.epochs, numbers="")
    say = partial(bars.console.print, highlight=False, soft_wrap=True)

    def observe(epoch: "Epoch") -> None:
        last[:] = [epoch]
        seen[1:] = [(epoch.epoch, time.monotonic())]
        bars.update(task, completed=epoch.epoch, total=epoch.epochs, numbers=_numbers(epoch))

    bars.start()
    try:
        def tell(after: str) -> None:
            say(f"{title} {after}: {_numbers(last[0]) + _left(seen, last[0].epochs) if last else 'getting ready'}{so_far()}")

        with _repeating(tell, every, bars.disable):
            yield observe
    finally:
        bars.remove_task(task)
        if not bars.task_ids:
            bars.stop()
        if last:
            say(f"{title}: {_numbers(last[-1])}")


@contextmanager
def _repeating(say: Callable[[str], None], every: float, wanted: bool) -> Iterator[None]:
    """Call `say` every so many seconds from a thread of its own, so that a compilation is not silent either."""
    over = threading.Event()

    def repeat() -> None:
        begun = time.monotonic()
        while not over.wait(every):
            say(f"after {clock(time.monotonic() - begun)}")

    thread = threading.Thread(target=repeat, daemon=True)
    if wanted:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if wanted:
            thread.join()


def _left(seen: Sequence[tuple[int, float]], epochs: int) -> str:
    """How long the pack will still take, by the epochs between the first and the last progress."""
    (first, begun), (last, now) = seen[0], seen[-1]
    return f", about {clock((now - begun) / (last - first) * (epochs - last))} left" if last > first else ""


def _numbers(epoch: "Epoch") -> str:
    return f"epoch {epoch.epoch}/{epoch.epochs}, loss {epoch.loss:.3f}, accuracy {epoch.worst:.1f} to {epoch.best:.1f} %"


def print_status(console: Console, title: str, planned: Sequence[Run], have: set[str], variants: bool) -> None:
    """Seeds with a record, per method and column; `.` where the paper has no such cell. Variants are summed up or a row each."""
    columns = list(dict.fromkeys(m.spec.column.name for m in planned))
    seeds = len({m.spec.seed for m in planned})
    by_method: dict[str, dict[str, list[bool]]] = {}
    for item in planned:
        if variants or not item.method.variant:
            cell = by_method.setdefault(item.method.label, {}).setdefault(item.spec.column.name, [])
            cell.append(item.identity in have)
    console.print(f"[bold]{title}[/]: seeds with a record, of {seeds}")
    for shown in (columns[i:i + BLOCK] for i in range(0, len(columns), BLOCK)):
        table = Table("method", *shown)
        for label, cells in by_method.items():
            if any(c in cells for c in shown):
                table.add_row(escape(label), *(str(sum(cells[c])) if c in cells else "." for c in shown))
        console.print(table)
    rest = [m for m in planned if m.method.variant]
    if rest and not variants:
        done = sum(m.identity in have for m in rest)
        console.print(f"And {done} of {len(rest)} runs of grids and switches (--variants shows them).")


def print_count(console: Console, title: str, planned: Sequence[Run], have: set[str], variants: bool) -> None:
    """`print_status` on one line."""
    rows = [m for m in planned if variants or not m.method.variant]
    rest = len(planned) - len(rows)
    done, columns = sum(m.identity in have for m in rows), len({m.spec.column for m in rows})
    more = f", and {sum(m.identity in have for m in planned) - done} of {rest} of grids and switches" if rest else ""
    console.print(f"[bold]{title}[/]: {done} of {len(rows)} runs on {columns} column{'s' * (columns != 1)} have a record{more}; "
                  "--all shows them")
