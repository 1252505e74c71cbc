"""Runs that no table of the paper prints: one difference at a time, beside the row from which it departs; other images of a
column beside the authors'."""

from dataclasses import replace

from common.paper import Paper
from common.report.compare import Arm, Records, arms, measure, published
from common.report.text import markdown_table, mean_text, signed
from common.spec import Column, Profile

TITLE = """# Variants that the paper does not print

Top-1 error in percent, last epoch, mean ± sd (seeds). The difference is to the plain row of the same method, reading and column;
where other images are kept (`subset=`), to the same row on the authors' images.
Steps from text to code (`until=`) have the differences of the steps before them too.
Steps from text to code (`until=`) have the differences of the steps before them too.
Columns of the quick profile show that the code works, no more.

"""


def variants_markdown(paper: Paper, records: Records) -> str:
    """A row for every variant that published.csv does not hold, in the columns of both profiles; empty where there is none."""
    printed = {(row.method, row.variant) for row in published(paper).itertuples()}
    header, rows = ["column", "method", "reading", "variant", "ours", "plain row", "difference"], []
    for profile in ("paper", "quick"):
        for column in paper.columns[profile]:
            found = arms(paper, records, profile, column)
            plain = {(arm.method.name, arm.method.reading): arm for arm in found if not arm.method.variant}
            for arm in found:
                method = arm.method
                if method.variant and (method.name, method.variant) not in printed:
                    base = plain.get((method.name, method.reading))
                    rows.append([column.name, method.name, method.reading, method.variant, *_compare(arm, base)])
            rows += _other_images(paper, records, profile, column, found)
    return TITLE + markdown_table(header, rows) if rows else ""


def _other_images(paper: Paper, records: Records, profile: Profile, column: Column, found: list[Arm]) -> list[list[str]]:
    """The rows with runs of a column whose images are not the authors', where the paper has the column of theirs."""
    authors = replace(column, subset="authors")
    if column == authors or authors not in paper.columns[profile]:
        return []
    theirs = {arm.method.label: arm for arm in arms(paper, records, profile, authors)}
    rows = []
    for arm in (arm for arm in found if arm.done):
        variant = ";".join(filter(None, (arm.method.variant, f"subset={column.subset}")))
        rows.append([column.name, arm.method.name, arm.method.reading, variant, *_compare(arm, theirs.get(arm.method.label))])
    return rows


def _compare(arm: Arm, base: Arm | None) -> list[str]:
    ours, theirs = (tuple(measure(r, "top1_error") for r in a.done) if a else () for a in (arm, base))
    difference = signed(sum(ours) / len(ours) - sum(theirs) / len(theirs)) if ours and theirs else "-"
    diverged = f", {len(arm.diverged)} diverged" if arm.diverged else ""
    return [(mean_text(ours) if ours else "no run yet") + diverged, mean_text(theirs) if theirs else "no run yet", difference]
