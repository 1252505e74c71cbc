"""Records that other code than today's has made: showing them, accepting them, training their runs again. No torch."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.errors import UserError
from common.methods.digest import ENGINE
from common.paper import Paper
from common.plan import Run
from common.store import RECORD, files_by_key, record_files


def stale_runs(planned: Sequence[Run], root: Path) -> list[tuple[Run, Path]]:
    """The planned runs that have a record, but not of today's code, with its file."""
    have, files = record_files(root), files_by_key(root)
    return [(item, files[item.spec.key]) for item in planned if item.spec.key in files and item.identity not in have]


def print_stale_count(console: Console, planned: Sequence[Run], root: Path) -> None:
    """How many of the runs have a record of other code; nothing where none has."""
    if stale := stale_runs(planned, root):
        console.print(f"{len(stale)} more have records of other code, which count nowhere: `status --stale` shows them.")


def print_stale(console: Console, planned: Sequence[Run], root: Path) -> None:
    """The digests of stale records and of today's code, method by method: what `accept` takes."""
    rows: dict[tuple[str, str, str, str], int] = {}
    for item, path in stale_runs(planned, root):
        _, _, digest, engine = RECORD.search(path.name).groups()
        place = item.spec.column.name, item.method.label, f"{digest} (engine {engine})", f"{item.digest} (engine {ENGINE})"
        rows[place] = rows.get(place, 0) + 1
    if not rows:
        console.print("No record is stale.")
        return
    table = Table("column", "method", "runs", "digest of the records", "digest of today's code")
    for (column, label, old, now), runs in rows.items():
        table.add_row(column, escape(label), str(runs), old, now)
    console.print(table)
    console.print("`train` trains them again. Where a change alters no number: `accept OLD NEW --because \"...\"`.")


def retire(planned: Sequence[Run], root: Path, work: Path) -> int:
    """Move the records of the runs out of the store, so that they count as missing; returns how many. They are kept in
    `work`, the folder of unfinished work, until somebody deletes them."""
    files, moved = files_by_key(root), 0
    for path in {files[item.spec.key] for item in planned if item.spec.key in files}:
        kept = work / "retired" / path.relative_to(root)
        kept.parent.mkdir(parents=True, exist_ok=True)
        path.replace(kept)
        moved += 1
    return moved


def check_no_newer(root: Path) -> None:
    """No record is of a newer engine than this checkout's: training would put an older one in its place. Else a UserError."""
    for path in files_by_key(root).values():
        if int(RECORD.search(path.name)[4]) > ENGINE:
            raise UserError(f"{path} was made by a newer version (engine {RECORD.search(path.name)[4]}; here it is {ENGINE}): "
                            "update this checkout, for example with git pull, or move the record away.")


def check_reportable(papers: Sequence[Paper]) -> None:
    """What is trained can be reported: the printed numbers, the claims and the marked places of the READMEs are as they must
    be. Else a UserError, before anything is trained."""
    from common.report.claims import load_claims
    from common.report.published import published
    from common.report.readme import read_marked

    check_no_newer(papers[0].folder.parent)
    for paper in papers:
        published(paper)
        if (paper.folder / "claims.yaml").exists():
            load_claims(paper)
        if (paper.folder / "README.md").exists():
            read_marked(paper.folder / "README.md", "results")
