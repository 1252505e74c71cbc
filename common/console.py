"""What a person sees in the terminal while and after runs train. No torch."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from common.method import Paper, Planned, make_run
from common.spec import Profile

if TYPE_CHECKING:
    from common.train.loop import Progress as Epoch


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


def print_status(console: Console, paper: Paper, profile: Profile, have: set[str], columns: Sequence[str],
                 seeds: int | None) -> None:
    """Seeds with a record, per method and column of a paper; `.` where the paper has no such cell."""
    shown = [c for c in paper.columns[profile] if not columns or c.name in columns]
    protocol, wanted = paper.protocols[profile], seeds or paper.seeds[profile]
    per_column = {c.name: {m.label: m for m in paper.methods(c, protocol)} for c in shown}
    table = Table("method", *per_column, title=f"{paper.name}, profile {profile}: seeds with a record, of {wanted}")
    for label in dict.fromkeys(label for methods in per_column.values() for label in methods):
        row = []
        for column in shown:
            method = per_column[column.name].get(label)
            keys = [make_run(column, protocol, method, s).key for s in range(wanted)] if method else []
            row.append(str(sum(k in have for k in keys)) if method else ".")
        table.add_row(label.replace("[", r"\["), *row)
    console.print(table)
