"""Runs that no table of the paper prints: one difference at a time, beside the row from which it departs; other images of a
column beside the authors'."""

from dataclasses import replace

from common.report.compare import measure
from common.report.results import MethodRuns, Results
from common.report.text import markdown_table, mean_text, signed
from common.spec import Column

TITLE = """# Variants that the paper does not print

Top-1 error in percent, last epoch, mean ± sd (seeds). The difference is to the plain row of the same method, reading and column;
where other images are kept (`subset=`), to the same row on the authors' images.
Steps from text to code (`until=`) have the differences of the steps before them too.
Columns of the quick profile show that the code works, no more.

"""


def variants_markdown(results: Results) -> str:
    """A row for every variant that published.csv does not hold, in the columns of both profiles; empty where there is none."""
    printed = {(row.method, row.variant) for row in results.printed}
    header, rows = ["column", "method", "reading", "variant", "ours", "plain row", "difference"], []
    for one in (results.under("paper"), results.under("quick")):
        for column in one.paper.columns[one.profile]:
            plain = {(runs.method.name, runs.method.reading): runs for runs in one.runs(column) if not runs.method.variant}
            for runs in one.runs(column):
                method = runs.method
                if method.variant and (method.name, method.variant) not in printed:
                    base = plain.get((method.name, method.reading))
                    rows.append([column.name, method.name, method.reading, method.variant, *_compare(runs, base)])
            rows += _other_images(one, column)
    return TITLE + markdown_table(header, rows) if rows else ""


def _other_images(results: Results, column: Column) -> list[list[str]]:
    """The rows with runs of a column whose images are not the authors', where the paper has the column of theirs."""
    authors = replace(column, subset="authors")
    if column == authors or authors not in results.paper.columns[results.profile]:
        return []
    theirs = {runs.method.label: runs for runs in results.runs(authors)}
    rows = []
    for runs in (runs for runs in results.runs(column) if runs.done):
        method = runs.method
        variant = ";".join(filter(None, (method.variant, f"subset={column.subset}")))
        rows.append([column.name, method.name, method.reading, variant, *_compare(runs, theirs.get(method.label))])
    return rows


def _compare(runs: MethodRuns, base: MethodRuns | None) -> list[str]:
    ours, theirs = (tuple(measure(r, "top1_error") for r in one.done) if one else () for one in (runs, base))
    difference = signed(sum(ours) / len(ours) - sum(theirs) / len(theirs)) if ours and theirs else "-"
    diverged = f", {len(runs.diverged)} diverged" if runs.diverged else ""
    return [(mean_text(ours) if ours else "no run yet") + diverged, mean_text(theirs) if theirs else "no run yet", difference]
