"""A paper: a folder of methods, columns, tables, figures and claims, as plain data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import line_of, unknown
from common.methods.method import Method, check_column, run_spec
from common.methods.two_stage import with_second_settings
from common.spec import Column, Entries, LargeColumns, ProfileName, Protocol, RunSpec

NO_COLUMNS = LargeColumns({}, {})


@dataclass(frozen=True)
class Profile:
    """A profile in a paper's params.yaml. seeds: how many of each run. protocols: by reading, and by the other names that the
    paper's `methods` may want. columns: by name. large: those that are trained under torchrun, with settings of their own."""

    seeds: int
    protocols: dict[str, Protocol]
    columns: dict[str, Column]
    large: LargeColumns = NO_COLUMNS


@dataclass(frozen=True)
class Table:
    """A table of the paper; its cells are the rows of published.csv with this number."""

    number: str
    caption: str


@dataclass(frozen=True)
class Figure:
    """A figure of the paper. draw(results) -> common.report.figures.Drawing, or a sentence on what is missing."""

    number: str
    caption: str
    draw: Callable


@dataclass(frozen=True)
class Paper:
    """One paper. methods(column, protocols) lists everything that is trained on a column, rows and grids alike.

    protocols: of each profile, by reading ("written", "released"), and by other names that `methods` may want; a method
    without a protocol of its own takes that of its reading.
    own, main: the names of the paper's own methods, and the numbers of the tables that its claim rests on: with
    cross-entropy, they are trained first.
    stand_ins: for a column of the quick profile, the published column in whose place it is shown.
    notes: of a column, what every number of ours there must be read with.
    not_comparable: why numbers of ours have another setting than the printed ones' source, so that their difference is shown
    without a verdict: of a whole column by its name, of a method there by "column/name" (all its rows) or "column/label".
    large: of each column that is trained under torchrun, its own `protocols`; such a column is planned only where it is named.
    """

    name: str
    title: str
    folder: Path
    columns: Mapping[ProfileName, tuple[Column, ...]]
    protocols: Mapping[ProfileName, Mapping[str, Protocol]]
    seeds: Mapping[ProfileName, int]
    methods: Callable[[Column, Mapping[str, Protocol]], tuple[Method, ...]]
    own: tuple[str, ...] = ()
    main: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    not_comparable: Mapping[str, str] = field(default_factory=dict)
    large: Mapping[str, Mapping[str, Protocol]] = field(default_factory=dict)

    def __post_init__(self):
        for column in (c for columns in self.columns.values() for c in columns):
            check_column(column, self.folder / "params.yaml")

    def results(self, profile: ProfileName) -> Path:
        return self.folder / "results" / profile

    def settings(self, profile: ProfileName, column: Column) -> Mapping[str, Protocol]:
        """The settings of a column by reading, and by the other names that `methods` wants."""
        protocols = self.large.get(column.name, self.protocols[profile])
        return Entries(protocols, f"{self.folder / 'params.yaml'}: protocols of {column.name}")

    def rows(self, profile: ProfileName, column: Column) -> tuple[Method, ...]:
        """Everything that is trained on a column."""
        return self.methods(column, self.settings(profile, column))

    def spec(self, profile: ProfileName, column: Column, method: Method, seed: int) -> RunSpec:
        settings = self.settings(profile, column)
        if not method.protocol and method.reading not in settings:
            where = line_of(self.folder / "replicate.py", f'"{method.name}"', method.reading)
            raise unknown("reading", method.reading, settings, f" of row {method.label} ({where}; its protocol in params.yaml)")
        return run_spec(column, method.protocol or settings[method.reading], method, seed)


def load_paper(folder: Path, params: Any, **rest: Any) -> Paper:
    """The paper in a folder of its name. params: what its params.yaml holds, with a `Profile` each in `paper` and `quick`, and
    `stand_ins`. rest: the other fields of `Paper`."""
    profiles: dict[ProfileName, Profile] = {"paper": params.paper, "quick": params.quick}
    return Paper(
        name=folder.name,
        folder=folder,
        columns={name: (*p.columns.values(), *p.large.columns.values()) for name, p in profiles.items()},
        protocols={name: p.protocols for name, p in profiles.items()},
        seeds={name: p.seeds for name, p in profiles.items()},
        stand_ins=params.stand_ins,
        large={name: settings for p in profiles.values() for name, settings in with_second_settings(p.large).items()},
        **rest,
    )


def published_column(stand_ins: Mapping[str, str], column: Column) -> str:
    """The name of the published column that a column is, or in whose place it is shown."""
    return stand_ins.get(column.name, column.name)
