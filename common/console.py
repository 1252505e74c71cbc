"""What a person sees in the terminal while and after runs train. No torch."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from common.method import Planned

if TYPE_CHECKING:
    from common.train.loop import Progress as Epoch

BLOCK = 3  # columns side by side in a terminal of 80 characters


@contextmanager
def observe_pack(pack: Sequence[Planned]) -> Iterator[Callable[["Epoch"], None]]:
    """One line a pack: epoch, loss, best and worst accuracy of its runs, time left. Quiet where there is no terminal."""
    title = f"{pack[0].run.column.name}, {len(pack)} runs"
    last: list[Epoch] = []
    if not sys.stdout.isatty():
        yield last.append
    else:
        bar = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[numbers]}"),
                       TimeRemainingColumn(compact=True), transient=True)
        with bar:
            task = bar.add_task(title, total=pack[0].run.protocol.epochs, numbers="")

            def observe(epoch: "Epoch") -> None:
                last.append(epoch)
                bar.update(task, completed=epoch.epoch, total=epoch.epochs, numbers=_numbers(epoch))

            yield observe
    if last:
        print(f"{title}: {_numbers(last[-1])}", flush=True)


def _numbers(epoch: "Epoch") -> str:
    return f"epoch {epoch.epoch}/{epoch.epochs}, loss {epoch.loss:.3f}, accuracy {epoch.worst:.1f} to {epoch.best:.1f} %"


def print_status(console: Console, title: str, planned: Sequence[Planned], have: set[str], variants: bool) -> None:
    """Seeds with a record, per method and column; `.` where the paper has no such cell. Variants are summed up or a row each."""
    columns = list(dict.fromkeys(m.run.column.name for m in planned))
    seeds = len({m.run.seed for m in planned})
    found: dict[str, dict[str, list[bool]]] = {}
    for item in planned:
        if variants or not item.method.variant:
            cell = found.setdefault(item.method.label, {}).setdefault(item.run.column.name, [])
            cell.append(item.run.key in have)
    console.print(f"[bold]{title}[/]: seeds with a record, of {seeds}")
    for shown in (columns[i:i + BLOCK] for i in range(0, len(columns), BLOCK)):
        table = Table("method", *shown)
        for label, cells in found.items():
            if any(c in cells for c in shown):
                table.add_row(escape(label), *(str(sum(cells[c])) if c in cells else "." for c in shown))
        console.print(table)
    rest = [m for m in planned if m.method.variant]
    if rest and not variants:
        done = sum(m.run.key in have for m in rest)
        console.print(f"And {done} of {len(rest)} runs of grids and switches (--variants shows them).")
