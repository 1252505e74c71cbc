"""Tables as LaTeX, for a paper that quotes them: booktabs, one tabular for each piece of a table."""

from common.paper import Table
from common.report.compare import Cell
from common.report.layout import METRICS, cell_text, column_words, grid, pieces
from common.report.text import plain
from common.report.verdict import RULE

SPECIAL = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "±": r"$\pm$", "→": r"$\to$", "†": r"\dag{}", "≤": r"$\leq$", "“": "``", "”": "''", "’": "'", "…": r"\dots{}",
})


def tex(text: object) -> str:
    """Plain text as LaTeX shows it, whatever a name or a record holds."""
    return plain(text).translate(SPECIAL)


def table_latex(table: Table, cells: list[Cell]) -> str:
    """A table environment for each piece of the table; needs the packages booktabs and graphicx."""
    blocks = pieces(cells)
    metrics = " / ".join(dict.fromkeys(METRICS.get(cell.metric, cell.metric) for cell in cells))
    caption = (f"Table {table.number}. {table.caption}. {metrics} in percent, last epoch: published → mean ± sd (seeds), "
               "delta in points, verdict.")
    parts = [f"% {plain(RULE)}\n% Needs \\usepackage{{booktabs,graphicx}}."]
    parts += [_environment(piece, caption, column_words(piece[0]) if len(blocks) > 1 else "") for piece in blocks]
    return "\n\n".join(parts) + "\n"


def _environment(piece: list[Cell], caption: str, column: str) -> str:
    from pandas import DataFrame

    laid = grid(piece)
    names = [laid.header(place, "" if column else column_words(place)) for place in laid.columns]
    rows = [[tex(value) for value in (row.label, row.reading or "-", *(cell_text(cell, row) for cell in row.cells))]
            for row in laid.rows]
    frame = DataFrame(rows, columns=[tex(name) for name in ("method", "reading", *names)])
    body = frame.to_latex(index=False, escape=False, column_format="ll" + "l" * len(names)).rstrip()
    where = f" Column {column}." if column else ""
    return "\n".join(("\\begin{table}", f"\\caption{{{tex(caption + where)}}}", "\\resizebox{\\linewidth}{!}{%", f"{body}}}",
                      "\\end{table}"))
