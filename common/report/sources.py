"""Which records a figure is drawn from: the column of the profile, the methods by their labels, and words that say so."""

from collections.abc import Iterable, Sequence

from common.errors import UserError
from common.paper import Paper
from common.report.compare import Arm, Records, arms, standing_columns
from common.spec import Column, Profile


class NotYet(Exception):
    """A sentence on the runs or the column that a figure lacks."""


def find_column(paper: Paper, profile: Profile, name: str) -> Column:
    """The column of the profile that stands for a published one; a name of the profile's own is that column.

    NotYet where the quick profile has none in its place; a name that the paper has nowhere is a UserError.
    """
    if own := [column for column in paper.columns[profile] if column.name == name]:
        return own[0]
    if stands := standing_columns(paper, profile).get(name):
        return stands[0]
    if profile == "quick" and (name in standing_columns(paper, "paper") or name in {c.name for c in paper.columns["paper"]}):
        raise NotYet(f"no quick column stands in for {name}")
    raise UserError(f"{paper.name} has no column {name!r} in profile {profile!r}.")


def find_arms(paper: Paper, profile: Profile, records: Records, column: Column, labels: Sequence[str]) -> list[Arm]:
    """The methods of these labels with their finished runs, in this order; NotYet where one has no run.

    A label is `Method.label`, as "own@released"; a name without a reading means the plain row in every reading.
    """
    there, found, missing = arms(paper, records, profile, column), [], []
    for label in labels:
        chosen = [a for a in there if a.method.label == label or (a.method.name == label and not a.method.variant)]
        done = [arm for arm in chosen if arm.done]
        missing += [] if done else [label]
        found += done
    if missing:
        raise NotYet(f"no run of {' or '.join(missing)} on {column.name} (profile {profile}) yet")
    return found


def seed_words(arm: Arm) -> str:
    return f"{len(arm.done)} seed{'s' if len(arm.done) > 1 else ''}"


def source_words(found: Iterable[Arm]) -> str:
    """How many records are behind a figure, on which devices they were made, and where their keys are."""
    used = {record["key"]: record for arm in found for record in arm.done}
    devices = sorted({str(record["made"].get("device", "an unnamed device")) for record in used.values()})
    first = next(iter(used))
    rest = f" and {len(used) - 1} more" if len(used) > 1 else ""
    count = f"{len(used)} record{'s' if len(used) > 1 else ''}"
    return f"{count} ({first}{rest}; keys in the CSV beside), made on {', '.join(devices)}."
