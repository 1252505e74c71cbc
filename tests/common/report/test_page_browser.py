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
LAST_PAGES = 45  # of some 160: those behind the leaderboards, and the last of them

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
    assert tab.locator("article.card").count() == 6
    assert tab.locator("main td.cell").count() > 800
    assert tab.locator("html.scripted").count() == 1


def test_every_link_within_the_page_leads_somewhere(tab: "sync_api.Page") -> None:
    assert tab.evaluate("() => [...document.querySelectorAll('a')].filter(a => !document.querySelector(a.getAttribute('href')))"
                        ".map(a => a.outerHTML)") == []


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
    assert opened.is_visible()
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
    known = tab.evaluate("i => { const all = JSON.parse(document.getElementById('run-data').textContent);"
                         " return all.runs[i][all.fields.indexOf('key')]; }", int(places[0]))
    assert key == known
    tab.keyboard.press("Escape")
    assert not opened.is_visible()


def test_curves_end_where_the_run_ended(tab: "sync_api.Page") -> None:
    """The last point of the accuracy curve, read back from the drawing, is the last-epoch accuracy in the table below it."""
    tab.locator("#paper-mm td.cell button").first.click()
    last = float(tab.locator("#opened tbody tr", has_text="accuracy, last epoch").locator("td").first.inner_text())
    chart = tab.locator("#opened .chart").first
    low, high = (float(chart.locator("text").nth(i).text_content()) for i in (0, 2))
    y = float(chart.locator("path").first.get_attribute("d").rpartition(" ")[2])
    assert low + (126 - y) / (126 - 8) * (high - low) == pytest.approx(last, abs=0.3)
    tab.keyboard.press("Escape")


def test_the_keyboard_reaches_and_opens_a_cell(tab: "sync_api.Page") -> None:
    tab.evaluate("() => document.querySelector('#paper-mm .scroll').focus()")
    tab.keyboard.press("Tab")
    assert tab.evaluate("() => document.activeElement.matches('td.cell button[data-runs]')")
    assert tab.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.keyboard.press("Enter")
    assert tab.locator("#opened").is_visible()
    tab.keyboard.press("Escape")
    assert tab.evaluate("() => document.activeElement.matches('td.cell button[data-runs]')"), "the focus returns to the cell"


def test_the_first_tab_stop_skips_to_the_report(browser: "sync_api.Browser", address: str) -> None:
    watched = Watched(browser, address)
    watched.tab.keyboard.press("Tab")
    assert watched.tab.evaluate("() => document.activeElement.className") == "skip"
    assert watched.tab.locator(".skip").bounding_box()["y"] >= 0
    watched.close()


def test_best_epoch_is_a_toggle(tab: "sync_api.Page") -> None:
    cell = tab.locator("#paper-mm td.cell button").first
    before = cell.inner_text()
    tab.check("#best")
    after = cell.inner_text()
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


def test_it_prints_what_is_folded_and_hides_the_controls(browser: "sync_api.Browser", address: str) -> None:
    watched = Watched(browser, address)
    tab = watched.tab
    folded = tab.locator(".board table").nth(1)
    assert not folded.is_visible()
    tab.emulate_media(media="print")
    assert folded.is_visible()
    assert tab.locator("#mm-table-1 table").is_visible()
    assert tab.locator("#mm-differences table").first.is_visible()
    assert not tab.locator("#theme").is_visible()
    assert not tab.locator("nav.side").is_visible()
    assert tab.evaluate("() => getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    tab.emulate_media(media="screen")
    assert not folded.is_visible()
    watched.close()


def test_the_whole_page_prints_to_its_last_section(browser: "sync_api.Browser", address: str, tmp_path: Path) -> None:
    """From the page as it opens, with everything folded: the last leaderboard and all sections behind it are on paper."""
    pypdf = pytest.importorskip("pypdf", reason="reading the printed page needs `pip install pypdf`")
    watched = Watched(browser, address)
    last = watched.tab.locator(".board").last
    assert last.get_attribute("open") is None
    title, rows = last.locator("summary").inner_text(), last.locator("tbody th button").all_text_contents()
    watched.tab.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    watched.close()
    pages = pypdf.PdfReader(tmp_path / "report.pdf").pages
    text = [page.extract_text() for page in pages[-LAST_PAGES:]]
    for heading in ("Numbers or order?", "The same cell in several", "Rules of the verdicts", "A check that the code works"):
        assert any(heading in page for page in text), heading
    assert "Images are never redistributed" in text[-1]
    [(start, where)] = [(page.index(title[:40]), i) for i, page in enumerate(text) if title[:40] in page][-1:]
    assert all(name in "".join(text[where:where + 2])[start:] for name in rows)


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
