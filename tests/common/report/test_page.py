"""The report page: what it shows, that nothing on it is blank, and that no name or record can put code into it."""

import base64
import hashlib
import inspect
import json
import re
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from common.paper import Figure, Paper
from common.plan import plan
from common.report import claims, compare, verdict
from common.report.answer import answer_of
from common.report.page import page as page_module
from common.report.page.filters import CELL_WORDS, CLAIM_WORDS, best_tone, counts, sign, slug, tone
from common.report.page.page import LEVELS, LIMIT, build_page, differences, fit, markdown
from common.report.page.pictures import pictures
from common.report.page.runs import Sources, deflated, equations, plans, run_data, thin
from common.report.page.views import paper_part
from common.report.results import Results, results_of
from common.store import save_record
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
    return by_run(json.loads(zlib.decompress(base64.b64decode(text))))


def by_run(data: dict) -> dict:
    """The run data with the names of its fields at every run, as the script has it."""
    return data | {"runs": [dict(zip(data["runs"], values, strict=True)) for values in zip(*data["runs"].values(), strict=True)]}


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
    assert f"+0.30+0.05printed 29.60 {ours}" in cell_texts(page)


def test_variants_stand_below_each_other_each_with_its_label(page: Reader) -> None:
    labels = [(has["class"], text) for has, text in page.all("tr", class_="again")]
    assert len(labels) == 3  # own is trained in two variants: a row of Table 1, and two settings of Table 2
    assert all(text.startswith("OWN") and "released" in text for _, text in labels)


def test_no_cell_is_blank(page: Reader) -> None:
    texts = [text for tag in ("td", "th", "dd") for _, text in page.all(tag)]
    assert texts
    assert all(texts), "a cell without text"
    found = " ".join(cell_texts(page))
    assert "not run: needs imagenet" in found
    assert "not run: no such method here" in found
    assert "not printed" in found
    assert "no run yet" in found


def test_the_front_answers_first(paper: Paper, page: Reader) -> None:
    """18 cells print 12 numbers: that of own counts once, in its written variant."""
    [(_, front)] = page.all("section", id="front")
    cells = [has["id"] for has, _ in page.all("td", class_="cell") if "id" in has]
    assert len(cells) == 18
    answer = answer_of(paper, compare.cells(Results(paper, toy_records(paper, ERRORS), "paper")), [],
                       claims.evaluate(Results(paper, toy_records(paper, ERRORS), "paper")))
    assert f"{len(answer.numbers)} numbers. Each is counted once" in front
    assert len(answer.numbers) == len(PUBLISHED) < 18
    assert "Headlines: 0 of 1 reproduced (1 better)" in front
    assert "21 runs and 10 device-minutes" in front  # 21 records of 30 seconds
    assert "Headline: reported 22.00, ours 20.10 ± 0.10 (3), better" in front


def test_the_matrix_has_a_square_for_every_printed_number(page: Reader) -> None:
    [(_, front)] = page.all("section", id="front")
    links = [has["href"] for has, _ in page.all("a") if has.get("tabindex") == "-1"]
    there = {has["id"] for has, _ in page.all("td", class_="cell") if "id" in has}
    assert len(links) == len(set(links)) == len(PUBLISHED)
    assert {link.removeprefix("#") for link in links} <= there
    assert "cifar10" in front


def test_every_cell_has_an_address_of_its_own() -> None:
    reader = read(full_page()[0])
    found = [has["id"] for _, has, _ in reader.elements if "id" in has]
    assert len(found) == len(set(found))
    cells = [has.get("id") for has, text in reader.all("td", class_="cell") if text != "not printed"]
    assert sum(place is not None for place in cells) == 1078
    assert "mm-1-mm-drw-written-cifar10-lt-100" in cells
    assert len([has for has, _ in reader.all("a") if has.get("tabindex") == "-1"]) == 747
    assert slug("Two Head", "", "a=1;b=2") == "two-head-a-1-b-2"


def test_a_claim_shows_quote_test_and_p_values(paper: Paper, page: Reader) -> None:
    rows = [text for has, text in page.all("tr") if "data-words" in has and text.startswith("own-beats-rival")]
    written, released = claims.evaluate(Results(paper, toy_records(paper, ERRORS), "paper"))
    assert written.claim.quote in rows[0]
    assert "own has a lower error than rival in each of 2 columns of table 1" in rows[0]
    values = (written.printed, f" {written.gap:+.2f} in {written.where}", *(f"{p:.3g}" for p in (
        written.p, written.p_against, written.p_paired)))
    assert "written✓ holds" + "".join(values) in rows[0]
    assert f"released? {released.verdict}" in rows[1]


def test_every_row_names_its_verdicts_for_the_filter(page: Reader) -> None:
    words = [has["data-words"] for has, _ in page.all("tr") if "data-words" in has]
    assert "holds" in words
    options = {text for _, text in page.all("option")}
    assert {word for some in words for word in some.split("|") if word} <= options | {"follows from"}
    assert "reproduced" in options


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
    assert "no number has runs of ours; ranking tau: too few runs" in text
    assert "No quick run has a record here" in text
    assert "No column has three methods with runs yet" in text
    assert not reader.all("button", class_="open")
    data = run_json(reader)
    assert data["runs"] == []
    [cell] = [has for has, text in reader.all("button") if has.get("data-about") == "Table 1 · ERM · written · cifar10-lt-100"]
    assert cell["data-runs"] == ""  # nothing to draw, yet it says how it is made
    way = data["ways"][int(cell["data-way"])]
    assert way["command"].endswith("--column cifar10-lt-100 --method ce@written --seeds ")
    assert way["equations"][0][:2] == ["loss", "some_loss"]


# ---------------------------------------------------------------- the runs behind a cell


def test_a_cell_names_the_places_of_its_records(paper: Paper, page: Reader) -> None:
    data = run_json(page)
    records = toy_records(paper, ERRORS)
    [button] = [has for has, text in page.all("button") if "printed 29.60 ours 29.90 ± 0.20 (3)" in text]
    runs = [data["runs"][int(place)] for place in button["data-runs"].split(",")]
    assert [run["seed"] for run in runs] == [0, 1, 2]
    assert [round(100 - run["last"], 2) for run in runs] == [29.7, 29.9, 30.1]
    assert all(records[run["key"]]["spec"]["method"] == data["ways"][run["way"]]["method"] for run in runs)
    assert {run["way"] for run in runs} == {int(button["data-way"])}, "a cell and its runs are made in one way"
    printed = (paper.folder / "published.csv").read_text().splitlines()[int(button["data-line"]) - 1]
    assert "29.60" in printed
    assert ",ce," in printed
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
    sources = Sources(results_of([paper], records, "paper"))
    sources.runs(records)
    data = by_run(run_data(sources, plans(results_of([paper], records, "paper")), 10))
    # the label must survive a shell: brackets and a semicolon are quoted
    line = data["ways"][data["runs"][0]["way"]]["command"] + "3"
    said = subprocess.run(["sh", "-c", line.replace(".venv/bin/python", "printf '%s\\n'")], capture_output=True, text=True).stdout
    assert said.split("\n")[:-1] == ["-m", "papers.toy.replicate", "train", "--profile", "paper", "--column", "cifar10-lt-100",
                                     "--method", "own[beta=1.0;delta=2.0]@written", "--seeds", "3"]


def test_every_run_of_the_papers_has_a_command() -> None:
    """Large columns under torchrun, and stages that no table prints with a run that starts from them."""
    from papers.catalog import PAPERS

    found, starts = {key: plan.command for key, plan in plans(results_of(PAPERS, {}, "paper")).items()}, 0
    for paper in PAPERS:
        names = tuple(column.name for column in paper.columns["paper"])
        for item in plan(paper, "paper", columns=names, seeds=1):
            line, start = found[item.spec.key], item.start
            assert line.startswith(".venv/bin/torchrun" if item.spec.column.name in paper.large else ".venv/bin/python")
            assert line.endswith(" --seeds ")
            while start:
                starts += start.method.task != "classes"
                assert start.spec.key in found
                start = start.start
    assert starts
    gcl = next(paper for paper in PAPERS if paper.name == "gcl")
    [item] = plan(gcl, "paper", columns=("imagenet-lt-resnet50",), methods=("gcl@written",), seeds=1)
    assert found[item.spec.key] == (
        ".venv/bin/torchrun --standalone --nproc-per-node=gpu --max-restarts=3 -m papers.gcl.replicate train "
        "--column imagenet-lt-resnet50 --method gcl@written --seeds ")


def test_equations_are_found_by_file_and_line() -> None:
    from papers.mm import replicate

    [column] = [column for column in replicate.PAPER.columns["paper"] if column.name == "cifar10-lt-100"]
    [method] = [m for m in replicate.PAPER.rows("paper", column) if m.label == "mm-drw@written"]
    (use, name, file, line), *others = equations(method)
    assert (use, name, file) == ("loss", "mm", "papers/mm/replicate.py")
    assert line == inspect.getsourcelines(replicate.mm)[1]
    assert [other[:2] for other in others] == [["class weights", "deferred"], ["class weights", "inverse_weights"]]


def test_records_and_predictions_are_named_by_their_files(paper: Paper) -> None:
    records = toy_records(paper, {"ce": [30.0]})
    key, record = next(iter(records.items()))
    folder = paper.folder / "results" / "paper" / "cifar10-lt-100"
    (folder / "x").parent.mkdir(parents=True)
    file = save_record(folder, {**record, "predictions": {**record["predictions"], "file": "pack.predictions.npz"}})
    sources = Sources(results_of([paper], {key: json.loads(file.read_text())}, "paper"))
    sources.runs([key])
    [run] = by_run(run_data(sources, {}, 10))["runs"]
    assert run["file"] == f"papers/toy/results/paper/cifar10-lt-100/{file.name}"
    assert run["answers"] == "papers/toy/results/paper/cifar10-lt-100/pack.predictions.npz"


def test_deflated_data_come_back_and_cannot_end_a_script() -> None:
    value = {"name": "</script><!--", "curve": [1.5, None]}
    text = deflated(value)
    assert json.loads(zlib.decompress(base64.b64decode(text))) == value
    assert "<" not in text


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
    assert {run["commit"] for run in run_json(reader)["runs"]} == {NASTY}
    text = " ".join(text for _, text in reader.all("main"))
    assert text.count("window.stolen=1</script>") > 10, "the names are there, as text"
    assert "<!--" not in target.read_text()


KNOWN_TAGS = {
    "html", "head", "meta", "title", "style", "body", "a", "header", "label", "input", "button", "div", "nav", "ul", "li",
    "main", "section", "h1", "h2", "h3", "h4", "p", "span", "noscript", "code", "article", "dl", "dt", "dd", "table", "thead",
    "tbody", "tr", "th", "td", "b", "details", "summary", "q", "figure", "figcaption", "output", "svg", "path", "circle",
    "footer", "dialog", "script", "select", "option",
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
    assert all(len(run["test"]) >= min(run["epochs"], LEVELS[-1][0]) for run in data["runs"])


# ---------------------------------------------------------------- counting


def test_numbers_of_four_digits_are_written_alike() -> None:
    text = " ".join(text for _, text in read(full_page()[0]).all("section", id="front"))
    assert "report 747 numbers" in text
    assert re.search(r"\d \d{3} runs", text)
    assert not re.findall(r"\b\d{4,} (?:numbers|of|runs|device|no run|[a-z]+ed)", text)


def test_counts_come_in_a_fixed_order_and_every_verdict_has_a_sign() -> None:
    found = counts(["near", "better", "reproduced", "near"], ("reproduced", "near", "better", "worse"))
    expected = [("reproduced", 1, "="), ("near", 2, "≈"), ("better", 1, "▲")]
    assert [(word, number, sign(word)) for word, number in found] == expected
    possible = {verdict.cell_verdict((30 + delta / 4 - sd, 30 + delta / 4, 30 + delta / 4 + sd), 30.0, "top1_error", 1.0)
                for delta in range(-20, 21) for sd in (0.1, 0.6, 3.0)}
    assert possible == set(verdict.VERDICTS) - {"not comparable"}
    assert all(sign(word) != "·" for word in verdict.VERDICTS)
    tones = {word: tone(word) for word in CELL_WORDS}
    others = {tone for word, tone in tones.items() if word not in ("better", "worse")}
    assert tones["better"] != tones["worse"]
    assert not {tones["better"], tones["worse"]} & others
    assert tones["not comparable"] != "none"  # it has runs
    assert (sign("undecided"), tone("undecided")) == ("?", "near")
    assert [tone(word) for word in ("holds", "fails", "undecided", "no run yet")] == ["reproduced", "off", "near", "none"]


def test_every_verdict_can_be_read_on_its_cell_in_light_and_dark() -> None:
    """WCAG AA for small text, 4.5 to 1, on the sheet and on the tint of a cell under the pointer; no two tones share a colour."""
    css = (Path(page_module.__file__).parent / "style.css").read_text()
    pairs = dict(re.findall(r"--([a-z]+): light-dark\((.*?)\);", css))
    of = dict(re.findall(r"\.t-([a-z]+) \{ --tone: var\(--([a-z]+)\)", css))
    assert set(of) == {tone(word) for word in (*CELL_WORDS, *CLAIM_WORDS)}
    tones = {pairs[of[name]] for name in of if name != "none"} | {pairs["best"]}
    assert len(tones) == len(of), "the best test epoch has a colour of its own"
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
    part = paper_part(Results(again, toy_records(again, ERRORS), "paper"), [])
    assert part.runs == len(part.keys) == 21


def test_the_best_test_epoch_is_coloured_by_its_own_distance(paper: Paper) -> None:
    found = compare.cells(Results(paper, toy_records(paper, ERRORS), "paper"))
    tones = {best_tone(cell): cell for cell in found}
    assert set(tones) == {"", "best-near", "best-far"}
    far = tones["best-far"]
    assert abs(sum(far.best) / len(far.best) - far.published) > 1.5
    assert not tones[""].n
