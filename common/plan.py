"""What is to be trained: a paper's runs, those that lack a record, and which of them a command is about. No torch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from rich.console import Console

from common.data.large_sets import LARGE
from common.data.parcel import Need, served_columns
from common.data.sets import SETS
from common.errors import UserError, meant
from common.methods.digest import ENGINE
from common.methods.method import Method, check_names, digest_of, run_spec
from common.paper import Paper
from common.spec import ProfileName, RunSpec
from common.store import has_diverged, identity


@dataclass(frozen=True)
class Run:
    """A run that a paper wants, with the method object that trains it and the place where its record goes."""

    spec: RunSpec
    method: Method
    folder: Path

    @property
    def label(self) -> str:
        return f"{self.spec.column.name} {self.method.label} seed {self.spec.seed}"

    @cached_property
    def digest(self) -> str:
        """What the method computes today (`common.methods.digest.method_digest`)."""
        return digest_of(self.method, self.spec.column)

    @property
    def identity(self) -> str:
        """What its record must bear to count: the key, the digest of today, and the engine of today."""
        return identity(self.spec.key, self.digest, ENGINE)

    @property
    def root(self) -> Path:
        """The folder of all papers, under which records are looked up. `folder` is <paper>/results/<profile>/<column> in it."""
        return self.folder.parents[3]

    @property
    def paper(self) -> str:
        """The name of the paper that plans it."""
        return self.folder.parents[2].name

    @property
    def profile(self) -> str:
        return self.folder.parent.name

    @property
    def checkpoint(self) -> Path:
        """Where the weights of the finished run are (`checkpoint_path`): in the paper that trained it, or else in this one."""
        mine = checkpoint_path(self.folder, self.spec.key)
        return mine if mine.exists() else min(self.root.glob(f"*/{mine.relative_to(mine.parents[3])}"), default=mine)

    @cached_property
    def start(self) -> "Run | None":
        """The run whose backbone this one starts with."""
        first = self.method.first_stage
        if first is None:
            return None
        return Run(run_spec(self.spec.column, first.protocol or self.spec.protocol, first, self.spec.seed), first, self.folder)

    def under_seed(self, seed: int) -> "Run":
        """The run, and those that it starts from, under another seed; what a seed does not change is not described anew."""
        other = replace(self, spec=replace(self.spec, seed=seed))
        vars(other)["start"] = self.start and self.start.under_seed(seed)
        return other

    @cached_property
    def chain(self) -> list["Run"]:
        """The run, and before it those that it starts from, the first stage first."""
        return [*(self.start.chain if self.start else ()), self]


def checkpoint_path(folder: Path, key: str) -> Path:
    """The file of a run's weights. folder: that of its record, <paper>/results/<profile>/<column>."""
    return folder.parents[2] / "checkpoints" / folder.parent.name / folder.name / f"{key}.safetensors"


def missing_runs(planned: Sequence[Run], have: Mapping[str, Path]) -> list[Run]:
    """The planned runs that have no record, each after the run that it starts from, where its weights are not here.

    have: identity -> file of the records, so that a run whose code has changed counts as missing. A start that diverged has no
    weights and is not tried again.
    """
    needed: dict[str, Run] = {}
    for item in planned:
        if item.identity in have:
            continue
        chain = [item]
        while (start := chain[-1].start) and not _can_start(start, have):
            chain.append(start)
        for link in reversed(chain):
            needed.setdefault(link.spec.key, link)
    return list(needed.values())


def _can_start(start: Run, have: Mapping[str, Path]) -> bool:
    """Whether the weights that its record speaks of are here, or will never be. Weights without a record of today's code are
    nobody's."""
    return start.identity in have and (start.checkpoint.exists() or has_diverged(start.identity, have))


def merged(planned: Iterable[Run]) -> dict[str, Run]:
    """Key -> run, each once, in order: the first one of a key, or the first that keeps features for a figure."""
    runs: dict[str, Run] = {}
    for item in planned:
        if item.spec.key not in runs or (item.method.keep_features and not runs[item.spec.key].method.keep_features):
            runs[item.spec.key] = item
    return runs


def plan(paper: Paper, profile: ProfileName, *, columns: tuple[str, ...] = (), methods: tuple[str, ...] = (),
         seeds: int | None = None, variants: bool = True) -> list[Run]:
    """Every run that the paper's tables and figures need, each key once, in the order of its columns, methods and seeds; of
    the large columns and of those of other images than the authors' only those that are named.

    columns, methods: keep these names only (a column by its name, or all of a dataset by that; a method by `name`, with all
    its readings and (unless `variants` is false) variants, or by its whole label); unknown ones are refused.
    """
    known = {c.name: c for c in paper.columns[profile]}
    if strange := [c for c in columns if c not in known and c not in {k.dataset for k in known.values()}]:
        near = meant(strange[0], known)
        raise UserError(f"{paper.name} has no column {strange[0]!r} in profile {profile!r}{near}; it has: {', '.join(known)}.")
    named = [name for name, c in known.items() if {name, c.dataset} & set(columns)]
    runs, seen = [], set()
    for name in named or [name for name, c in known.items() if name not in paper.large and not c.is_drawn]:
        for method in paper.rows(profile, known[name]):
            seen |= {method.name, method.label}
            names = {method.label} if method.variant and not variants else {method.name, method.label}
            if not methods or names & set(methods):
                first = Run(paper.spec(profile, known[name], method, 0), method, paper.results(profile) / name)
                runs += map(first.under_seed, range(paper.seeds[profile] if seeds is None else seeds))
    check_names({id(item.method): item.method for item in runs}.values())
    if strange := [m for m in methods if m not in seen]:
        names = ", ".join(sorted(n for n in seen if "@" not in n))
        raise UserError(f"{paper.name} has no method {strange[0]!r}{meant(strange[0], seen)}; it has: {names} (or a "
                        "whole label, as `status --variants` shows it: name@reading, name[variant]@reading).")
    return list(merged(runs).values())



def has_data(dataset: str, data: Path) -> bool:
    """Whether `prepare` has made the dataset."""
    return (data / f"{dataset}.npz").exists()


def how_to_get(dataset: str) -> str:
    """The command that makes the dataset."""
    if dataset in ("digits", "miniature"):
        return f"make data-{dataset}"
    return f"make data-{dataset} FROM=FOLDER" + ("" if dataset in LARGE else " (or without FROM to download)")


def resolve_profile(papers: Sequence[Paper], asked: ProfileName | None, columns: Sequence[str], data: Path, console: Console
                    ) -> ProfileName:
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
    profile: ProfileName = "paper" if gpu and here else "quick"
    console.print(f"Profile [bold]{profile}[/]: {why}. (--profile, or PROFILE= with make, overrides.)")
    return profile


def plan_all(papers: Sequence[Paper], profile: ProfileName, columns: Sequence[str], methods: Sequence[str], seeds: int | None,
             variants: bool = True) -> list[Run]:
    """The runs of all papers that the options select, each key once; refused where no paper has any. variants: whether a method
    that is named brings its variants with it (`common.plan.plan`)."""
    runs, refusals = [], []
    for paper in papers:
        try:
            runs += plan(paper, profile, columns=tuple(columns), methods=tuple(methods), seeds=seeds, variants=variants)
        except UserError as refusal:
            refusals.append(refusal)
    if len(refusals) == len(papers):
        raise refusals[0]
    if not runs and methods and not variants:
        raise UserError(f"{' and '.join(methods)} has no plain row in these columns, only settings and switches: add --variants, "
                        "or name one of them (`status --variants` shows them).")
    check_names({id(item.method): item.method for item in runs}.values())  # between the papers too
    return list(merged(runs).values())


def with_data(runs: Sequence[Run], data: Path, console: Console, named: bool = False) -> list[Run]:
    """The runs whose images are here; a line is printed on those left out. A UserError if none remains, or if images of columns
    that the user has `named` are missing."""
    runs = _served(runs, data, console)
    absent = sorted({n for n in {m.spec.column.dataset for m in runs} if not has_data(n, data)})
    here = [m for m in runs if m.spec.column.dataset not in absent]
    if absent and (named or not here):
        raise UserError(f"data/{absent[0]}.npz is not here: {how_to_get(absent[0])}.")
    for name in absent:
        left = sum(m.spec.column.dataset == name for m in runs)
        console.print(f"[yellow]Left out[/]: {left} runs, as data/{name}.npz is not here: {how_to_get(name)}.")
    return here


def _served(runs: Sequence[Run], data: Path, console: Console) -> list[Run]:
    """The runs without those whose set came in a parcel that does not hold their column."""
    served = {name: served_columns(name, data) for name in {m.spec.column.dataset for m in runs}}
    here = [m for m in runs if (names := served[m.spec.column.dataset]) is None or replace(m.spec.column, backbone="") in names]
    left = sorted({m.spec.column.name for m in runs} - {m.spec.column.name for m in here})
    if left and not here:
        raise UserError(f"The parcel in data/ does not hold the images of {left[0]}; pack that column, too.")
    if left:
        console.print(f"[yellow]Left out[/]: {len(runs) - len(here)} runs on {len(left)} columns whose images are in no parcel "
                      f"here, for example {left[0]}.")
    return here


def all_planned(papers: Sequence[Paper], seeds: int | None = None) -> Iterator[Run]:
    """Every run of all papers and profiles, those of large columns too, each after the runs that it starts from."""
    for paper in papers:
        for profile, columns in paper.columns.items():
            names = tuple(column.name for column in columns)  # the large ones are planned where they are named
            for item in plan(paper, profile, columns=names, seeds=seeds):
                yield from item.chain


def needed_images(papers: Sequence[Paper], dataset: str, imbalance: Sequence[str], columns: Sequence[str]) -> list[Need]:
    """What the papers' runs need of a dataset, each set of images once: of the columns of these kinds, if any are given, and of
    these names, else of all that keep the authors' images. Nothing is a UserError."""
    needs: dict[Need, Need] = {}
    for item in all_planned(papers, 1):
        column = item.spec.column
        if column.dataset == dataset and (not imbalance or column.imbalance in imbalance) and (
                column.name in columns if columns else not column.is_drawn):
            need = Need(column, item.method.meta.held_out)
            needs.setdefault(need._replace(column=replace(column, backbone="")), need)
    if not needs:
        raise UserError(f"No paper trains on such a column of {dataset}.")
    return list(needs.values())
