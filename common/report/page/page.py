"""`report/index.html`: the whole report as one self-contained page, from records alone.

The page loads nothing. Its content security policy allows its own script and no other, and all that comes from records,
claims and published.csv is escaped by the templates.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from common.paper import Paper
from common.report import claims, verdict
from common.report.boards import boards_of, entrants
from common.report.clean import Second
from common.report.compare import measure
from common.report.large import large_markdown
from common.report.order import orders
from common.report.page.clean import clean_view
from common.report.page.comparisons import comparisons
from common.report.page.draws import draws_view
from common.report.page.filters import CELL_WORDS, FILTERS
from common.report.page.pairs import Share, pair_data
from common.report.page.pictures import pictures
from common.report.page.runs import Sources, deflated, plans, run_data
from common.report.page.views import paper_part, whole
from common.report.results import Results
from common.report.text import mean_text
from common.report.variants import variants_markdown
from common.report.waterfall import waterfall_markdown
from common.store import write_atomically

HERE = Path(__file__).parent
LIMIT = 7_000_000  # bytes: in a mail, which takes 10 MB, they grow by a third
# Epochs of a curve and runs whose predictions are there, fewer where the page would be too large.
LEVELS: tuple[tuple[int, Share], ...] = ((60, "all"), (30, "all"), (12, "all"), (30, "main"), (12, "main"), (12, "none"))
DIFFERENCES = "Differences between paper, released code and this code"
HABITS = (
    "The accuracy of a run is that of its last epoch on the untouched test set. The best test epoch is chosen on the "
    "test images themselves, as most published long-tailed numbers are; it is shown for orientation and has no verdict.",
    "A method has up to two variants: written is the paper's text taken literally, released what its authors' code does. Both "
    "are trained. Where a number is counted once, it is the written one that counts if it has runs, else the released one.",
    "sd is the standard deviation over seeds (n - 1), and the number in brackets that of the seeds. A note under a cell says "
    "that its runs differ in device, precision or torch.",
)


def build_page(results: Sequence[Results], figures: Path, lines: Mapping[str, Sequence[str]], target: Path,
               second: Second | None = None, guests: Sequence[Mapping[str, Any]] = ()) -> str:
    """Write the page to `target`; returns one line on it: its size, and which figures found no room.

    results: of each paper under the published protocol, all of the same records. figures: the folder with
    <paper>/figure-<n>.svg and .png. lines: paper name -> the lines of `save_figures`, which say why a figure is missing. second:
    what else is known of the test sets. guests: what is shown of losses that are no paper's (`common.guests.view`), in a section
    of their own.
    """
    papers, records, hits = [one.paper for one in results], results[0].records, results[0].hits
    sources, methods, tested = Sources(results), entrants(results), orders(results)
    shown = [paper_part(one, [order for order in tested if order.paper == one.paper.name]) for one in results]
    content = {
        "papers": shown, "whole": whole(shown, records), "cell_words": CELL_WORDS,
        **comparisons(results, methods, tested),
        "differences": {paper.name: differences(paper) for paper in papers},
        "variants": {one.paper.name: markdown(variants_markdown(one).partition("\n")[2]) for one in results},
        "waterfalls": {one.paper.name: markdown(waterfall_markdown(one)) for one in results},
        "large": {one.paper.name: markdown(large_markdown(one).partition("\n")[2]) for one in results},
        "quick": [view for one in results if (view := quick_view(one.under("quick")))],
        "rules": (verdict.RULE, claims.RULE, *HABITS), **draws_view(results), "guests": guests,
        **clean_view(boards_of(methods), records, hits, second),
    }
    bare = _render(content, sources, pictures(papers, figures, lines, 0), "", "{}")  # after it, `sources` knows what is named
    planned = plans(results)
    room, (runs, pairs) = fit(cache(lambda points: deflated(run_data(sources, planned, points))),
                              cache(lambda share: _json(pair_data(methods, hits, share))), LIMIT - len(bare))
    fitted = pictures(papers, figures, lines, room)
    page = _render(content, sources, fitted, runs, pairs)
    write_atomically(target, page)
    return _summary(target, page, fitted)


def fit(runs: Callable[[int], str], pairs: Callable[[Share], str], room: int) -> tuple[int, tuple[str, str]]:
    """The first of the `LEVELS` of run data and pair data that finds room, else the last; and the bytes left for figures."""
    for points, share in LEVELS:
        data = runs(points), pairs(share)
        left = room - sum(map(len, data))
        if left >= 0:
            break
    return max(0, left), data


def _json(value: Any) -> str:
    """JSON that can stand inside a script element: no `<`, `>`, `&` or `'` in it."""
    from jinja2.utils import htmlsafe_json_dumps

    return htmlsafe_json_dumps(value, separators=(",", ":"), allow_nan=False)


def _render(content: Mapping[str, Any], sources: Sources, figures: Mapping[str, Any], runs: str, pairs: str) -> bytes:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    environment.filters |= FILTERS | {name: getattr(sources, name) for name in ("runs", "cell_runs", "way", "cell_way", "line")}
    script = "".join((HERE / name).read_text(encoding="utf-8") for name in ("paired.js", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = {"style": Markup((HERE / "style.css").read_text(encoding="utf-8")), "script": Markup(script)}  # files of this package
    page = environment.get_template("page.html.j2").render(**content, **own, pictures=figures, run_data=Markup(runs),
                                                           pair_data=Markup(pairs), script_digest=f"sha256-{digest}")
    return page.encode()


def _summary(target: Path, page: bytes, figures: Mapping[str, Sequence[Any]]) -> str:
    left_out = [f"{name} {p.number}" for name, several in figures.items() for p in several if p.instead.startswith("too large")]
    more = f"; no room for the figures {', '.join(left_out)}" if left_out else ""
    more += f"; above the limit of {LIMIT / 1e6:.0f} MB" if len(page) > LIMIT else ""
    return f"{target}: {len(page) / 1e6:.2f} MB{more}"


def differences(paper: Paper) -> Any:
    """The section of the paper's README.md on what is written, released and done here, as HTML; or that there is none."""
    path = paper.folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    section = re.search(rf"^## {DIFFERENCES}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return markdown(section[1] if section else f"papers/{paper.name}/README.md has no section “{DIFFERENCES}”.")


def markdown(text: str) -> Any:
    """Markdown as HTML, safe to show: HTML in it is escaped, and links stay as their text (the page stands alone)."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["image", "autolink"])
    for name in ("link_open", "link_close"):
        reader.add_render_rule(name, lambda *_: "")
    box = '<div class="scroll" tabindex="0" role="region" aria-label="Table">'
    reader.add_render_rule("table_open", lambda *_: f"{box}<table>")
    reader.add_render_rule("table_close", lambda *_: "</table></div>")
    return Markup(reader.render(text))


def quick_view(results: Results) -> tuple[str, list[str], list[tuple[str, list[str]]]] | None:
    """Title, quick columns, and a row for each method that has a quick run: mean ± sd (seeds), or why there is none."""
    paper = results.paper
    columns = [column for column in paper.columns["quick"] if column.name not in paper.large]
    by_method: dict[str, dict[str, str]] = {}
    for column in columns:
        for runs in results.runs(column):
            text = mean_text(tuple(measure(r, "top1_accuracy") for r in runs.done)) if runs.done else (
                "diverged" if runs.diverged else "no run yet")
            by_method.setdefault(runs.method.label, {})[column.name] = text
    rows = [(label, [texts.get(column.name, "not in this column") for column in columns]) for label, texts in by_method.items()
            if set(texts.values()) != {"no run yet"}]
    return (paper.title, [column.name for column in columns], rows) if rows else None
