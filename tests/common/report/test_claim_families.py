"""Which claims are tested together: ours apart, none without a run, none that follows from a stronger one; and their notes."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from common.methods.method import Method, Net, Start
from common.paper import Paper
from common.plan import plan
from common.report.answer import claims_once
from common.report.claims import Outcome, evaluate, follows_from
from common.report.page.views import paper_part
from common.report.readme import claims_tally, results_block
from common.report.results import Results
from common.report.tables import write_tables
from common.spec import Column
from papers.catalog import PAPERS
from tests.records import make_record, some_loss, toy_paper, toy_records

CLAIM = """
- id: {id}
  section: "4.1"
  quote: a quote
  kind: {kind}
  tables: ["1"]
  method: {method}
  columns: [{columns}]
"""
LT, STEP = "cifar10-lt-100", "cifar10-step-100"
ERRORS = {"own": (20.0, 20.1, 20.3), "rival": (20.4, 20.2, 20.6), "ce": (20.9, 21.3, 21.0)}


def claim(name: str, method: str, *than: str, columns: str = LT, more: str = "") -> str:
    text = CLAIM.format(id=name, method=method, columns=columns, kind="better" if than else "best")
    return text + (f"  than: [{', '.join(than)}]\n" if than else "") + (f"  {more}\n" if more else "")


def found(folder: Path, *claims: str, errors: dict = ERRORS, **more) -> dict[str, Outcome]:
    """Outcomes of the written reading by the claim's id."""
    paper = toy_paper(folder / "toy", "".join(claims))
    results = Results(paper, toy_records(paper, errors, **more), "paper")
    return {o.claim.id: o for o in evaluate(results) if o.reading == "written"}


FIRST = claim("first", "own", "rival")
OTHER = claim("other", "rival", "ce")


def test_claims_of_ours_are_a_family_of_their_own(tmp_path: Path) -> None:
    alone, other = (found(tmp_path, text)[name] for text, name in ((FIRST, "first"), (OTHER, "other")))
    together = found(tmp_path, FIRST, OTHER)
    assert together["first"].p == pytest.approx(max(alone.p, 2 * other.p))  # the larger p of two
    apart = found(tmp_path, FIRST, claim("other", "rival", "ce", more="ours: true"))
    assert (apart["first"].p, apart["first"].p_against, apart["first"].p_paired) == (alone.p, alone.p_against, alone.p_paired)
    assert apart["other"].p == other.p < together["other"].p


def test_a_claim_in_whose_columns_nothing_has_run_takes_no_share(tmp_path: Path) -> None:
    elsewhere = claim("elsewhere", "rival", "ce", columns=STEP)
    alone, there = found(tmp_path, FIRST)["first"], {"columns": (LT,)}
    both = found(tmp_path, FIRST, elsewhere, **there)
    assert both["first"].p == alone.p
    assert (both["elsewhere"].verdict, both["elsewhere"].p) == ("not run (0 of 1 columns)", None)
    assert both["first"].p_against == alone.p_against


def test_any_run_in_its_columns_makes_a_claim_a_test_whatever_it_says(tmp_path: Path) -> None:
    """The other claim is far from decided, and only a method that it does not name has run there: it takes its share."""
    paper = toy_paper(tmp_path / "toy", FIRST + claim("elsewhere", "rival", "ce", columns=STEP))
    records = toy_records(paper, ERRORS, columns=(LT,))
    some = toy_records(paper, {"own[beta=1.2;delta=2.0]@written": (None,)}, columns=(STEP,))  # and that run diverged
    assert len(some) == 1
    alone, shared = (evaluate(Results(paper, found, "paper"))[0].p for found in (records, records | some))
    assert shared == pytest.approx(2 * alone)


STRONG = claim("strong", "own", "rival", "ce")
WEAK = claim("weak", "own", "ce")


def test_a_weaker_claim_follows_is_not_corrected_for_and_stands_below(tmp_path: Path) -> None:
    alone = found(tmp_path, STRONG)["strong"]
    outcomes = found(tmp_path, WEAK, OTHER.replace("other", "unlike"), STRONG)
    assert list(outcomes) == ["unlike", "strong", "weak"]
    weak, strong = outcomes["weak"], outcomes["strong"]
    assert (weak.follows, weak.verdict) == ("strong", "follows from strong")
    assert (strong.follows, outcomes["unlike"].follows) == ("", "")
    assert strong.p <= 2 * alone.p  # of two claims, not of three
    assert weak.p == found(tmp_path, WEAK)["weak"].p  # its own, uncorrected
    assert weak.gap == pytest.approx(0.93, abs=0.01)


@pytest.mark.parametrize(("weaker", "stronger"), [
    (WEAK, claim("strong", "own")),  # best: against everything that is trained, the rows without a method here left out
    (claim("weak", "own", "ghost", "ce"), claim("strong", "own")),  # ghost is not trained, so neither is tested against it
    (WEAK, claim("strong", "own", "ce", columns=f"{LT}, {STEP}")),  # more columns
    (claim("weak", "own", "ce", more="classes: [minority]"), claim("strong", "own", "ce", more="classes: [minority, majority]")),
    (claim("weak", "own", "ce", more="ours: true"), claim("strong", "own", "rival", "ce")),
    (claim("weak", "own", "ce", more="ours: true"), claim("strong", "own", "ce")),  # the same: the paper's is the claim
])
def test_what_follows(tmp_path: Path, weaker: str, stronger: str) -> None:
    for text in (weaker + stronger, stronger + weaker):
        assert {name: o.follows for name, o in found(tmp_path, text).items()} == {"weak": "strong", "strong": ""}


@pytest.mark.parametrize(("one", "other"), [
    (WEAK, claim("strong", "rival", "ce")),  # another method
    (WEAK, claim("strong", "own", "rival", "ce", columns=STEP)),  # another column
    (WEAK, claim("strong", "own", "rival")),  # another rival
    (WEAK, claim("strong", "own", "rival", "ce", more="classes: [minority]")),  # other classes
    (claim("weak", "own", "rival"), claim("strong", "own", "rival", "ce", more="ours: true")),  # one of ours
    (WEAK.replace('"1"', '"2"').replace("better", "setting").replace("  than: [ce]\n", "  parameter: beta\n  above: 1.05\n"),
     claim("strong", "own", "rival", "ce")),
])
def test_what_does_not_follow(tmp_path: Path, one: str, other: str) -> None:
    assert {o.follows for o in found(tmp_path, one, other).values()} == {""}


def test_of_two_equal_claims_the_first_counts_and_chains_end_at_the_strongest(tmp_path: Path) -> None:
    outcomes = found(tmp_path, WEAK, WEAK.replace("weak", "again"), STRONG, claim("best", "own", columns=f"{LT}, {STEP}"))
    assert {name: o.follows for name, o in outcomes.items()} == {"best": "", "weak": "best", "again": "best", "strong": "best"}
    assert {name: o.follows for name, o in found(tmp_path, WEAK, WEAK.replace("weak", "again")).items()} == {
        "weak": "", "again": "weak"}
    assert follows_from([]) == {}


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_what_follows_in_the_papers_is_known_before_any_run(paper: Paper) -> None:
    """And what it follows from is a claim that counts, about the same method, in every column of the weaker one."""
    outcomes = evaluate(Results(paper, {}, "paper"))
    by_id = {(o.claim.id, o.reading): o for o in outcomes}
    for weak in (o for o in outcomes if o.follows):
        strong = by_id[weak.follows, weak.reading]
        assert not strong.follows
        assert strong.claim.method == weak.claim.method
        assert set(weak.claim.columns) <= set(strong.claim.columns)
        assert strong.claim.kind == "best" or set(weak.claim.than) <= set(strong.claim.than)


def test_shown_apart_and_not_counted(tmp_path: Path) -> None:
    paper = toy_paper(tmp_path / "papers" / "toy", STRONG + WEAK + claim("mine", "rival", "ce", more="ours: true"))
    records = toy_records(paper, ERRORS)
    outcomes = evaluate(Results(paper, records, "paper"))
    assert {(o.claim.id, o.reading) for o in outcomes} == {
        ("strong", "written"), ("strong", "released"), ("weak", "written"), ("weak", "released"), ("mine", "written")}
    strong = outcomes[0].verdict
    assert claims_tally(outcomes) == f"2 {strong}; ours: 1 {next(o.verdict for o in outcomes if o.claim.ours)}"
    assert claims_tally([o for o in outcomes if not o.claim.ours]) == f"2 {strong}"
    assert claims_tally([o for o in outcomes if not o.claim.ours or o.follows]) == f"2 {strong}"
    assert claims_tally([]) == "none"
    assert "Follow from these and are not counted: 2." in results_block(Results(paper, records, "paper"))
    part = paper_part(Results(paper, records, "paper"), [])
    assert [outcome.claim.id for outcome in claims_once(outcomes) if not outcome.claim.ours] == ["strong"]
    assert part.answer.claims == ({"holds": "held", "fails": "failed"}.get(strong, strong),)
    assert (sum(count.number for count in part.ours), part.following) == (1, 1)
    assert [one.outcome.verdict for one in part.tested if one.claim.id == "weak"] == ["follows from strong"] * 2
    files = {path.name: path.read_text() for path in write_tables(Results(paper, records, "paper"), tmp_path / "tables")}
    assert "| mine (ours) |" in files["claims.md"]
    assert "- **mine** (4.1; a claim of ours on it)" in files["claims.md"]
    assert "follows from strong" in files["claims.md"]
    assert files["claims.csv"].splitlines()[0].startswith("claim,ours,follows_from,")


# ---------------------------------------------------------------- notes


def test_runs_on_unlike_machines_are_noted(tmp_path: Path) -> None:
    paper = toy_paper(tmp_path / "toy", WEAK)
    records = toy_records(paper, ERRORS)
    for item in plan(paper, "paper", columns=(LT,), methods=("ce",), seeds=3):
        made = {"device": "H200", "precision": "bfloat16", "official": False}
        records[item.spec.key] = make_record(item, 100 - ERRORS["ce"][item.spec.seed], made=made)
    notes = evaluate(Results(paper, records, "paper"))[0].notes
    assert notes == ("mixed precision: bfloat16, float32", "mixed devices: H200, test device",
                     "not the official split: 3 of 6 runs")
    elsewhere = {key: r for key, r in records.items() if r["made"]["device"] != "H200"}
    assert evaluate(Results(paper, elsewhere, "paper"))[0].notes == ()


def test_only_runs_that_are_compared_with_each_other_must_be_alike(tmp_path: Path) -> None:
    """A column of its own on each device is no mixture; one run in it is."""
    paper = toy_paper(tmp_path / "toy", claim("both", "own", "ce", columns=f"{LT}, {STEP}"))
    records = toy_records(paper, ERRORS)
    there = plan(paper, "paper", columns=(STEP,), seeds=3)
    other = {p.spec.key: make_record(p, 70.0, made={"device": "H200"}) for p in there if p.spec.key in records}
    assert evaluate(Results(paper, records | other, "paper"))[0].notes == ()
    one = next(p.spec.key for p in there if p.method.label == "own@written")
    notes = evaluate(Results(paper, {**records, **other, one: records[one]}, "paper"))[0].notes
    assert notes == (f"mixed devices: H200, test device ({STEP})",)


def test_first_stages_on_unlike_machines_are_noted(tmp_path: Path) -> None:
    """own is a second stage on weights that another device trained, while all that the claim names ran on one."""
    toy = toy_paper(tmp_path / "toy", WEAK)

    def methods(column: Column, protocols: dict) -> tuple[Method, ...]:
        def row(name: str, **more) -> Method:
            return Method(name, "written", partial(some_loss, kind=name), **more)

        first = row("first", protocol=protocols["written"])
        head = replace(protocols["written"], trains="head", epochs=1, decay_epochs=())
        return row("ce"), row("own", start=Start(first), protocol=head)

    paper = replace(toy, methods=methods)
    items = plan(paper, "paper", columns=(LT,), seeds=2)
    starts = [item.start for item in items if item.start]
    records = {item.spec.key: make_record(item, 70.0 + item.spec.seed) for item in items}
    assert len(starts) == 2
    assert evaluate(Results(paper, records, "paper"))[0].notes == ()
    records |= {item.spec.key: make_record(item, 60.0, made={"device": "H200"}) for item in starts}
    assert evaluate(Results(paper, records, "paper"))[0].notes == ("mixed devices: H200, test device",)


def test_a_row_that_is_not_comparable_with_its_source_is_noted(tmp_path: Path) -> None:
    paper = replace(toy_paper(tmp_path / "toy", WEAK), not_comparable={f"{LT}/ce": "another network"})
    assert evaluate(Results(paper, {}, "paper"))[0].notes == ()
    assert evaluate(Results(paper, toy_records(paper, ERRORS), "paper"))[0].notes == ("ce not comparable: another network",)


def test_a_rival_that_no_table_prints_is_tested_and_passed_over_in_the_printed_numbers(tmp_path: Path) -> None:
    """own has 22.00 printed against 29.60 of ce; the adapter's row is trained in one column only."""
    paper = toy_paper(tmp_path / "toy", claim("adapted", "own", "ce", '"ce[adapter=trunk]"', columns=f"{LT}, {STEP}"))

    def methods(column: Column, protocols: dict) -> tuple[Method, ...]:
        rows = paper.methods(column, protocols)
        return (*rows, replace(rows[0], variant="adapter=trunk", net=Net(adapter=10))) if column.imbalance == "lt" else rows

    trained = replace(paper, methods=methods)
    errors = {"own": (20.0, 20.1, 20.2), "ce": (30.0, 30.1, 30.2), "ce[adapter=trunk]@written": (15.0, 15.1, 15.2)}
    written = evaluate(Results(trained, toy_records(trained, errors), "paper"))[0]
    assert (written.printed, written.verdict) == ("holds", "fails")
    assert written.where == f"{LT}, against ce[adapter=trunk]"
    assert written.notes == (f"left out, as there is no such method here: ce[adapter=trunk] ({STEP})",)


@pytest.mark.parametrize(("text", "printed"), [
    (claim("one", "own", '"ce[adapter=trunk]"', "rival", columns=STEP), "fails (1 of 1 columns)"),  # 23.00 against 22.90
    (claim("one", "own", '"ce[adapter=trunk]"'), "not printed"), (claim("one", '"own[beta=9]"', "rival"), "not printed"),
])
def test_printed_numbers_are_judged_without_what_is_not_printed(tmp_path: Path, text: str, printed: str) -> None:
    assert evaluate(Results(toy_paper(tmp_path / "toy", text), {}, "paper"))[0].printed == printed
