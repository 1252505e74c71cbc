"""The report page in a real headless Chromium, at full size: no error, no request, and everything that can be pressed works."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.report.verdict import VERDICTS
from tests.page_records import full_page

sync_api = pytest.importorskip("playwright.sync_api", reason="the page's browser tests need `pip install playwright`")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is on the PATH (Debian: apt-get install chromium)")
WIDTHS = (360, 768, 1440)
MOST_PAGES = 40  # on paper: the front, the claims and tables of six papers, the rules

# Text may run over its box only inside something that scrolls sideways, or where it is hidden on purpose.
OVERFLOW = """() => {
  const found = [];
  if (document.documentElement.scrollWidth > innerWidth) found.push(`page: ${document.documentElement.scrollWidth}`);
  for (const element of document.querySelectorAll('body, body *')) {
    if (element.closest('svg, script, .unseen, dialog:not([open])') || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    if (['auto', 'scroll'].includes(style.overflowX) || style.display === 'inline') continue;
    if (element.scrollWidth > element.clientWidth + 1)
      found.push(`${element.tagName}.${element.className} ${element.scrollWidth} > ${element.clientWidth}: ` +
                 element.textContent.trim().slice(0, 60));
  }
  return found.slice(0, 8);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def address() -> str:
    return full_page()[0].as_uri()


class Watched:
    """A tab at a width, and what it complained about or asked for beside its own file."""

    def __init__(self, browser: "sync_api.Browser", address: str, width: int = 1440, **more: object):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **more)
        self.tab = self.context.new_page()
        self.said: list[str] = []
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("request", lambda request: self.said.append(request.url))
        self.tab.goto(address)

    def close(self) -> None:
        own = self.tab.url.partition("#")[0]
        self.context.close()
        assert [said for said in self.said if said != own and not said.startswith("data:")] == []


@pytest.fixture(scope="module")
def watched(browser: "sync_api.Browser", address: str) -> Iterator[Watched]:
    """One tab for the tests that leave it as they found it; closing it checks that it was silent and offline throughout."""
    found = Watched(browser, address)
    yield found
    found.close()


@pytest.fixture
def tab(watched: Watched) -> "sync_api.Page":
    return watched.tab


def column(tab: "sync_api.Page", place: int) -> list[str]:
    return tab.eval_on_selector_all(
        ".board[open] tbody tr", "(rows, i) => rows.filter(r => !r.hidden).map(r => r.children[i].textContent)", place)


def test_it_loads_whole(tab: "sync_api.Page") -> None:
    assert tab.title() == "Long-tailed image recognition, replicated"
    assert tab.locator(".answers li").count() == 6
    assert tab.locator(".squares a").count() == 747
    assert tab.locator("main td.cell").count() > 800
    assert tab.locator("html.scripted").count() == 1


def test_every_link_within_the_page_leads_somewhere(tab: "sync_api.Page") -> None:
    assert tab.evaluate("() => [...document.querySelectorAll('a[href]')].filter(a => !document.getElementById(a.hash.slice(1)))"
                        ".map(a => a.outerHTML)") == []


CELL = "mm-1-mm-drw-written-cifar10-lt-100"


def test_an_address_leads_to_its_cell_whatever_is_filtered(browser: "sync_api.Browser", address: str) -> None:
    watched = Watched(browser, f"{address}#{CELL}")
    tab, cell = watched.tab, watched.tab.locator(f"[id='{CELL}']")
    tab.wait_for_function("id => document.activeElement.parentNode.id === id", arg=CELL)
    assert 0 < cell.bounding_box()["y"] < 900
    tab.select_option("#paper-mm select.verdicts", "holds")
    assert not cell.is_visible()
    tab.evaluate("() => { location.hash = '#front'; }")
    tab.evaluate("id => { location.hash = id; }", f"#{CELL}")
    cell.wait_for()
    assert tab.locator("#paper-mm select.verdicts").input_value() == ""
    watched.close()


def test_a_cell_says_where_it_comes_from(tab: "sync_api.Page") -> None:
    tab.locator(f"[id='{CELL}'] button").click()
    tab.locator("#opened").wait_for()
    links = dict(tab.eval_on_selector_all("#opened .sources a", "all => all.map(a => [a.textContent, a.getAttribute('href')])"))
    assert links[f"#{CELL}"] == f"#{CELL}"
    assert "../papers/mm/published.csv" in links.values()
    assert "../papers/mm/tables/paper/table-1.csv" in links.values()
    assert any(name.startswith("papers/mm/replicate.py, line ") for name in links)
    assert "mm-drw@written --seeds 4 --retrain" in tab.locator("#opened pre").first.inner_text()
    tab.keyboard.press("Escape")


def test_a_number_without_runs_says_how_it_is_made(tab: "sync_api.Page") -> None:
    cell = tab.locator("td.cell button[data-runs=''][data-way]").first
    cell.click()
    tab.locator("#opened").wait_for()
    assert tab.locator("#opened .chart").count() == 0
    assert "--seeds 3" in tab.locator("#opened pre").first.inner_text()
    tab.keyboard.press("Escape")


def test_a_table_sorts_by_verdict_and_back_into_the_papers_order(tab: "sync_api.Page") -> None:
    table = tab.locator("#mm-table-1 table")
    labels = table.locator("tbody th").all_inner_texts()
    words = "rows => rows.map(row => row.children[2].querySelector('.verdict')?.textContent.trim().slice(2) ?? '')"
    table.locator("thead button").nth(2).click()
    found = tab.eval_on_selector_all("#mm-table-1 tbody tr", words)
    order = [word for word in (*VERDICTS, "") if word in found]
    assert list(dict.fromkeys(found)) == order
    assert len(order) > 2
    table.locator("thead button").first.click()
    assert table.locator("tbody th").all_inner_texts() == labels


def test_tables_and_claims_are_filtered_by_verdict(tab: "sync_api.Page") -> None:
    paper = tab.locator("#paper-mm")
    paper.locator("select.verdicts").select_option("worse")
    rows = tab.eval_on_selector_all("#paper-mm tr[data-words]", "all => all.filter(r => !r.hidden).map(r => r.dataset.words)")
    assert rows
    assert all("worse" in words.split("|") for words in rows)
    assert not paper.locator("table.claims").is_visible()
    assert f"{len(rows)} of " in paper.locator(".tools output").inner_text()
    paper.locator("select.verdicts").select_option("")
    assert paper.locator("table.claims").is_visible()
    assert paper.locator("tr[data-words][hidden]").count() == 0


def test_the_contents_follow_and_stay_on_a_phone(browser: "sync_api.Browser", address: str) -> None:
    for width in (390, 1400):
        watched = Watched(browser, address, width)
        tab = watched.tab
        tab.evaluate("() => document.getElementById('kps-table-3.3').scrollIntoView()")
        tab.wait_for_function("() => document.querySelector('.side [aria-current]').hash === '#kps-table-3.3'")
        paper = tab.locator(".side > ul > li > a", has_text="KPS").bounding_box()
        assert 0 <= paper["x"] < width
        assert 0 <= paper["y"] < 900
        assert tab.locator(".side a[href='#kps-table-3.3']").is_visible() == (width > 1000)
        watched.close()


def test_a_leaderboard_sorts_both_ways_with_what_is_missing_last(tab: "sync_api.Page") -> None:
    board = tab.locator(".board[open]").first
    accuracy = board.locator("thead th", has_text="accuracy")
    accuracy.locator("button").click()
    assert accuracy.get_attribute("aria-sort") == "descending"
    first = [float(text) for text in column(tab, 2) if text != "–"]
    assert first == sorted(first, reverse=True)
    assert len(set(first)) > 10
    accuracy.locator("button").click()
    assert accuracy.get_attribute("aria-sort") == "ascending"
    assert [float(text) for text in column(tab, 2) if text != "–"] == sorted(first)
    assert board.locator("th[aria-sort]").count() == 1
    board.locator("thead th", has_text="rank").locator("button").click()
    ranks = [text for text in column(tab, 1)]
    assert ranks[0].startswith("1 (")
    missing = [text == "–" for text in ranks]
    assert missing == sorted(missing)
    assert any(missing)


def test_the_filter_keeps_the_rows_of_a_method_on_every_board(tab: "sync_api.Page") -> None:
    rows = tab.locator(".board tbody tr").count()
    tab.fill("#method-filter", "ldam DRW")
    shown = tab.eval_on_selector_all(".board tbody tr", "rows => rows.filter(r => !r.hidden).map(r => r.dataset.method)")
    assert 0 < len(shown) < rows
    assert all("ldam" in name and "drw" in name for name in shown)
    assert tab.locator("#filter-count").inner_text() == f"{len(shown):,} of {rows:,} rows".replace(",", " ")
    assert tab.locator(".board:visible:not([open])").count() == 0
    tab.fill("#method-filter", "no such method")
    assert tab.locator(".board:visible").count() == 0
    assert tab.get_by_text("No method matches.").is_visible()
    tab.fill("#method-filter", "")
    assert tab.locator(".board tbody tr:not([hidden])").count() == rows
    assert not tab.get_by_text("No method matches.").is_visible()
    opened = tab.eval_on_selector_all(".board", "boards => boards.map(board => board.open)")
    assert opened == [True] + [False] * (len(opened) - 1), "only what was open before"


def test_two_methods_are_compared_on_the_same_images(tab: "sync_api.Page") -> None:
    """The two first methods of a column, all their seeds: accuracies, interval, classes in any order, fifty images."""
    for name in ("first", "second"):
        methods = tab.eval_on_selector_all(f"#pair-{name} option",
                                           "all => all.filter(o => /seeds/.test(o.text)).map(o => o.value)")
        tab.select_option(f"#pair-{name}", methods[name == "second"])
    result = tab.locator("#pair-result")
    result.locator("table").wait_for()
    facts = dict(zip(result.locator("dt").all_inner_texts(), result.locator("dd").all_inner_texts(), strict=True))
    first, second = (float(facts[f"accuracy, {name}"].removesuffix(" %")) for name in ("first", "second"))
    assert float(facts["difference, first − second"].removesuffix(" points")) == pytest.approx(first - second, abs=0.011)
    low, high = map(float, facts["95 % interval"].split(" to "))
    assert low <= first - second <= high
    counted = [int(facts[name].partition(" (")[0].replace(" ", ""))
               for name in ("only the first right", "only the second right", "both right", "neither right")]
    assert sum(counted) == 40_000  # four seeds of 10,000 images
    assert result.locator("tbody tr").count() in (10, 100)
    assert result.locator(".images").inner_text().count("(class") == 50
    result.locator("thead th", has_text="difference").locator("button").click()
    gaps = [float(text) for text in result.locator("tbody td:nth-child(5)").all_inner_texts()]
    assert gaps == sorted(gaps)
    runs = tab.eval_on_selector_all("#pair-first option", "all => all.filter(o => o.value.includes(',')).map(o => o.value)")
    tab.select_option("#pair-first", runs[0])
    tab.select_option("#pair-second", runs[-1])
    result.get_by_text("there is no interval").wait_for()


def test_a_cell_opens_its_runs(tab: "sync_api.Page") -> None:
    cell = tab.locator("#paper-mm td.cell button").first
    places = cell.get_attribute("data-runs").split(",")
    cell.click()
    opened = tab.locator("#opened")
    opened.wait_for()
    assert opened.locator("h2").inner_text() == cell.get_attribute("data-about")
    text = opened.inner_text()
    assert opened.locator("thead th").count() == len(places)
    assert opened.locator(".chart path").count() == 2 * len(places)
    assert opened.locator(".chart rect").count() == 10
    for words in ("NVIDIA", "000000000000", "bfloat16", ".venv/bin/python -m papers.", "--seeds 4", "prediction interval"):
        assert words in text, words
    opened.locator("summary").click()
    assert '"weight_decay"' in opened.inner_text()
    key = opened.locator("td.key").first.inner_text()
    known = tab.evaluate("async i => { const data = await paired.inflate(document.getElementById('run-data').textContent);"
                         " return JSON.parse(new TextDecoder().decode(data)).runs.key[i]; }", int(places[0]))
    assert key == known
    tab.keyboard.press("Escape")
    assert not opened.is_visible()


def test_curves_end_where_the_run_ended(tab: "sync_api.Page") -> None:
    """The last point of the accuracy curve, read back from the drawing, is the last-epoch accuracy in the table below it."""
    tab.locator("#paper-mm td.cell button").first.click()
    tab.locator("#opened").wait_for()
    last = float(tab.locator("#opened tbody tr", has_text="accuracy, last epoch").locator("td").first.inner_text())
    chart = tab.locator("#opened .chart").first
    low, high = (float(chart.locator("text").nth(i).text_content()) for i in (0, 2))
    y = float(chart.locator("path").first.get_attribute("d").rpartition(" ")[2])
    assert low + (126 - y) / (126 - 8) * (high - low) == pytest.approx(last, abs=0.3)
    tab.keyboard.press("Escape")


def test_the_keyboard_reaches_and_opens_a_cell(tab: "sync_api.Page") -> None:
    tab.evaluate("() => [...document.querySelectorAll('#mm-table-1 thead button')].at(-1).focus()")
    tab.keyboard.press("Tab")
    assert tab.evaluate("() => document.activeElement.matches('td.cell button[data-runs]')")
    assert tab.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.keyboard.press("Enter")
    tab.locator("#opened").wait_for()
    tab.keyboard.press("Escape")
    assert tab.evaluate("() => document.activeElement.matches('td.cell button[data-runs]')"), "the focus returns to the cell"


def test_the_first_tab_stop_skips_to_the_report(browser: "sync_api.Browser", address: str) -> None:
    watched = Watched(browser, address)
    watched.tab.keyboard.press("Tab")
    assert watched.tab.evaluate("() => document.activeElement.className") == "skip"
    assert watched.tab.locator(".skip").bounding_box()["y"] >= 0
    watched.close()


COLOUR = "button => getComputedStyle(button.parentNode).backgroundColor"


def test_best_epoch_is_a_toggle(tab: "sync_api.Page") -> None:
    cell = tab.locator("#paper-mm td.cell button").first
    before, colour = cell.inner_text(), cell.evaluate(COLOUR)
    tab.check("#best")
    after = cell.inner_text()
    assert cell.evaluate(COLOUR) != colour, "no verdict, so none of its colours"
    assert "ours at the best test epoch" in after
    assert "ours at the best" not in before
    assert any(word in before for word in VERDICTS)
    assert not any(word in after for word in VERDICTS), "the best epoch has no verdict"
    board = tab.locator(".board[open]").first
    assert board.locator("th.best").is_visible()
    assert board.locator("thead th").nth(1).inner_text().startswith("rank (last epoch)")
    assert tab.get_by_text("Of the best test epoch only the accuracy is shown").is_visible()
    tab.uncheck("#best")
    assert board.locator("thead th").nth(1).inner_text().startswith("rank")
    assert "last epoch" not in board.locator("thead th").nth(1).inner_text()
    assert cell.inner_text() == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_and_the_switch(browser: "sync_api.Browser", address: str, scheme: str) -> None:
    watched = Watched(browser, address, color_scheme=scheme)
    tab = watched.tab

    def is_dark() -> bool:
        colour = tab.evaluate("() => getComputedStyle(document.body).backgroundColor")
        return int(colour.removeprefix("rgb(").split(",")[0]) < 128

    assert is_dark() == (scheme == "dark")
    assert tab.locator("#theme").inner_text() == ("Light" if scheme == "dark" else "Dark")
    tab.click("#theme")
    assert is_dark() == (scheme == "light")
    tab.reload()
    assert is_dark() == (scheme == "light"), "the choice is remembered"
    watched.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_no_text_overflows(browser: "sync_api.Browser", address: str, width: int) -> None:
    watched = Watched(browser, address, width)
    watched.tab.evaluate("() => document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert watched.tab.evaluate(OVERFLOW) == []
    watched.tab.locator("#paper-mm td.cell button").first.click()
    watched.tab.locator("#opened summary").click()
    assert watched.tab.evaluate(OVERFLOW) == []
    watched.close()


def test_it_prints_the_front_and_the_tables(browser: "sync_api.Browser", address: str, tmp_path: Path) -> None:
    """Every row of every table and claim, the matrix and the rules are on paper; what is to be pressed is not."""
    pypdf = pytest.importorskip("pypdf", reason="reading the printed page needs `pip install pypdf`")
    watched = Watched(browser, address)
    tab = watched.tab
    tab.emulate_media(media="print")
    assert tab.locator("#mm-table-1 table").is_visible()
    assert tab.locator(".matrix").is_visible()
    for hidden in ("#theme", "nav.side", "#boards", "#mm-differences", "#paper-mm .tools", "#mm-figures"):
        assert not tab.locator(hidden).is_visible(), hidden
    assert tab.evaluate("() => getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    rows = tab.eval_on_selector_all("#gcl-table-5.2 tbody th".replace(".2", "\\.2"), "all => all.map(th => th.textContent)")
    tab.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    watched.close()
    pages = [page.extract_text() for page in pypdf.PdfReader(tmp_path / "report.pdf").pages]
    assert 10 < len(pages) < MOST_PAGES
    assert "Papers and datasets" in pages[0]
    text = "".join(pages)
    assert len(rows) > 10
    assert all(label in text for label in rows)
    assert "Rules of the verdicts" in text
    assert "Images are never redistributed" in pages[-1]


def test_it_reads_without_javascript(browser: "sync_api.Browser", address: str) -> None:
    watched = Watched(browser, address, java_script_enabled=False)
    text = watched.tab.inner_text("#mm-table-1")
    assert "LDAM-DRW" in text
    assert "reproduced" in text
    assert "does not open its runs" in watched.tab.inner_text("#front")
    assert not watched.tab.locator("#method-filter").is_visible()
    watched.tab.check("#best")
    assert watched.tab.locator("#mm-table-1 .ours.best").first.is_visible()
    watched.close()


def test_an_injected_script_would_not_run(browser: "sync_api.Browser", address: str, tmp_path: Path) -> None:
    """The second line of defence: even if markup got in, the policy lets no other script run and no handler fire."""
    page = Path(address.removeprefix("file://")).read_text(encoding="utf-8")
    markup = "<script>window.stolen = 1</script><img src='data:,' onerror='window.stolen = 2'></main>"
    assert page.count("</main>") == 1
    (tmp_path / "attacked.html").write_text(page.replace("</main>", markup), encoding="utf-8")
    (tmp_path / "open.html").write_text(f"<main>{markup}", encoding="utf-8")
    tab = browser.new_page()
    for name, stolen in (("open.html", 2), ("attacked.html", None)):  # the markup does work where no policy is
        tab.goto((tmp_path / name).as_uri())
        tab.wait_for_timeout(200)
        assert tab.evaluate("() => window.stolen") == stolen
    assert tab.locator("html.scripted").count() == 1
    tab.close()
