"""Which runs a command is about: the profile, what its options name, and what the data that are here allow. No torch."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from common.data.large_sets import LARGE
from common.data.parcel import served_columns
from common.data.sets import SETS
from common.data.sources import prepare
from common.errors import UserError
from common.large.prepare import prepare_large
from common.method import Paper, Planned, check_names, merged, plan
from common.spec import Profile


def has_data(dataset: str, data: Path) -> bool:
    """Whether `prepare` has made the dataset."""
    return (data / f"{dataset}.npz").exists()


def how_to_get(dataset: str) -> str:
    """The command that makes the dataset."""
    if dataset in ("digits", "miniature"):
        return f"make data-{dataset}"
    return f"make data-{dataset} FROM=FOLDER" + ("" if dataset in LARGE else " (or without FROM to download)")


def resolve_profile(papers: Sequence[Paper], asked: Profile | None, columns: Sequence[str], data: Path, console: Console
                    ) -> Profile:
    """The profile asked for; else that of the named columns; else paper where a GPU and any of its data are, and says why."""
    if asked:
        return asked
    owners = {profile for p in papers for profile, known in p.columns.items()
              for c in known if {c.name, c.dataset} & set(columns)}
    if owners:
        return "quick" if owners == {"quick"} else "paper"
    needed = sorted({c.dataset for p in papers for c in p.columns["paper"]} & set(SETS))
    here = [name for name in needed if has_data(name, data)]
    gpu = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()  # without importing torch
    why = f"a GPU and data/{here[0]}.npz are here" if gpu and here else " and ".join(
        ([] if gpu else ["no GPU"]) + ([] if here else [f"no data/{needed[0]}.npz"]))
    profile: Profile = "paper" if gpu and here else "quick"
    console.print(f"Profile [bold]{profile}[/]: {why}. (--profile, or PROFILE= with make, overrides.)")
    return profile


def plan_all(papers: Sequence[Paper], profile: Profile, columns: Sequence[str], methods: Sequence[str], seeds: int | None
             ) -> list[Planned]:
    """The runs of all papers that the options select, each key once; refused where no paper has any."""
    found, refusals = [], []
    for paper in papers:
        try:
            found += plan(paper, profile, columns=tuple(columns), methods=tuple(methods), seeds=seeds)
        except UserError as refusal:
            refusals.append(refusal)
    if len(refusals) == len(papers):
        raise refusals[0]
    check_names({id(item.method): item.method for item in found}.values())  # between the papers too
    return list(merged(found).values())


def with_data(runs: Sequence[Planned], data: Path, console: Console) -> list[Planned]:
    """The runs whose images are here; what is left out is said. None at all is a UserError."""
    runs = _served(runs, data, console)
    absent = sorted({n for n in {m.run.column.dataset for m in runs} if not has_data(n, data)})
    here = [m for m in runs if m.run.column.dataset not in absent]
    if runs and not here:
        raise UserError(f"data/{absent[0]}.npz is not here: {how_to_get(absent[0])}.")
    for name in absent:
        left = sum(m.run.column.dataset == name for m in runs)
        console.print(f"[yellow]Left out[/]: {left} runs, as data/{name}.npz is not here: {how_to_get(name)}.")
    return here


def _served(runs: Sequence[Planned], data: Path, console: Console) -> list[Planned]:
    """The runs without those whose set came in a parcel that does not hold their column."""
    served = {name: served_columns(name, data) for name in {m.run.column.dataset for m in runs}}
    here = [m for m in runs if (names := served[m.run.column.dataset]) is None or replace(m.run.column, backbone="") in names]
    left = sorted({m.run.column.name for m in runs} - {m.run.column.name for m in here})
    if left and not here:
        raise UserError(f"The parcel in data/ does not hold the images of {left[0]}; pack that column, too.")
    if left:
        console.print(f"[yellow]Left out[/]: {len(runs) - len(here)} runs on {len(left)} columns whose images are in no parcel "
                      f"here, for example {left[0]}.")
    return here


def all_planned(papers: Sequence[Paper], seeds: int | None = None) -> Iterator[Planned]:
    """Every run of all papers and profiles, those of large columns too, each after the runs that it starts from."""
    for paper in papers:
        for profile, columns in paper.columns.items():
            names = tuple(column.name for column in columns)  # the large ones are planned where they are named
            for item in plan(paper, profile, columns=names, seeds=seeds):
                yield from item.chain


def prepare_all(names: Sequence[str], data: Path, console: Console) -> None:
    """Prepare what can be prepared; a dataset that cannot be had keeps only its own columns from being trained."""
    refusals = []
    for name in names:
        try:
            prepare_large(name, data) if name in LARGE else prepare(name, data, None)
        except UserError as refusal:
            refusals.append(refusal)
            console.print(f"[yellow]{escape(str(refusal))}[/]")
    if refusals and len(refusals) == len(names):
        raise refusals[0]
