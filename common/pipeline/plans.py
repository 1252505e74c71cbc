"""What DVC follows in the place of code and records: the plan of a column, and the summary of its runs. No torch.

A plan lists the rows of a column with key, digest and engine, so it changes with every equation, number or dataset that the
runs depend on, and with nothing else; a summary lists the runs with their results and the digests of their records. Those of the
published protocol are kept in git, and `dvc.lock` beside a paper names both for every column whose runs are all here, wherever
they were trained: then `dvc status` in a fresh clone says what is made and what is not.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.methods.digest import ENGINE
from common.paper import Paper
from common.plan import Run, plan
from common.spec import Column, ProfileName
from common.store import load_records, record_files, rows_as_csv, write_atomically

LOCK = "dvc.lock"
TRAIN = "train"  # the stages of a paper's own dvc.yaml that this writes into its lock


def place(paper: Paper, kind: str, profile: ProfileName, column: str) -> Path:
    """<paper>/<kind>/<profile>/<column>.csv: kind is "plans" or "summaries"."""
    return paper.folder / kind / profile / f"{column}.csv"


def path_in_repository(path: Path, paper: Paper) -> str:
    return path.relative_to(paper.folder.parents[1]).as_posix()


def train_command(paper: Paper, profile: ProfileName, column: str) -> str:
    """What a stage of DVC runs. column: its name, or how DVC spells it in a loop."""
    summary = path_in_repository(place(paper, "summaries", profile, column), paper)
    return (f"python -m papers.{paper.name}.replicate train --profile {profile} --column {column} --prepare "
            f"--summary {summary}")


def followed(paper: Paper, profile: ProfileName) -> list[Column]:
    """The columns that are the paper's: further draws of their images are a campaign's."""
    return [column for column in paper.columns[profile] if not column.is_drawn]


def write_plans(paper: Paper, profile: ProfileName) -> None:
    """Write the plan of every column, and remove those of columns that are no more."""
    names = [column.name for column in followed(paper, profile)]
    for name in names:
        _write_if_new(place(paper, "plans", profile, name), plan_bytes(plan(paper, profile, columns=(name,))))
    for file in place(paper, "plans", profile, "").parent.glob("*.csv"):
        if file.stem not in names:
            file.unlink()


def plan_bytes(planned: Sequence[Run]) -> bytes:
    """One line a row: its label, how many seeds, and the identity of its first run, which decides those of the others."""
    rows: dict[str, list[Run]] = {}
    for item in planned:
        rows.setdefault(item.method.label, []).append(item)
    first = [(label, len(items), items[0].spec.key, items[0].digest, ENGINE) for label, items in rows.items()]
    return rows_as_csv(("row", "seeds", "key", "digest", "engine"), first)


def write_summary(path: Path, planned: Sequence[Run]) -> None:
    """One line a run, from the records, which must all be here."""
    records = load_records(planned[0].root, [item.spec.key for item in planned])
    lines = []
    for item in planned:
        record, accuracy = records[item.spec.key], records[item.spec.key]["accuracy"]
        lines.append((item.label, item.spec.seed, item.spec.key, record["status"], accuracy["last"], accuracy["best"],
                      record["digest"]))
    _write_if_new(path, rows_as_csv(("run", "seed", "key", "status", "last", "best", "digest"), lines))


def follow(paper: Paper) -> str:
    """Bring up to date what git keeps of the published protocol for DVC: plans, and of complete columns summaries and lock.
    Returns a sentence on how many are complete."""
    write_plans(paper, "paper")
    made, columns = write_made(paper), [c for c in followed(paper, "paper") if c.name not in paper.large]
    return f"{paper.name}: {len(made)} of {len(columns)} published columns have all their runs."


def write_made(paper: Paper) -> list[str]:
    """Summaries and lock of the published protocol; returns the columns whose runs are all here. Entries of other stages in the
    lock stay as they are."""
    have, made = record_files(paper.folder.parent), {}
    for column in followed(paper, "paper"):
        if column.name in paper.large:  # their stages are frozen, and have no outputs
            continue
        planned, summary = plan(paper, "paper", columns=(column.name,)), place(paper, "summaries", "paper", column.name)
        if all(item.identity in have for item in planned):
            write_summary(summary, planned)
            made[column.name] = lock_entry(paper, column.name)
        else:
            summary.unlink(missing_ok=True)
    lock = paper.folder / LOCK
    stages = (yaml.safe_load(lock.read_bytes()) or {}).get("stages") or {} if lock.exists() else {}
    others = {name: entry for name, entry in stages.items() if not name.startswith(f"{TRAIN}@")}
    stages = {f"{TRAIN}@{name}": entry for name, entry in made.items()} | others
    text = yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False, width=1000, allow_unicode=True)
    _write_if_new(lock, text.encode())
    return list(made)


def lock_entry(paper: Paper, column: str) -> dict[str, Any]:
    """What DVC would have written, had it trained the column here."""
    return {
        "cmd": train_command(paper, "paper", column),
        "deps": [_locked(place(paper, "plans", "paper", column), paper)],
        "outs": [_locked(place(paper, "summaries", "paper", column), paper)],
    }


def _locked(path: Path, paper: Paper) -> Mapping[str, Any]:
    content = path.read_bytes()
    return {"path": path_in_repository(path, paper), "hash": "md5",
            "md5": hashlib.md5(content, usedforsecurity=False).hexdigest(), "size": len(content)}


def _write_if_new(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content)
