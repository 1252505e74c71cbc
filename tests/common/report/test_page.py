"""The report page: what it shows, that nothing on it is blank, and that no name or record can put code into it."""

import base64
import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from common.paper import Figure, Paper
from common.plan import plan
from common.report import claims, verdict
from common.report.page import page as page_module
from common.report.page.page import LEVELS, LIMIT, build_page, differences, fit, markdown
from common.report.page.pictures import pictures
from common.report.page.runs import DIGITS, commands, pack, run_data, thin
from common.report.page.views import CELL_WORDS, CLAIM_WORDS, Places, counts, paper_view, tone_of
from common.report.results import Results, results_of
from tests.common.report.test_claims import BETTER
from tests.common.report.test_tables import ERRORS
from tests.page_records import full_page
from tests.records import PUBLISHED, make_record, toy_paper, toy_records

README = """# Title
## Differences between paper, released code and this code

| item | written | released | here |
|---|---|---|---|
| scale | 10 <script>alert(1)</script> | [30](other.py) | each as it is |

Choices for the rest.

## Results
after
"""
VOID = {"meta", "input", "br", "img", "link", "path", "circle", "line"}


class Reader(HTMLParser):
    """The page as a browser would see it: elements with their attributes, and the text of each."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[tuple[str, dict[str, str], list[str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = (tag, {name: value or "" for name, value in attrs}, [])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        innermost = self.open[-1][0] if self.open else "nothing"
        assert innermost == tag, f"</{tag}> closes {innermost}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for _, _, text in self.open:
            text.append(data)

    def all(self, tag: str, **attributes: str) -> list[tuple[dict[str, str], str]]:
        """Attributes and text of the elements of a tag that have these attributes (`data_runs` is data-runs)."""
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [(has, " ".join("".join(text).split())) for found, has, text in self.elements
                if found == tag and all(value in has.get(name, "").split() for name, value in wanted.items())]


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert not reader.open, "an element is not closed"
    return reader


def run_json(reader: Reader) -> dict:
    [(_, text)] = reader.all("script", id="run-data")
    return named(json.loads(text))


def named(data: dict) -> dict:
    """The run data with the names of its fields at every run, as the script has it."""
    return data | {"runs": [dict(zip(data["fields"], row, strict=True)) for row in data["runs"]]}


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    made = toy_paper(tmp_path / "papers" / "toy", BETTER)
    (made.folder / "README.md").write_text(README)
    return made


def build(paper: Paper, records: dict, **more: object) -> Path:
    target = paper.folder.parents[1] / "report" / "index.html"
    build_page(results_of([paper], records, "paper"), paper.folder.parents[1] / "figures", more.get("said", {}), target)
    return target


@pytest.fixture
def page(paper: Paper) -> Reader:
    return read(build(paper, toy_records(paper, ERRORS) | toy_records(paper, ERRORS, "quick")))


def cell_texts(reader: Reader) -> list[str]:
    return [text for _, text in reader.all("td", class_="cell")]


# ---------------------------------------------------------------- what is on it


def test_a_cell_holds_published_ours_delta_verdict_and_the_best_epoch(page: Reader) -> None:
    # ce on cifar10-lt-100: printed 29.60, ours 29.70, 29.90, 30.10; the best epoch of a made record is 0.25 more accurate
    ours = "ours 29.90 ± 0.20 (3) ours at the best test epoch 29.65 ± 0.20 (3) = reproduced"
    assert f"+0.30printed 29.60 {ours}" in cell_texts(page)


def test_readings_stand_below_each_other_under_one_label(page: Reader) -> None:
    labels = [(has.get("rowspan"), text) for has, text in page.all("th", scope="rowgroup")]
    assert labels[:4] == [("1", "ERM"), ("1", "Ghost"), ("1", "Rival"), ("2", "OWN")]


def test_no_cell_is_blank(page: Reader) -> None:
    texts = [text for tag in ("td", "th", "dd") for _, text in page.all(tag)]
    assert texts
    assert all(texts), "a cell without text"
    found = " ".join(cell_texts(page))
    assert "not run: needs imagenet" in found
    assert "not run: no such method here" in found
    assert "not printed" in found
    assert "no run yet" in found


def test_the_front_counts_cells_claims_runs_and_minutes(page: Reader) -> None:
    [(_, card)] = page.all("article", class_="card")
    assert "2 reproduced" in card
    assert "7 no run yet" in card
    assert "1 holds" in card
    assert "21 runs, 10 device-minutes" in card  # 21 records of 30 seconds
    assert "make reproduce-toy" in card
    [(_, answer)] = [found for found in page.all("p", class_="answer") if "papers" in found[1]]
    assert "print 18 numbers" in answer
    assert "9 of them have a run" in answer


def test_a_claim_shows_quote_test_and_p_values(paper: Paper, page: Reader) -> None:
    [(_, claim)] = page.all("article", class_="claim")
    written, released = claims.evaluate(Results(paper, toy_records(paper, ERRORS), "paper"))
    assert written.claim.quote in claim
    assert "Test: own has a lower error than rival in each of 2 columns of table 1" in claim
    lead = f"smallest lead+{written.gap:.2f} in {written.where}p{written.p:.3g}p of the opposite"
    assert f"written✓ holds printed{written.printed} {lead}" in claim
    assert f"p, paired{written.p_paired:.3g}" in claim
    assert f"released? {released.verdict}" in claim


def test_rules_differences_and_quick_runs_are_there(page: Reader) -> None:
    [(_, rules)] = page.all("section", id="rules")
    assert verdict.RULE in rules
    assert claims.RULE in rules
    [(_, found)] = page.all("section", id="toy-differences")
    assert "each as it is" in found
    assert "after" not in found
    [(_, quick)] = page.all("section", id="quick")
    assert "digits-lt-20" in quick
    assert "rival@written" in quick


def test_before_the_first_run_every_part_says_so(paper: Paper) -> None:
    reader = read(build(paper, {}))
    text = " ".join(text for _, text in reader.all("main"))
    assert "None of them has a run of ours beside it yet" in text
    assert "No quick run has a record here" in text
    assert "No column has three methods with runs yet" in text
    assert not reader.all("button", class_="open")
    assert run_json(reader)["runs"] == []


# ---------------------------------------------------------------- the runs behind a cell


def test_a_cell_names_the_places_of_its_records(paper: Paper, page: Reader) -> None:
    data = run_json(page)
    records = toy_records(paper, ERRORS)
    [button] = [has for has, text in page.all("button") if "printed 29.60 ours 29.90 ± 0.20 (3)" in text]
    runs = [data["runs"][int(place)] for place in button["data-runs"].split(",")]
    assert [run["seed"] for run in runs] == [0, 1, 2]
    assert [round(100 - run["last"], 2) for run in runs] == [29.7, 29.9, 30.1]
    assert all(records[run["key"]]["spec"]["method"] == data["methods"][run["method"]] for run in runs)
    assert button["data-about"] == "Table 1 · ERM · written · cifar10-lt-100"
    assert "printed number is inside" in button["data-note"]


def test_a_cell_whose_runs_all_diverged_opens_them(paper: Paper) -> None:
    reader = read(build(paper, toy_records(paper, {"rival": [None, None]})))
    found = [has for has, text in reader.all("button") if text.endswith("diverged") and "22.10" in text]
    assert len(found) == 1
    data = run_json(reader)
    assert [data["runs"][int(i)]["status"] for i in found[0]["data-runs"].split(",")] == ["diverged", "diverged"]


def test_the_command_makes_the_run_again(paper: Paper) -> None:
    own = next(item for item in plan(paper, "paper") if item.method.label == "own[beta=1.0;delta=2.0]@written")
    record = make_record(own, 70.0)
    records = {record["key"]: record}
    data = named(run_data(records, list(records), commands(results_of([paper], records, "paper")), 10))
    # the label must survive a shell: brackets and a semicolon are quoted
    line = data["commands"][data["runs"][0]["again"]] + "3"
    said = subprocess.run(["sh", "-c", line.replace(".venv/bin/python", "printf '%s\\n'")], capture_output=True, text=True).stdout
    assert said.split("\n")[:-1] == ["-m", "papers.toy.replicate", "train", "--profile", "paper", "--column", "cifar10-lt-100",
                                     "--method", "own[beta=1.0;delta=2.0]@written", "--seeds", "3"]


def test_every_run_of_the_papers_has_a_command() -> None:
    """Large columns under torchrun, and stages that no table prints with a run that starts from them."""
    from papers.catalog import PAPERS

    found, starts = commands(results_of(PAPERS, {}, "paper")), 0
    for paper in PAPERS:
        names = tuple(column.name for column in paper.columns["paper"])
        for item in plan(paper, "paper", columns=names, seeds=1):
            line, start = found[item.spec.key], item.start
            assert line.startswith("torchrun" if item.spec.column.name in paper.large else ".venv/bin/python")
            assert line.endswith(" --seeds ")
            while start:
                starts += start.method.task != "classes"
                assert start.spec.key in found
                start = start.start
    assert starts
    gcl = next(paper for paper in PAPERS if paper.name == "gcl")
    [item] = plan(gcl, "paper", columns=("imagenet-lt-resnet50",), methods=("gcl@written",), seeds=1)
    assert found[item.spec.key] == (
        "torchrun --standalone --nproc-per-node=gpu --max-restarts=3 -m papers.gcl.replicate train "
        "--column imagenet-lt-resnet50 --method gcl@written --seeds ")


def unpack(text: str, top: float) -> list[float | None]:
    steps = [DIGITS.index(a) * 64 + DIGITS.index(b) for a, b in zip(text[::2], text[1::2], strict=True)]
    return [None if step == 4095 else step / 4094 * top for step in steps]


def test_packed_curves_come_back_to_a_tenth_of_a_thousandth_of_their_range() -> None:
    values = [0.0, 12.345, 50.0, 99.99, 100.0, None]
    back = unpack(pack(values, 100.0), 100.0)
    assert back[-1] is None
    assert back[:-1] == pytest.approx(values[:-1], abs=100 / 4094 / 2)
    assert pack([3.0, 250.0], 100.0) == pack([3.0, 100.0], 100.0)
    assert unpack(pack([0.0, 0.0], 0.0), 0.0) == [0.0, 0.0]


def test_thinned_curves_keep_both_ends() -> None:
    assert thin(list(range(200)), 60)[0] == 0
    assert thin(list(range(200)), 60)[-1] == 199
    assert len(thin(list(range(200)), 60)) == 60
    assert thin([1, 2], 60) == [1, 2]
    assert thin([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 5) == [0, 3, 5, 8, 10]


# ---------------------------------------------------------------- what may not happen


NASTY = "</script><script>window.stolen=1</script><!--<img src=x onerror=window.stolen=1>\"'`"


def nasty_paper(folder: Path) -> Paper:
    """Code in a method's name, a row's label, a claim's quote and section, a table's caption and a figure's caption."""
    rows = tuple(row.replace("row=ERM", f"row={NASTY}".replace(",", "")) for row in PUBLISHED)
    quoted = BETTER.replace("quote: ", f"means: {json.dumps(NASTY)}\n  quote: ", 1)
    made = toy_paper(folder, quoted, rows)
    (folder / "README.md").write_text(README)

    def methods(column, protocols):
        first, *others = made.methods(column, protocols)
        return (first, replace(first, name=NASTY, variant=NASTY), *others)

    tables = tuple(replace(table, caption=NASTY) for table in made.tables)
    return replace(made, title=NASTY, methods=methods, tables=tables, figures=(Figure("9", NASTY, lambda *_: ""),))


def test_nothing_from_names_claims_or_records_becomes_code(tmp_path: Path) -> None:
    paper = nasty_paper(tmp_path / "papers" / "toy")
    records = toy_records(paper, {**ERRORS, NASTY: [30.0, 31.0, 32.0]})
    fields = {"device": NASTY, "commit": NASTY, "torch": NASTY, "precision": NASTY, "finished": NASTY}
    records = {key: {**record, "label": NASTY, "made": {**record["made"], **fields}} for key, record in records.items()}
    target = build(paper, records, said={"toy": [f"Figure 9: {NASTY}"]})
    reader = read(target)
    assert {tag for tag, _, _ in reader.elements} <= KNOWN_TAGS
    assert [has.get("id", "") for has, _ in reader.all("script")] == ["run-data", "pair-data", ""]
    assert not [name for _, has, _ in reader.elements for name in has if name.startswith("on")]
    assert NASTY in run_json(reader)["commits"]
    text = " ".join(text for _, text in reader.all("main"))
    assert text.count("window.stolen=1</script>") > 10, "the names are there, as text"
    assert "<!--" not in target.read_text()


KNOWN_TAGS = {
    "html", "head", "meta", "title", "style", "body", "a", "header", "label", "input", "button", "div", "nav", "ul", "li",
    "main", "section", "h1", "h2", "h3", "h4", "p", "span", "noscript", "code", "article", "dl", "dt", "dd", "table", "thead",
    "tbody", "tr", "th", "td", "b", "details", "summary", "q", "figure", "figcaption", "output", "svg", "path", "circle",
    "footer", "dialog", "script", "select",
}


def test_only_the_pages_own_script_may_run(page: Reader, paper: Paper) -> None:
    [(_, script)] = [found for found in page.all("script") if not found[0]]
    [policy] = [has["content"] for has, _ in page.all("meta") if has.get("http-equiv") == "Content-Security-Policy"]
    raw = re.search(r"<script>(.*?)</script>", build(paper, {}).read_text(), re.DOTALL)[1]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(raw.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy
    assert script


def test_markdown_escapes_html_and_keeps_no_link(paper: Paper) -> None:
    found = str(differences(paper))
    assert "<script>" not in found
    assert "&lt;script&gt;" in found
    assert "<td>30</td>" in found
    assert "Results" not in found
    assert str(markdown("a <b>c</b> [x](javascript:alert(1)) <http://a.example>")) == (
        "<p>a &lt;b&gt;c&lt;/b&gt; [x](javascript:alert(1)) &lt;http://a.example&gt;</p>\n")


def test_a_readme_without_the_section_is_named_on_the_page(paper: Paper) -> None:
    (paper.folder / "README.md").write_text("# Title\n")
    assert "papers/toy/README.md has no section" in str(differences(paper))


def test_the_page_loads_nothing(page: Reader) -> None:
    for _, has, _ in page.elements:
        for name in ("src", "href", "data", "action", "poster"):
            assert has.get(name, "#").startswith(("#", "data:")), has
    [(_, style)] = page.all("style")
    assert "url(" not in style
    assert "@import" not in style


# ---------------------------------------------------------------- figures and size


def figures(folder: Path, sizes: dict[str, int]) -> Iterator[Figure]:
    folder.mkdir(parents=True)
    for number, size in sizes.items():
        (folder / f"figure-{number}.svg").write_text("<svg>" + "x" * size + "</svg>")
        yield Figure(number, f"Caption {number}", lambda *_: "")


def test_as_many_figures_as_fit_are_inlined_and_the_rest_are_named(paper: Paper, tmp_path: Path) -> None:
    chosen = replace(paper, figures=(*figures(tmp_path / "figures" / "toy", {"1": 5000, "2": 300, "3": 600, "5": 500}),
                                     Figure("4", "Caption 4", lambda *_: "")))
    [found] = pictures([chosen], tmp_path / "figures", {"toy": ["Figure 4: no run of own yet"]}, 1000).values()
    # with 38 bytes around each, 338 + 538 fit into 1000 and 638 does not any more
    assert [picture.number for picture in found if picture.uri] == ["2", "5"]
    assert found[0].instead == "too large for this page; see figures/toy/figure-1.png"
    assert found[4].instead == "no run of own yet"
    assert found[1].uri.startswith("data:image/svg+xml,%3Csvg%3Exxx")


def test_curves_are_thinned_until_the_page_fits() -> None:
    runs, pairs = {60: "x" * 600, 30: "x" * 300, 12: "x" * 120}, {"all": "y" * 400, "main": "y" * 200, "none": ""}

    def fitted(room: int) -> tuple[int, int, str]:
        left, (some, others) = fit(runs.__getitem__, pairs.__getitem__, room)
        return left, len(some) // 10, next(share for share, text in pairs.items() if text == others)

    assert fitted(1100) == (100, 60, "all")
    assert fitted(999) == (299, 30, "all")
    assert fitted(600) == (80, 12, "all")
    assert fitted(519) == (19, 30, "main")
    assert fitted(499) == (179, 12, "main")
    assert fitted(319) == (199, 12, "none")
    assert fitted(5) == (0, 12, "none")


def test_the_page_of_three_thousand_records_can_be_sent_in_a_mail() -> None:
    path, line, number = full_page()
    assert number > 3000
    assert path.stat().st_size < LIMIT == 7_000_000
    assert "above the limit" not in line
    data = run_json(read(path))
    assert len(data["runs"]) > 2500
    assert all(len(run["test"]) >= 2 * min(run["epochs"], LEVELS[-1][0]) for run in data["runs"])


# ---------------------------------------------------------------- counting


def test_numbers_of_four_digits_are_written_alike() -> None:
    text = " ".join(text for _, text in read(full_page()[0]).all("section", id="front"))
    assert re.search(r"print \d \d{3} numbers", text)
    assert not re.findall(r"\b\d{4,} (?:numbers|of|runs|device|no run|[a-z]+ed)", text)


def test_counts_come_in_a_fixed_order_and_every_verdict_has_a_sign() -> None:
    found = counts(["near", "better", "reproduced", "near"], ("reproduced", "near", "better", "worse"))
    expected = [("reproduced", 1, "="), ("near", 2, "≈"), ("better", 1, "▲")]
    assert [(count.word, count.number, count.sign) for count in found] == expected
    possible = {verdict.cell_verdict((30 + delta / 4 - sd, 30 + delta / 4, 30 + delta / 4 + sd), 30.0, "top1_error", 1.0)
                for delta in range(-20, 21) for sd in (0.1, 0.6, 3.0)}
    assert possible == set(verdict.VERDICTS) - {"not comparable"}
    assert all(count.sign != "·" for count in counts(verdict.VERDICTS, CELL_WORDS))
    tones = {count.word: count.tone for count in counts(CELL_WORDS, CELL_WORDS)}
    others = {tone for word, tone in tones.items() if word not in ("better", "worse")}
    assert tones["better"] != tones["worse"]
    assert not {tones["better"], tones["worse"]} & others
    assert tones["not comparable"] != "none"  # it has runs
    assert [(count.sign, count.tone) for count in counts(["undecided"], CELL_WORDS)] == [("?", "near")]
    assert [tone_of(word) for word in ("holds", "fails", "undecided", "no run yet")] == ["reproduced", "off", "near", "none"]


def test_every_verdict_can_be_read_on_its_cell_in_light_and_dark() -> None:
    """WCAG AA for small text, 4.5 to 1, on the sheet and on the tint of a cell under the pointer; no two tones share a colour."""
    css = (Path(page_module.__file__).parent / "style.css").read_text()
    pairs = dict(re.findall(r"--([a-z]+): light-dark\((.*?)\);", css))
    of = dict(re.findall(r"\.t-([a-z]+) \{ --tone: var\(--([a-z]+)\)", css))
    assert set(of) == {tone_of(word) for word in (*CELL_WORDS, *CLAIM_WORDS)}
    tones = {pairs[of[tone]] for tone in of if tone != "none"}
    assert len(tones) == len(of) - 1
    for scheme in (0, 1):
        sheet, *colours = ([int(pair.split(", ")[scheme][i:i + 2], 16) for i in (1, 3, 5)] for pair in (pairs["sheet"], *tones))
        for colour in colours:
            tint = [0.16 * a + 0.84 * b for a, b in zip(colour, sheet, strict=True)]
            assert min(contrast(colour, sheet), contrast(colour, tint)) >= 4.5


def contrast(one: list[float], other: list[float]) -> float:
    """The contrast ratio of two sRGB colours, by WCAG 2."""
    def luminance(colour: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour)]
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_run_that_several_cells_print_is_one_run(paper: Paper) -> None:
    again = toy_paper(paper.folder, BETTER, (*PUBLISHED, "3,cifar10,lt,100,own,ours,22.00,"))
    records = toy_records(again, ERRORS)
    places = Places(records)
    view = paper_view(Results(again, records, "paper"), places)
    assert view.runs == len({key for key in places.keys if records[key]["status"] == "done"}) == 21
    assert sorted(places.keys.values()) == list(range(len(places.keys)))
