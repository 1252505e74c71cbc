"""The way from the text's method to the code's: rows that take the code's side in one difference more each.

The steps are cumulative: `until=scale` has the scale of the released code and all that comes before it on the path, the text's
side in the rest. So the changes from step to step add up to the whole difference between the readings, and the last step is the
released row itself: its run has the key of that row and is trained once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from common.methods.method import Method

UNTIL = "until="


def path(written: Method, *differences: tuple[str, Mapping[str, Any]]) -> list[Method]:
    """One row a difference, in their order. differences: a name, and the fields of `Method` that change with it, which stay
    changed in the rows that follow."""
    rows, method = [], written
    for name, changes in differences:
        method = replace(method, variant=UNTIL + name, keep_features=False, **changes)
        rows.append(method)
    return rows


def is_step(method: Method) -> bool:
    return method.variant.startswith(UNTIL)


def steps_of(rows: Iterable[Method]) -> list[Method]:
    """The steps of a path among the rows of a column, in their order."""
    return [row for row in rows if is_step(row)]
