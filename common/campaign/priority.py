"""Which missing runs are worth the device time at hand, in which packs, and what the rest still needs. No torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from common.cost import Costs, whole_work
from common.draws import BASELINES
from common.paper import Paper
from common.plan import Run, merged, plan
from common.report.published import columns_shown_for, published
from common.spec import FURTHER_DRAWS, ProfileName

SEEDS_FIRST = 3  # of every cell, before any cell gets more
TIERS = ("own methods, CE and LDAM-DRW", "other rows of the main tables", "ablations")
LAST = 6  # the tier of methods that a campaign takes after everything else

Form = Callable[[Sequence[Run]], list[list[Run]]]  # packs of runs, in their order


@dataclass(frozen=True)
class Worth:
    """Why a run is wanted. tier: 0 to 2 as in TIERS, 3 to 5 the same for seeds beyond the first three (and for own methods
    on further draws of a subset), 6 what a method says comes last; lower comes first.

    numbers: how many printed numbers, of all papers, it stands beside.
    as_start: what it is worth to those that start from it, where it has its record and only its weights are missing.
    """

    tier: int
    numbers: int
    as_start: "Worth | None" = None

    @property
    def reason(self) -> str:
        if self.tier == LAST:
            return "long trainings, last"
        return TIERS[self.tier % 3] + ("" if self.tier < 3 else ", further seeds and draws")


def wanted(papers: Sequence[Paper], profile: ProfileName, columns: Sequence[str] = (), seeds: int | None = None
           ) -> tuple[list[Run], dict[str, Worth]]:
    """Every run of the papers (of the named columns only, else of all but the large ones), each key once, and what it is worth
    by its key.

    A run is worth its best place in any paper, and the printed numbers of all; one that others start from, what they are.
    """
    runs: list[Run] = []
    worth: dict[str, Worth] = {}
    starts: dict[str, Worth] = {}
    for paper in papers:
        printed = _printed(paper, profile)
        mine = tuple(c.name for c in paper.columns[profile] if (c.name in columns if columns else c.name not in paper.large))
        if not mine:
            continue
        for item in plan(paper, profile, columns=mine, seeds=seeds):
            item_worth = _worth(paper, item, printed)
            runs.append(item)
            for link in item.chain:
                for found in (worth,) if link is item else (worth, starts):
                    before = found.get(link.spec.key, Worth(item_worth.tier, 0))
                    found[link.spec.key] = Worth(min(before.tier, item_worth.tier), before.numbers + item_worth.numbers)
    return list(merged(runs).values()), {key: replace(value, as_start=starts.get(key)) for key, value in worth.items()}


def _printed(paper: Paper, profile: ProfileName) -> dict[tuple[str, str, str], list[str]]:
    """(column, method, variant) -> the table of each number that the paper prints; quick columns by what they stand for."""
    shown, tables = columns_shown_for(paper, profile), {}
    for row in published(paper).itertuples():
        for column in shown.get(row.column, ()):
            tables.setdefault((column.name, row.method, row.variant), []).append(row.table)
    return tables


def _worth(paper: Paper, item: Run, printed: Mapping[tuple[str, str, str], list[str]]) -> Worth:
    method = item.method
    tables = printed.get((item.spec.column.name, method.name, method.variant), [])
    first = 0 if method.name in (*BASELINES, *paper.own) else 1
    tier = first if any(table in paper.main for table in tables) else 2
    further = item.spec.seed >= SEEDS_FIRST or (item.spec.column.subset in FURTHER_DRAWS and method.name not in BASELINES)
    return Worth(LAST if method.last else tier + (3 if further else 0), len(tables))


@dataclass(frozen=True)
class Offer:
    """A pack that could be trained next, the most worthy runs of it first. worth: the best tier in it, and the numbers of all.

    seconds: expected, None where nothing is known. fits: of one in a schedule, whether it ends within the time; one that does
    not is begun, and goes on next time.
    """

    pack: tuple[Run, ...]
    worth: Worth
    seconds: float | None
    fits: bool = True


def by_worth(runs: Sequence[Run], worth: Mapping[str, Worth]) -> list[Run]:
    """The best tier first, in a tier the first seed of everything before the second of anything."""
    return sorted(runs, key=lambda m: (worth[m.spec.key].tier, m.spec.seed))


def offers(ready: Sequence[Run], worth: Mapping[str, Worth], form: Form, costs: Costs) -> list[Offer]:
    """What could be begun now, the most worthy first: by tier, then by printed numbers for the work, then as planned.

    A pack holds the best runs of its column and setting, and is filled up with those of lower tiers.
    """
    unsorted = []
    for pack in form(by_worth(ready, worth)):
        each = [worth[m.spec.key] for m in pack]
        unsorted.append(Offer(tuple(pack), Worth(each[0].tier, sum(w.numbers for w in each)), costs.of(pack)))
    return sorted(unsorted, key=lambda o: (o.worth.tier, -o.worth.numbers / _work(o.pack)))


def _work(pack: Sequence[Run]) -> float:
    return len(pack) * whole_work(pack[0].spec.column, pack[0].spec.protocol, pack[0].method.streams.number)


def fit(offered: Sequence[Offer], left: float, costs: Costs) -> Offer | None:
    """The first offer that ends within `left` seconds; one that does not is made smaller, the most worthy of it kept.

    If not even one run of anything fits, the first offer of which at least an epoch does: it goes on next time. Where
    nothing is known of an offer, it is taken. Without a limit of time everything fits, what is unknown too.
    """
    if left == float("inf"):
        return next(iter(offered), None)
    for offer in offered:
        if smaller := _shrink(offer, left, costs):
            return smaller
    return next((o for o in offered if o.seconds is None or o.seconds / max(1, o.pack[0].spec.protocol.epochs) <= left), None)


def _shrink(offer: Offer, left: float, costs: Costs) -> Offer | None:
    if offer.seconds is None:
        return None
    for runs in range(len(offer.pack), 0, -1):
        pack = offer.pack[:runs]
        if (seconds := costs.of(pack)) <= left:
            return Offer(pack, offer.worth, seconds)
    return None


def schedule(missing: Sequence[Run], offer: Callable[[Sequence[Run], Costs], list[Offer]], costs: Costs, seconds: float,
             places: int = 1, most: int | None = None) -> list[Offer]:
    """What a campaign of so many seconds on so many places would train, as far as the costs foretell it; of at most so many
    packs (one more says that there are others). A pack of unknown time takes all that its place has left: nobody knows what
    would fit after it."""
    left, waiting, scheduled = [seconds] * places, {m.spec.key: m for m in missing}, []
    while waiting and max(left) > 0 and (most is None or len(scheduled) <= most) and (
            best := fit(offer(begun_after(waiting), costs), max(left), costs)):
        place = left.index(max(left))
        if best.seconds is not None:
            left[place] -= best.seconds
        elif seconds < float("inf"):
            left[place] = 0.0
        costs = costs.after(best.pack)
        scheduled.append(replace(best, fits=left[place] >= 0))
        for member in best.pack:
            waiting.pop(member.spec.key)
        if left[place] < 0:
            break
    return scheduled


def begun_after(waiting: Mapping[str, Run]) -> list[Run]:
    """Those of the waiting runs, by key, that do not start from another waiting one."""
    return [m for m in waiting.values() if not (m.start and m.start.spec.key in waiting)]


def needs(missing: Sequence[Run], form: Form, costs: Costs) -> tuple[float, int]:
    """Seconds that the missing runs need in full packs, and how many runs are on backbones whose time nobody knows."""
    seconds, unknown = 0.0, 0
    for pack in form(missing):
        expected = costs.of(pack)
        costs = costs.after(pack)
        unknown += len(pack) if expected is None else 0
        seconds += expected or 0.0
    return seconds, unknown
