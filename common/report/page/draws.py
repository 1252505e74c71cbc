"""What the page shows of `common.report.draws`, as text."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from common.report.draws import RULE, Drawn, Pooled, draws_of
from common.report.protocols import protocol_words
from common.report.results import Results
from common.report.text import mean_text, number


class DrawnView(NamedTuple):
    """A method. means: subset and mean ± sd (runs); lowest, highest: of these means."""

    label: str
    papers: str
    setting: str
    authors: str
    subsets: int
    lowest: str
    highest: str
    seeds: str
    draws: str
    p: str
    means: tuple[tuple[str, str], ...]


class PooledView(NamedTuple):
    column: str
    answer: str
    rows: tuple[DrawnView, ...]
    tables: tuple[tuple[str, str], ...]


def draws_view(results: Sequence[Results]) -> dict[str, Any]:
    """For the template: a part for each column, and the rule."""
    return {"draws": [_pooled_view(pooled) for pooled in draws_of(results)], "draws_rule": RULE}


def _pooled_view(pooled: Pooled) -> PooledView:
    rows = tuple(_drawn_view(one) for one in pooled.methods if one.variances)
    tables = () if pooled.draws is None else tuple(
        (f"{table.paper}, Table {table.table}", f"{sum(gap < pooled.draws for gap in table.gaps)} of {len(table.gaps)}")
        for table in pooled.tables)
    return PooledView(pooled.column.name, _answer(pooled), rows, tables)


def _answer(pooled: Pooled) -> str:
    gaps = f"{len(pooled.gaps)} gaps between neighbours are printed in {len(pooled.tables)} tables"
    if pooled.draws is None or pooled.seeds is None:
        here = f"{pooled.runs} runs on other images are here" if pooled.runs else "no run on other images is here yet"
        return (f"{gaps}. How many of them are smaller than the spread over draws is not known: that waits for a method with two "
                f"runs or more on each of two subsets; {here}. A campaign trains them after the main tables.")
    return (f"sd over draws {number(pooled.draws)}, beside {number(pooled.seeds)} over seeds, in points, pooled over "
            f"{sum(one.variances is not None for one in pooled.methods)} methods. {gaps}: {pooled.smaller(pooled.draws)} of them "
            f"are smaller than the sd over draws, {pooled.smaller(pooled.seeds)} smaller than that over seeds.")


def _drawn_view(one: Drawn) -> DrawnView:
    means, variances = one.means, one.variances
    theirs = one.by_subset["authors"]
    return DrawnView(
        one.label, "; ".join(one.papers), protocol_words(one.protocol), mean_text(theirs) if theirs else "no run yet", len(means),
        number(min(means.values())), number(max(means.values())), number(variances.seeds ** 0.5),
        number(max(0.0, variances.draws) ** 0.5), f"{variances.p:.3g}",
        tuple((subset, mean_text(one.by_subset[subset])) for subset in means))
