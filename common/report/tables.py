"""The tables of a paper with our numbers in every cell: Markdown to read, CSV to compute with, LaTeX to print, rich for the
terminal."""

import html
import io
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError
from common.paper import Table
from common.report.author import mistakes
from common.report.claims import RULE as CLAIMS_RULE
from common.report.claims import Claim, Outcome, class_words, evaluate, has_claims
from common.report.compare import Cell, cells, made, minutes
from common.report.groups import WHOLE
from common.report.intervals import spread
from common.report.large import large_markdown
from common.report.latex import table_latex
from common.report.layout import METRICS, NOT_PRINTED, Grid, GridRow, cell_text, column_words, grid, pieces
from common.report.results import Records, Results, once
from common.report.text import escape, markdown_table, mean_text, plain, signed
from common.report.variants import variants_markdown
from common.report.verdict import RULE
from common.spec import ProfileName
from common.store import write_atomically

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import Console

PER_BLOCK = 4  # published columns side by side in a terminal of 100 characters


@once
def table_cells(results: Results) -> list[tuple[Table, list[Cell]]]:
    """Every table with its cells; the quick profile adds its stand-ins to the published columns."""
    paper, all_cells = results.paper, cells(results.under("paper")) + (cells(results) if results.profile == "quick" else ())
    by_table = [(table, [cell for cell in all_cells if cell.table == table.number]) for table in paper.tables]
    for table, own in by_table:
        if not own:
            raise UserError(f"{paper.folder / 'published.csv'} prints no number of table {table.number}.")
    return by_table


def grid_markdown(laid: Grid, text: Callable[[Cell | None, GridRow], str], named: bool = True) -> str:
    """The grid as a Markdown table; `named`: each column of it names ours, which else stands above the table."""
    header = [laid.header(place, column_words(place) if named else "") for place in laid.columns]
    rows = ([row.label, row.reading or "-", *(text(cell, row) for cell in row.cells)] for row in laid.rows)
    return markdown_table(["method", "reading", *header], rows)


def table_body(own_cells: list[Cell], text: Callable[[Cell | None, GridRow], str]) -> str:
    """All cells of a table: one Markdown table, or one below the name of each column, with its groups of classes across."""
    parts = pieces(own_cells)
    if len(parts) == 1:
        return grid_markdown(grid(own_cells), text)
    tables = (f"**{escape(column_words(piece[0]))}**\n\n{grid_markdown(grid(piece), text, named=False)}" for piece in parts)
    return "\n".join(tables)


def table_markdown(table: Table, own_cells: list[Cell], records: Records) -> str:
    """The whole page of one table: caption, main table, rule, what is behind it, best-epoch table."""
    metrics = dict.fromkeys(METRICS.get(cell.metric, cell.metric) for cell in own_cells)
    page = [
        f"# Table {escape(table.number)}. {escape(table.caption)}\n",
        f"{' / '.join(metrics)} on the test set in percent, last epoch. A cell reads: published → mean ± sd (seeds), "
        f"delta in points, verdict.{_quick_remark(own_cells)}\n",
        table_body(own_cells, cell_text),
        f"{RULE}\n",
        f"{behind(own_cells, records)}\n",
    ]
    page += [f"† {escape(f'{c.row} ({c.reading}), {c.column}: ' + '; '.join(c.flags))}\n" for c in own_cells if c.flags]
    page += _remarks(own_cells)
    if whole := [cell for cell in own_cells if cell.group in WHOLE]:
        page += ["## Best test epoch\n",
                 "The same runs at their best test epoch, chosen on the test images themselves, as most published long-tailed "
                 "numbers are: for orientation only, so without a verdict.\n",
                 table_body(whole, lambda cell, row: cell_text(cell, row, best=True))]
    return "\n".join(page)


def _remarks(own_cells: list[Cell]) -> list[str]:
    """What was noted on reading the printed numbers, each remark once with the rows that it is on."""
    by_remark: dict[str, dict[str, None]] = {}
    for cell in own_cells:
        if cell.remark:
            by_remark.setdefault(cell.remark, {})[cell.row] = None
    lines = [f"- {escape(', '.join(rows))}: {escape(remark)}" for remark, rows in by_remark.items()]
    return ["Notes on the printed numbers:\n", "\n".join(lines) + "\n"] if lines else []


def _quick_remark(own_cells: list[Cell]) -> str:
    if not any(cell.quick for cell in own_cells):
        return ""
    return (" Columns marked quick are runs on a small stand-in dataset with a short schedule: they show that the code works, "
            "and are not to be compared with the published numbers.")


def behind(some_cells: Iterable[Cell], records: Records) -> str:
    """Runs, device-minutes, devices, precision and torch behind some cells, each run once."""
    used = [records[key] for key in dict.fromkeys(key for cell in some_cells for key in cell.keys)]
    if not used:
        return "No runs yet."
    facts = "; ".join(escape(f"{name}: {made(used, field)}") for name, field in
                      (("device", "device"), ("precision", "precision"), ("torch", "torch")))
    return f"Behind it: {len(used)} runs, {minutes(used):.1f} device-minutes; {facts}."


def table_frame(own_cells: list[Cell], records: Records) -> "DataFrame":
    """All cells in long format, in percent; lists are joined by semicolons."""
    from pandas import DataFrame

    def row(cell: Cell) -> dict[str, object]:
        used = [records[key] for key in cell.keys]
        best, best_sd = spread(cell.best)
        return {
            "table": cell.table, "row": cell.row, "method": cell.method, "reading": cell.reading, "variant": cell.variant,
            "column": cell.column, "stands_for": cell.stands_for, "quick": cell.quick, "metric": cell.metric,
            "group": cell.group, "unit": cell.unit, "printed": cell.printed, "printed_sd": cell.printed_sd,
            "published": cell.published, "mean": cell.mean, "sd": cell.sd, "n": cell.n,
            "values": ";".join(f"{value:.4f}" for value in cell.values), "best_epoch_mean": best, "best_epoch_sd": best_sd,
            "delta": cell.delta, "bound": cell.bound, "verdict": cell.verdict, "state": cell.state, "diverged": cell.diverged,
            "flags": ";".join(cell.flags), "remark": cell.remark, "keys": ";".join(cell.keys), "minutes": minutes(used),
            "devices": made(used, "device"), "precision": made(used, "precision"), "torch": made(used, "torch"),
            "commit": made(used, "commit"),
        }

    return DataFrame([row(cell) for cell in own_cells])


def csv_bytes(frame: "DataFrame") -> bytes:
    buffer = io.StringIO()
    frame.to_csv(buffer, index=False, float_format="%.6g", lineterminator="\n")
    return buffer.getvalue().encode()


def write_tables(results: Results, folder: Path) -> list[Path]:
    """table-<n>.md, .csv and .tex for every table of the paper, and claims.md and .csv if it states claims. Returns the files."""
    contents: dict[str, bytes] = {}
    by_table, records = table_cells(results), results.records
    for table, own_cells in by_table:
        contents[f"table-{table.number}.md"] = table_markdown(table, own_cells, records).encode()
        contents[f"table-{table.number}.csv"] = csv_bytes(table_frame(own_cells, records))
    if has_claims(results.paper):
        outcomes = evaluate(results)
        contents["claims.md"] = claims_markdown(outcomes, results.profile).encode()
        contents["claims.csv"] = csv_bytes(claims_frame(outcomes))
    if text := large_markdown(results):
        contents["large.md"] = text.encode()
    if text := variants_markdown(results):
        contents["variants.md"] = text.encode()
    contents |= {f"table-{table.number}.tex": table_latex(table, own_cells).encode() for table, own_cells in by_table}
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]


def claim_test(claim: Claim) -> str:
    """What was tested, in one line."""
    tests = {"better": f"{claim.method} has a lower error than {', '.join(claim.than)}",
             "best": f"{claim.method} has a lower error than every other row",
             "setting": f"{claim.method}: best {claim.parameter} above {claim.above}"}
    columns = claim.columns[0] if len(claim.columns) == 1 else f"each of {len(claim.columns)} columns"
    tables = f"table{'s' if len(claim.tables) > 1 else ''} {' and '.join(claim.tables)}"
    return f"{tests[claim.kind]} in {columns} of {tables}{class_words(*claim.parts)}"


def claim_name(claim: Claim) -> str:
    """Its id, and whose it is where it is not the paper's."""
    return f"{claim.id} (ours)" if claim.ours else claim.id


def claims_markdown(outcomes: Sequence[Outcome], profile: ProfileName) -> str:
    """The claims with their verdicts, and below them every quote, how it was read and what could not be compared."""
    rows, words = [], {}
    for o in outcomes:
        lead = "-" if o.gap is None else f"{signed(o.gap)} in {o.where}"
        p = "-" if o.p is None else f"{o.p:.3g} / {o.p_against:.3g} / {o.p_paired:.3g}"
        rows.append([claim_name(o.claim), claim_test(o.claim), o.reading, o.printed, o.verdict, lead, p])
        whose = "; a claim of ours on it" if o.claim.ours else ""
        line = (f"- **{escape(o.claim.id)}** ({escape(o.claim.section)}{whose}): “{escape(o.claim.quote)}” "
                f"{escape(o.claim.means or '')}")
        notes = words.setdefault(line.rstrip(), {})
        for note in o.notes:
            notes.setdefault(note, []).append(o.reading)
    title = "# Claims\n" if profile == "paper" else (
        "# Claims, on the quick stand-ins\n\nA demonstration of the procedure: these verdicts say nothing about the paper.\n")
    header = ["claim", "test", "reading", "printed numbers", "our runs", "smallest lead in points",
              "p / p of the opposite / p paired"]
    page = [title, markdown_table(header, rows), f"{CLAIMS_RULE}\n", "## What the paper says\n"]
    for line, notes in words.items():
        page += [line, *("  - " + escape(f"{', '.join(readings)}: {note}") for note, readings in notes.items())]
    return "\n".join(page) + "\n"


def claims_frame(outcomes: Sequence[Outcome]) -> "DataFrame":
    from pandas import DataFrame

    return DataFrame([
        {"claim": o.claim.id, "ours": o.claim.ours, "follows_from": o.follows, "section": o.claim.section,
         "quote": o.claim.quote, "test": claim_test(o.claim), "reading": o.reading, "printed": o.printed, "verdict": o.verdict,
         "p": o.p, "p_opposite": o.p_against, "p_paired": o.p_paired,
         "lead": o.gap, "where": o.where, "columns_done": o.done, "columns": o.of, "notes": ";".join(o.notes)} for o in outcomes
    ])


def print_table(results: Results, console: "Console | None" = None) -> None:
    """All tables and claims of the paper for a terminal of 100 characters; quick: each stand-in beside its published column."""
    from rich.console import Console

    console = console or Console()
    for table, own_cells in table_cells(results):
        _print_one(table, own_cells, results.records, results.profile, console)
    if has_claims(results.paper):
        _print_claims(evaluate(results), results.profile, console)
    for sentence in mistakes(results.paper):
        console.print(f"Probably misspelt: {sentence}", style="yellow", markup=False, highlight=False)


def _print_one(table: Table, own_cells: list[Cell], records: Records, profile: ProfileName, console: "Console") -> None:
    if profile == "quick":
        paired = {cell.stands_for for cell in own_cells if cell.quick}
        own_cells = [cell for cell in own_cells if cell.stands_for in paired]
    console.print(plain(f"Table {table.number}. {table.caption}"), style="bold", markup=False, highlight=False)
    if not own_cells:
        sentence = f"No quick column stands in for its columns; every cell is in table-{table.number}.md.\n"
        console.print(sentence, style="dim", markup=False, highlight=False)
        return
    for piece in pieces(own_cells, key=lambda cell: cell.stands_for):
        laid = grid(piece)
        for block in _blocks(laid, profile):
            console.print(_rich_block(laid, block))
    closing = _quick_remark(own_cells).strip() if profile == "quick" else RULE
    shown = [cell for cell in own_cells if cell.quick or profile == "paper"]
    for line in (f"Percent, last epoch, mean ± sd (seeds). {closing}", html.unescape(behind(shown, records)), ""):
        console.print(line, style="dim", markup=False, highlight=False)


def _blocks(laid: Grid, profile: ProfileName) -> list[list[int]]:
    """Indices of the columns to show side by side: one dataset, at most `PER_BLOCK`; quick pairs stay together."""
    if profile == "quick":
        pairs = [[laid.columns.index(place._replace(column=place.stands_for)), i] for i, place in enumerate(laid.columns)
                 if place.column != place.stands_for]
        return [[*chain(*pairs[i:i + PER_BLOCK // 2])] for i in range(0, len(pairs), PER_BLOCK // 2)]
    by_dataset: dict[str, list[int]] = {}
    for i, place in enumerate(laid.columns):
        by_dataset.setdefault(place.column.split("-")[0], []).append(i)
    return [some[i:i + PER_BLOCK] for some in by_dataset.values() for i in range(0, len(some), PER_BLOCK)]


def _rich_block(laid: Grid, block: list[int]) -> object:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    quick = any(laid.columns[i].column != laid.columns[i].stands_for for i in block)
    shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    shown.add_column("method", min_width=12)
    for i in block:
        place = laid.columns[i]
        kind = "" if not quick else "\npublished" if place.column == place.stands_for else "\nquick"
        shown.add_column(Text(plain(laid.header(place, place.column)) + kind))
    for row in laid.rows:
        in_block = [row.cells[i] for i in block]
        if any(cell is not None for cell in in_block):
            reading = f"\n@{row.reading}" if row.reading else ""
            shown.add_row(Text(plain(row.label) + reading), *(Text(_terminal_text(cell, row, quick)) for cell in in_block))
    return shown


def _terminal_text(cell: Cell | None, row: GridRow, beside_quick: bool) -> str:
    """A cell on two or three short lines: setting, published → ours, delta and verdict."""
    if cell is None:
        return NOT_PRINTED
    lines = [plain(cell.variant)] if row.says_variant else []
    if beside_quick and (cell.quick or not cell.n):
        return "\n".join([*lines, _ours(cell) if cell.quick else cell.shown])
    if cell.delta is None:
        return "\n".join([*lines, f"{cell.shown} → {_ours(cell)}"])
    ours = mean_text(cell.values).replace(" ± ", "±").removesuffix(f" ({cell.n})")
    mark = "†" if cell.flags else ""
    return "\n".join([*lines, f"{cell.shown} → {ours}", f"{signed(cell.delta)} {cell.verdict} ({cell.n}){mark}"])


def _ours(cell: Cell) -> str:
    return mean_text(cell.values) if cell.n else plain(cell.state)


def _print_claims(outcomes: Sequence[Outcome], profile: ProfileName, console: "Console") -> None:
    """Whether the printed numbers bear each claim out, whether ours do, and by how many points in the worst column."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    shown.add_column("claim", overflow="fold", min_width=26)
    for name in ("reading", "printed numbers", "quick stand-in" if profile == "quick" else "our runs"):
        shown.add_column(name)
    shown.add_column("lead", justify="right")
    for o in outcomes:
        lead = "-" if o.gap is None else signed(o.gap)
        shown.add_row(*(Text(plain(value)) for value in (claim_name(o.claim), o.reading, o.printed, o.verdict, lead)))
    console.print(shown)
    console.print("lead: points ahead in the worst column", style="dim", markup=False, highlight=False)
