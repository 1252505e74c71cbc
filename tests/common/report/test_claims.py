"""Claims: strict loading, what the printed numbers say, and verdicts on records whose truth is known."""

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp, ttest_ind, ttest_rel

from common.errors import UserError
from common.methods.method import Method
from common.paper import Paper
from common.report.claims import Claim, Outcome, evaluate, load_claims
from common.report.paired import Hits, paired_test
from common.report.results import Results
from common.report.significance import Comparison, Side, decide, holm, p_claim, p_less, p_less_paired, p_opposite
from common.report.tables import write_tables
from common.spec import Column
from tests.records import made_hits, some_loss, toy_paper, toy_records

BETTER = """
- id: own-beats-rival
  section: "4.1"
  quote: own is better | than rival
  kind: better
  tables: ["1"]
  method: own
  than: [rival]
  columns: [cifar10-lt-100, cifar10-step-100]
"""
BEST = """
- id: own-best
  section: "4.1"
  quote: own is best
  kind: best
  tables: ["1"]
  method: own
  columns: [cifar10-lt-100]
"""
SETTING = """
- id: beta-above-one
  section: "3.2"
  quote: beta > 1 is best
  kind: setting
  tables: ["2"]
  method: own
  parameter: beta
  above: 1.0
  columns: [cifar10-lt-100, cifar10-step-100]
"""
GROUPS = """
- id: own-better-on-minority
  section: Figure 3
  quote: better on the overall classes
  kind: better
  tables: ["1"]
  method: own
  than: [ce]
  classes: [majority, minority]
  columns: [cifar10-step-100]
"""


def outcomes(folder: Path, claims: str, errors: dict, profile: str = "paper", **more) -> dict[tuple[str, str], Outcome]:
    paper = toy_paper(folder / "toy", claims)
    return {(o.claim.id, o.reading): o for o in evaluate(Results(paper, toy_records(paper, errors, profile, **more), profile))}


def test_holds_fails_and_undecided_per_reading(tmp_path: Path) -> None:
    errors = {"own@written": (20.0, 20.1, 20.2, 20.1), "own@released": (24.9, 25.0, 25.1, 25.0),
              "rival": (22.0, 22.1, 22.2, 22.1)}
    found = outcomes(tmp_path, BETTER, errors)
    written, released = found["own-beats-rival", "written"], found["own-beats-rival", "released"]
    assert (written.verdict, released.verdict) == ("holds", "fails")
    assert written.gap == pytest.approx(2.0)
    assert released.gap == pytest.approx(-2.9)
    assert written.where == "cifar10-lt-100, against rival"
    errors["own@written"] = (22.0, 22.2, 22.1, 22.0)
    assert outcomes(tmp_path, BETTER, errors)["own-beats-rival", "written"].verdict == "undecided"


def test_one_bad_column_is_enough_to_fail(tmp_path: Path) -> None:
    paper = toy_paper(tmp_path / "toy", BETTER)
    good = {"own": (20.0, 20.1, 20.2), "rival": (22.0, 22.1, 22.2)}
    bad = {"own": (24.0, 24.1, 24.2), "rival": (22.0, 22.1, 22.2)}
    records = toy_records(paper, good, columns=("cifar10-lt-100",)) | toy_records(paper, bad, columns=("cifar10-step-100",))
    outcome = evaluate(Results(paper, records, "paper"))[0]
    assert (outcome.verdict, outcome.where) == ("fails", "cifar10-step-100, against rival")


def test_printed_numbers_are_judged_from_published_csv(tmp_path: Path) -> None:
    found = outcomes(tmp_path, BETTER + BEST + SETTING + GROUPS, {"ce": (1.0,)})
    assert found["own-beats-rival", "written"].printed == "fails (1 of 2 columns)"  # 23.00 against 22.90
    assert found["own-best", "written"].printed == "holds"
    assert found["beta-above-one", "written"].printed == "holds"
    assert found["own-better-on-minority", "written"].printed == "not printed"


def test_not_run_says_how_many_columns_are(tmp_path: Path) -> None:
    errors = {"own": (20.0, 20.1), "rival": (22.0, 22.1)}
    assert outcomes(tmp_path, BETTER, {"own": (20.0,)})["own-beats-rival", "written"].verdict == "not run (0 of 2 columns)"
    found = outcomes(tmp_path, BETTER, errors, columns=("cifar10-lt-100",))
    assert found["own-beats-rival", "written"].verdict == "not run (1 of 2 columns)"
    assert found["own-beats-rival", "written"].p is None


def test_few_equal_or_diverged_runs_do_not_decide(tmp_path: Path) -> None:
    verdict = {name: outcomes(tmp_path, BETTER, errors)["own-beats-rival", "written"].verdict for name, errors in {
        "one seed": {"own": (20.0,), "rival": (22.0,)},
        "no spread": {"own": (20.0,) * 4, "rival": (22.0,) * 4},
        "no difference": {"own": (22.0,) * 4, "rival": (22.0,) * 4},
        "all diverged": {"own": (20.0, 20.1, 20.2), "rival": (None, None, None)},
    }.items()}
    assert verdict == {"one seed": "undecided (n too small)", "no spread": "undecided", "no difference": "undecided",
                       "all diverged": "undecided (n too small)"}
    notes = outcomes(tmp_path, BETTER, {"own": (20.0,), "rival": (None,)})["own-beats-rival", "written"].notes
    assert notes == ("diverged runs: 2 of rival",)


def test_best_leaves_out_what_is_not_implemented_and_says_so(tmp_path: Path) -> None:
    errors = {"own": (20.0, 20.1, 20.2), "rival": (22.0, 22.1, 22.2), "ce": (29.0, 29.1, 29.2)}
    outcome = outcomes(tmp_path, BEST, errors)["own-best", "written"]
    assert (outcome.verdict, outcome.notes) == ("holds", ("left out, as there is no such method here: ghost",))
    assert outcome.where == "cifar10-lt-100, against rival"


def test_setting_needs_both_sides_of_the_bound(tmp_path: Path) -> None:
    errors = {"own[beta=1.0;delta=2.0]@written": (22.9, 23.0, 23.1), "own[beta=1.1;delta=2.0]@written": (21.9, 22.0, 22.1)}
    outcome = outcomes(tmp_path, SETTING, errors)["beta-above-one", "written"]
    assert (outcome.verdict, outcome.done, outcome.of) == ("holds", 1, 1)
    assert outcome.notes == ("only one side of beta = 1 is tried in cifar10-step-100",)
    outcome = outcomes(tmp_path, SETTING.replace("beta", "delta"), errors)["delta-above-one", "written"]
    assert (outcome.verdict, outcome.printed, outcome.p) == ("not decidable", "holds", None)


def test_groups_of_classes_are_read_from_per_class_accuracy(tmp_path: Path) -> None:
    paper = toy_paper(tmp_path / "toy", GROUPS)
    records = toy_records(paper, {"own": (20.0, 20.1, 20.2), "ce": (22.0, 22.1, 22.2)})
    for record in records.values():  # ce is far better on the minority classes, own on the majority classes
        accuracy = record["accuracy"]["last"]
        record["per_class_accuracy"] = [accuracy] * 5 + [accuracy - (10 if "own" in record["label"] else 0)] * 5
    outcome = evaluate(Results(paper, records, "paper"))[0]
    assert (outcome.verdict, outcome.where) == ("fails", "cifar10-step-100, minority classes, against ce")


def two_readings(paper: Paper, names: tuple[tuple[str, str], ...]) -> Paper:
    """The paper with exactly these (name, reading) rows."""
    def methods(column: Column, protocols: dict) -> tuple[Method, ...]:
        return tuple(Method(name, reading, partial(some_loss, kind=f"{name} {reading}")) for name, reading in names)

    return replace(paper, methods=methods)


def test_like_is_compared_with_like(tmp_path: Path) -> None:
    claims = BETTER.replace("[cifar10-lt-100, cifar10-step-100]", "[cifar10-lt-100]").replace("[rival]", "[ce]")
    rows = (("own", "written"), ("own", "released"), ("ce", "written"), ("ce", "released"), ("rival", "written"))
    paper = two_readings(toy_paper(tmp_path / "toy", claims), rows)
    errors = {"own@written": (20.0, 20.1, 20.2), "ce@written": (22.0, 22.1, 22.2),
              "own@released": (30.0, 30.1, 30.2), "ce@released": (33.0, 33.1, 33.2)}
    found = {o.reading: o for o in evaluate(Results(paper, toy_records(paper, errors), "paper"))}
    assert {reading: o.verdict for reading, o in found.items()} == {"written": "holds", "released": "holds"}
    assert found["written"].gap == pytest.approx(2.0)
    assert found["released"].gap == pytest.approx(3.0)


def test_a_row_of_one_reading_meets_its_own_reading_only(tmp_path: Path) -> None:
    """own is written only: no outcome compares it with the other setting's ce."""
    claims = BETTER.replace("[cifar10-lt-100, cifar10-step-100]", "[cifar10-lt-100]").replace("[rival]", "[ce]")
    paper = two_readings(toy_paper(tmp_path / "toy", claims), (("ce", "released"), ("own", "written"), ("ce", "written")))
    errors = {"own": (20.0, 20.1, 20.2), "ce@written": (22.0, 22.1, 22.2), "ce@released": (10.0, 10.1, 10.2)}
    [outcome] = evaluate(Results(paper, toy_records(paper, errors), "paper"))
    assert (outcome.reading, outcome.verdict) == ("written", "holds")


def test_a_rival_of_one_reading_takes_part_in_both(tmp_path: Path) -> None:
    claims = BETTER.replace("[cifar10-lt-100, cifar10-step-100]", "[cifar10-lt-100]")
    paper = two_readings(toy_paper(tmp_path / "toy", claims), (("own", "written"), ("own", "released"), ("rival", "released")))
    errors = {"own@written": (20.0, 20.1, 20.2), "own@released": (25.0, 25.1, 25.2), "rival": (22.0, 22.1, 22.2)}
    found = {o.reading: o.verdict for o in evaluate(Results(paper, toy_records(paper, errors), "paper"))}
    assert found == {"written": "holds", "released": "fails"}


GROUPED = BETTER.replace("columns: [cifar10-lt-100, cifar10-step-100]", "columns: [cifar10-lt-100]\n  group: tail3")


def test_a_claim_about_a_group_reads_that_group(tmp_path: Path) -> None:
    paper = toy_paper(tmp_path / "toy", GROUPED)
    records = toy_records(paper, {"own": (20.0, 20.1, 20.2), "rival": (22.0, 22.1, 22.2)})
    for record in records.values():  # own is behind on the smallest class alone
        accuracy = record["accuracy"]["last"]
        record["per_class_accuracy"] = [accuracy] * 9 + [accuracy - (10 if "own" in record["label"] else 0)]
    outcome = evaluate(Results(paper, records, "paper"))[0]
    assert (outcome.verdict, outcome.printed, outcome.where) == ("fails", "not printed", "cifar10-lt-100, tail3, against rival")
    assert outcome.gap == pytest.approx(-8.0)
    other = replace(paper, folder=toy_paper(tmp_path / "other", GROUPED.replace("tail3", "class-0")).folder)
    assert evaluate(Results(other, records, "paper"))[0].verdict == "holds"


def test_a_group_that_is_printed_is_judged_by_its_own_numbers(tmp_path: Path) -> None:
    paper = toy_paper(tmp_path / "toy", GROUPED.replace("tail3", "tail"))
    lines = (paper.folder / "published.csv").read_text()
    start = "toy,1,caption,cifar10,lt,100,resnet-32"
    (paper.folder / "published.csv").write_text(
        lines + f"{start},own,ours,top1_error,percent,60.0,,tail,\n{start},rival,[4],top1_accuracy,percent,41.0,,tail,\n"
        f"{start},own,ours,top1_error,percent,1.0,,head,\n{start},own,ours,top5_accuracy,percent,99.0,,,\n"
        f"{start},own,ours,top1_error_change_abs,points,1.0,,tail,\n")
    first, *_ = evaluate(Results(paper, {}, "paper"))
    assert first.printed == "fails (1 of 1 columns)"  # 60 against 59, whatever head and all print
    plain = replace(paper, folder=paper.folder)
    (paper.folder / "claims.yaml").write_text(GROUPED.replace("\n  group: tail3", ""))
    assert evaluate(Results(plain, {}, "paper"))[0].printed == "holds"  # 22.00 against 22.10


def test_a_group_that_a_column_does_not_have_is_not_decidable(tmp_path: Path) -> None:
    paper = toy_paper(tmp_path / "toy", GROUPED.replace("tail3", "class-12"))
    records = toy_records(paper, {"own": (20.0, 20.1), "rival": (22.0, 22.1)})
    outcome = evaluate(Results(paper, records, "paper"))[0]
    assert (outcome.verdict, outcome.p) == ("not decidable", None)
    assert outcome.notes == ("no class-12 in cifar10-lt-100",)
    assert evaluate(Results(paper, {}, "paper"))[0].verdict == "not run (0 of 1 columns)"


@pytest.mark.parametrize("more", ["group: tails", "group: class-a", "group: tail\n  classes: [minority]"])
def test_bad_groups_are_user_errors(tmp_path: Path, more: str) -> None:
    with pytest.raises(UserError, match="`group` is one of head"):
        load_claims(toy_paper(tmp_path / "toy", GROUPED.replace("group: tail3", more)))


def test_a_claim_between_single_readings_is_evaluated_once(tmp_path: Path) -> None:
    claims = BETTER.replace("method: own", "method: rival").replace("than: [rival]", "than: [ce]")
    assert list(outcomes(tmp_path, claims, {"ce": (30.0,)})) == [("own-beats-rival", "written")]


def test_quick_uses_the_stand_ins(tmp_path: Path) -> None:
    errors = {"own": (20.0, 20.1, 20.2), "rival": (22.0, 22.1, 22.2)}
    outcome = outcomes(tmp_path, BETTER, errors, "quick")["own-beats-rival", "written"]
    assert (outcome.verdict, outcome.of, outcome.where) == ("holds", 1, "digits-lt-20, against rival")
    claims = BETTER.replace("cifar10-lt-100, ", "")
    assert outcomes(tmp_path, claims, errors, "quick")["own-beats-rival", "written"].verdict.startswith("not run (no stand-in")


def duels(rng: random.Random, lead: float, columns: int, seeds: int) -> list[Comparison]:
    def side(label: str, mean: float) -> Side:
        return Side(label, tuple(rng.gauss(mean, 0.3) for _ in range(seeds)))

    return [Comparison(f"column {i}", "all", (side("own", 22 - lead),), (side("rival", 22.0),)) for i in range(columns)]


@pytest.mark.parametrize(("lead", "columns", "holds", "fails"), [
    (1.5, 8, (0.95, 1.0), (0.0, 0.0)),  # true, and large against the spread
    (0.0, 1, (0.0, 0.09), (0.0, 0.09)),  # no difference: at most one in twenty either way
    (0.0, 8, (0.0, 0.01), (0.0, 0.09)),
    (-1.5, 8, (0.0, 0.0), (0.95, 1.0)),  # false
])
def test_verdicts_occur_at_the_stated_rates(lead: float, columns: int, holds: tuple, fails: tuple) -> None:
    rng, verdicts = random.Random(0), []
    for _ in range(300):
        drawn = duels(rng, lead, columns, seeds=5)
        verdicts.append(decide(drawn, p_claim(drawn), p_opposite(drawn), columns, columns))
    assert holds[0] <= verdicts.count("holds") / 300 <= holds[1]
    assert fails[0] <= verdicts.count("fails") / 300 <= fails[1]


def test_holm_keeps_the_rate_over_many_claims() -> None:
    rng, wrong = random.Random(1), 0
    for _ in range(150):
        ps = holm(p_claim(duels(rng, 0.0, 1, seeds=4)) for _ in range(10))
        wrong += min(ps) <= 0.05
    assert wrong / 150 <= 0.1


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_properties(ps: list[float]) -> None:
    adjusted = holm(ps)
    assert all(p <= a <= min(1.0, len(ps) * p) + 1e-12 for p, a in zip(ps, adjusted, strict=True))
    assert sorted(range(len(ps)), key=ps.__getitem__) == sorted(range(len(ps)), key=lambda i: (adjusted[i], ps[i], i))


def test_p_is_that_of_welch() -> None:
    a, b = (20.0, 20.3, 20.1), (20.4, 20.2, 20.9, 20.5)
    expected = ttest_ind(a, b, equal_var=False, alternative="less").pvalue
    assert p_less(Side("a", a), Side("b", b)) == pytest.approx(expected)
    assert p_less(Side("b", b), Side("a", a)) == pytest.approx(1 - expected)


def test_the_paired_p_is_that_of_scipy_over_the_seeds_of_both() -> None:
    a, b = (20.0, 20.3, 20.1, 20.6), (20.4, 20.5, 20.9, 20.5)
    expected = ttest_rel(a, b, alternative="less").pvalue
    low, high = Side("a", a, seeds=(0, 1, 2, 3)), Side("b", b, seeds=(0, 1, 2, 3))
    assert p_less_paired(low, high) == pytest.approx(expected)
    assert p_less_paired(high, low) == pytest.approx(1 - expected)
    shuffled = Side("b", (20.9, 99.0, 20.4, 20.5, 20.5), seeds=(2, 7, 0, 3, 1))  # seed 7 has no partner
    assert p_less_paired(low, shuffled) == pytest.approx(expected)
    assert p_less_paired(low, Side("b", b, seeds=(3, 4, 5, 6))) == 1.0  # one seed in common
    assert p_less_paired(low, Side("b", tuple(x + 1 for x in a), seeds=(0, 1, 2, 3))) == 1.0  # the same difference in each


def test_the_paired_p_is_shown_and_decides_nothing(tmp_path: Path) -> None:
    """The runs of a seed go together: paired tests see a difference that Welch's does not."""
    errors = {"own": (20.0, 22.0, 24.0, 26.0), "rival": (20.5, 22.6, 24.4, 26.5)}
    outcome = outcomes(tmp_path, BETTER, errors)["own-beats-rival", "written"]
    assert (outcome.verdict, outcome.p > 0.3) == ("undecided", True)
    assert outcome.p_paired == pytest.approx(ttest_rel(errors["own"], errors["rival"], alternative="less").pvalue)
    both = outcomes(tmp_path, BETTER + BEST, errors)["own-beats-rival", "written"]
    assert both.p_paired == pytest.approx(2 * outcome.p_paired)  # Holm over two claims
    assert outcomes(tmp_path, BETTER, {"own": (20.0,)})["own-beats-rival", "written"].p_paired is None


def test_the_paired_p_is_over_images_where_predictions_are(tmp_path: Path) -> None:
    paper = toy_paper(tmp_path / "toy", BETTER)
    records = toy_records(paper, {"own": (20.0, 21.0, 22.5), "rival": (21.0, 22.5, 23.0, 22.0)})
    hits = made_hits(records)
    outcome, *_ = evaluate(Results(paper, records, "paper", hits))

    def keys(name: str, column: str) -> list[str]:
        found = [r for r in records.values() if r["label"] == f"{column} {name}@written"]
        return [r["key"] for r in sorted(found, key=lambda r: r["spec"]["seed"])][:3]  # seed 3 has no partner

    each = [paired_test(*(np.stack([hits[key].right for key in keys(name, column)]) for name in ("own", "rival")))
            for column in ("cifar10-lt-100", "cifar10-step-100")]
    assert outcome.p_paired == pytest.approx(max(test.p for test in each))
    assert outcome.notes == ("paired over images and seeds",)
    plain, *_ = evaluate(Results(paper, records, "paper"))
    assert (plain.verdict, plain.p, plain.gap, plain.notes) == (outcome.verdict, outcome.p, outcome.gap, ())
    assert plain.p_paired != outcome.p_paired
    less = {key: found for key, found in hits.items() if key != keys("rival", "cifar10-step-100")[1]}
    mixed, *_ = evaluate(Results(paper, records, "paper", less))
    assert mixed.notes == ("paired over images and seeds in 1 of 2 comparisons, over seeds in the others",)
    differences = (-1.0, -1.5, -0.5)
    assert mixed.p_paired == pytest.approx(max(each[0].p, ttest_1samp(differences, 0, alternative="less").pvalue))
    write_tables(Results(paper, records, "paper", hits), tmp_path / "tables")
    assert f" / {outcome.p_paired:.3g} |" in (tmp_path / "tables" / "claims.md").read_text()
    assert "written, released: paired over images and seeds" in (tmp_path / "tables" / "claims.md").read_text()


def test_the_paired_p_of_a_group_is_that_of_its_images(tmp_path: Path) -> None:
    """own is right on every image of the last class, rival on none, and they agree on all others."""
    paper = toy_paper(tmp_path / "toy", BETTER.replace("columns: [cifar10-lt-100, cifar10-step-100]",
                                                       "columns: [cifar10-lt-100]\n  group: tail3"))
    records = toy_records(paper, {"own": (20.0, 21.0, 22.0), "rival": (21.0, 22.0, 23.0)})
    labels, draw = np.repeat(np.arange(10), 20), np.random.default_rng(0)
    luck = {seed: draw.random(200) < 0.5 for seed in range(3)}
    right = {key: np.where(labels == 9, luck[r["spec"]["seed"]] & ("own" in r["label"]), luck[0]) for key, r in records.items()}
    outcome, *_ = evaluate(Results(paper, records, "paper", {key: Hits(labels, bits) for key, bits in right.items()}))
    alone = paired_test(np.stack([luck[seed][labels == 9] for seed in range(3)]), np.zeros((3, 20), bool))
    assert outcome.p_paired == pytest.approx(alone.p)
    assert 0 < alone.p < 0.05


@pytest.mark.parametrize(("old", "new", "message"), [
    ("kind: better", "kind: bigger", "'bigger'"), ("method: own", "method: mine", "no 'mine'"), ("[rival]", "[]", "`than`"),
    ("cifar10-step-100]", "cifar10-lt-7]", "cifar10-lt-7"), ("kind: better", "kind: best", "`than`"),
    ('["1"]', "[1]", "expected str"), ("  section", "  sektion", "sektion"),
    ("columns:", "above: 1.0\n  columns:", "`parameter`"),
])
def test_bad_claims_are_user_errors(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in BETTER
    with pytest.raises(UserError, match=message):
        load_claims(toy_paper(tmp_path / "toy", BETTER.replace(old, new)))


def test_an_id_may_occur_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="twice"):
        load_claims(toy_paper(tmp_path / "toy", BETTER + BETTER))
    [claim] = load_claims(toy_paper(tmp_path / "toy", BETTER))
    assert isinstance(claim, Claim)
