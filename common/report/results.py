"""What the records say of a paper under one profile, computed once: everything that a report shows is made from `Results`."""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from common.cost import Throughput, known_speeds
from common.methods.digest import ENGINE
from common.methods.method import Method, digest_of
from common.paper import Paper
from common.plan import Run
from common.report.paired import NO_HITS, Hits, hits_of
from common.report.published import columns_shown_for, published
from common.report.verdict import APART
from common.spec import Column, ProfileName
from common.store import equivalents, load_records

if TYPE_CHECKING:
    from pandas import DataFrame

Record = Mapping[str, Any]
Records = Mapping[str, Record]
T = TypeVar("T")


class MethodRuns(NamedTuple):
    """The runs of one method on one column: records of the finished and of the diverged ones, in the order of their seeds, and
    of the earlier stages that the finished ones start from. apart: why they are not comparable with their source, if so.
    stale: records of other code than today's, which count nowhere. planned: the run of every seed from 0."""

    method: Method
    done: tuple[Record, ...]
    diverged: tuple[Record, ...]
    starts: tuple[Record, ...] = ()
    apart: str = ""
    stale: tuple[Record, ...] = ()
    planned: tuple[Run, ...] = ()


@dataclass(frozen=True, eq=False)
class Results:
    """A paper's records under one profile, and what follows from them: computed when it is first asked for, then kept.

    records: key -> record, of all papers and profiles. hits: which test images the runs that have predictions answer right.
    """

    paper: Paper
    records: Records
    profile: ProfileName
    hits: Mapping[str, Hits] = field(default_factory=lambda: NO_HITS)
    _profiles: dict[ProfileName, "Results"] = field(default_factory=dict, repr=False)  # of the same records, this one among them
    _kept: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        self._profiles[self.profile] = self

    def under(self, profile: ProfileName) -> "Results":
        """The same records under another profile."""
        return self._profiles.get(profile) or replace(self, profile=profile)

    def keep(self, name: Hashable, compute: Callable[[], Any]) -> Any:
        """What `compute` returned when the name was first asked for."""
        if name not in self._kept:
            self._kept[name] = compute()
        return self._kept[name]

    @cached_property
    def published(self) -> "DataFrame":
        """The numbers that the paper prints (`common.report.published`)."""
        return published(self.paper) if self.profile == "paper" else self.under("paper").published

    @cached_property
    def printed(self) -> tuple[Any, ...]:
        """The rows of `published`."""
        return tuple(self.published.itertuples())

    @cached_property
    def columns_shown(self) -> Mapping[str, tuple[Column, ...]]:
        """Published column name -> the columns of this profile whose runs are shown for it."""
        return columns_shown_for(self.paper, self.profile)

    @cached_property
    def speeds(self) -> list[Throughput]:
        """The speeds that GPUs have been seen to reach, where the paper has large columns."""
        return known_speeds(self.paper, self.records)

    @cached_property
    def seeds(self) -> range:
        """Every seed that is planned or recorded; those beyond the plan count too."""
        return range(max([self.paper.seeds[self.profile], *(1 + record["spec"]["seed"] for record in self.records.values())]))

    def planned(self, column: Column) -> Sequence[tuple[Run, ...]]:
        """Of every method of a column, as the paper lists them, the run of each of the `seeds`."""
        return self.keep(("planned", column), lambda: [self._seeds_of(method, column)
                                                       for method in self.paper.rows(self.profile, column)])

    def _seeds_of(self, method: Method, column: Column) -> tuple[Run, ...]:
        run = self.paper.spec(self.profile, column, method, 0)
        first = Run(run, method, self.paper.results(self.profile) / column.name)
        return tuple(first.under_seed(seed) for seed in self.seeds)

    def runs(self, column: Column) -> Sequence[MethodRuns]:
        """Every method of a column, as the paper lists them, with the records it has."""
        return self.keep(("runs", column), lambda: [self._runs_of(planned, column) for planned in self.planned(column)])

    def _runs_of(self, planned: tuple[Run, ...], column: Column) -> MethodRuns:
        method, same, records = planned[0].method, equivalents(self.paper.folder.parent), self.records
        digest = digest_of(method, column)
        there = [(records[item.spec.key], item) for item in planned if item.spec.key in records]
        have = [(record, item) for record, item in there if is_fresh(record, digest, same)]
        done = [(record, item) for record, item in have if record["status"] == "done"]
        starts = tuple(records[stage.spec.key] for _, item in done for stage in item.chain[:-1] if stage.spec.key in records)
        return MethodRuns(method, tuple(record for record, _ in done), tuple(r for r, _ in have if r["status"] != "done"), starts,
                          _why_apart(self.paper, column, method),
                          tuple(r for r, _ in there if not is_fresh(r, digest, same)), planned)


def results_of(papers: Sequence[Paper], records: Records, profile: ProfileName, hits: Mapping[str, Hits] = NO_HITS
               ) -> tuple[Results, ...]:
    """The same records for several papers."""
    return tuple(Results(paper, records, profile, hits) for paper in papers)


def read_results(papers: Sequence[Paper], profile: ProfileName) -> tuple[Results, ...]:
    """What the records and predictions in the papers' folders say of each paper."""
    root = papers[0].folder.parent
    records = load_records(root)
    return results_of(papers, records, profile, hits_of(root, records))


def once(compute: Callable[[Results], T]) -> Callable[[Results], T]:
    """Keep what a function of results returns in the results, as a report asks for the same cells and claims again and again."""
    @wraps(compute)
    def kept(results: Results) -> T:
        return results.keep(compute, lambda: compute(results))

    return kept


def is_fresh(record: Record, digest: str, same: Mapping[str, Collection[str]]) -> bool:
    """Whether a record is of today's engine, and of code that computes what the method computes today. digest: of the method;
    same: `common.store.equivalents`."""
    return record["engine"] == ENGINE and record["method_digest"] in same.get(digest, (digest,))


def _why_apart(paper: Paper, column: Column, method: Method) -> str:
    names = (column.name, f"{column.name}/{method.name}", f"{column.name}/{method.label}")
    reasons = [paper.not_comparable[name] for name in names if name in paper.not_comparable]
    return f"{APART}: {'; '.join(reasons)}" if reasons else ""
