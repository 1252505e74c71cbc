"""How numbers and names are written, in Markdown and in the terminal."""

import html
from collections.abc import Iterable

from common.report.intervals import spread


def number(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"


def signed(value: float) -> str:
    """Two decimals with a sign; zero is +0.00.

    >>> signed(-0.001)
    '+0.00'
    """
    return f"{round(value, 2) + 0.0:+.2f}"


def mean_text(values: tuple[float, ...]) -> str:
    """`29.66 ± 0.26 (4)`: mean, standard deviation over seeds, number of seeds."""
    mean, sd = spread(values)
    return f"{number(mean)}{'' if sd is None else f' ± {number(sd)}'} ({len(values)})"


def plain(text: object) -> str:
    """One line without control characters, whatever a name or a record holds."""
    return "".join(c if c.isprintable() else " " for c in " ".join(str(text).split()))


def escape(text: object) -> str:
    """`plain`, and safe inside a cell of a Markdown table: no HTML, no pipe."""
    return html.escape(plain(text), quote=False).replace("|", "&#124;")


def markdown_table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    head = [escape(name) for name in header]
    lines = [head, ["---"] * len(head), *([escape(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
