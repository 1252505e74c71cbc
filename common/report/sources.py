"""Which records a figure is drawn from: the column of the profile, the methods by their labels, and words that say so."""

from collections.abc import Iterable, Sequence

from common.errors import UserError
from common.report.results import MethodRuns, Results
from common.spec import Column


class NotYet(Exception):
    """A sentence on the runs or the column that a figure lacks."""


def find_column(results: Results, name: str) -> Column:
    """The column of the profile that stands for a published one; a name of the profile's own is that column.

    NotYet where the quick profile has none in its place; a name that the paper has nowhere is a UserError.
    """
    paper, profile = results.paper, results.profile
    if own := [column for column in paper.columns[profile] if column.name == name]:
        return own[0]
    if shown := results.columns_shown.get(name):
        return shown[0]
    if profile == "quick" and (name in results.under("paper").columns_shown or name in {c.name for c in paper.columns["paper"]}):
        raise NotYet(f"no quick column stands in for {name}")
    raise UserError(f"{paper.name} has no column {name!r} in profile {profile!r}.")


def find_runs(results: Results, column: Column, labels: Sequence[str]) -> list[MethodRuns]:
    """The methods of these labels with their finished runs, in this order; NotYet where one has no run.

    A label is `Method.label`, as "own@released"; a name without a reading means the plain row in every reading.
    """
    methods, missing = [], []
    for label in labels:
        labelled = [one for one in results.runs(column)
                    if one.method.label == label or (one.method.name == label and not one.method.variant)]
        done = [one for one in labelled if one.done]
        missing += [] if done else [label]
        methods += done
    if missing:
        raise NotYet(f"no run of {' or '.join(missing)} on {column.name} (profile {results.profile}) yet")
    return methods


def seed_words(runs: MethodRuns) -> str:
    return f"{len(runs.done)} seed{'s' if len(runs.done) > 1 else ''}"


def source_words(methods: Iterable[MethodRuns]) -> str:
    """How many records are behind a figure, on which devices they were made, and where their keys are."""
    used = {record["key"]: record for runs in methods for record in runs.done}
    devices = sorted({str(record["made"].get("device", "an unnamed device")) for record in used.values()})
    first = next(iter(used))
    rest = f" and {len(used) - 1} more" if len(used) > 1 else ""
    count = f"{len(used)} record{'s' if len(used) > 1 else ''}"
    return f"{count} ({first}{rest}; keys in the CSV beside), made on {', '.join(devices)}."
