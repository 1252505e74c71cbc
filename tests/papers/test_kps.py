"""The KPS chapter's rows, columns and parameters against its printed tables and its text."""

import numpy as np
import pytest

from common.data.large_sets import LARGE
from common.methods.path import is_step
from common.plan import plan
from common.report.claims import evaluate, load_claims
from common.report.compare import cells
from common.report.published import published
from common.report.results import Results
from papers.kps.replicate import FIGURES, PAPER, PARAMS, READINGS, STRATEGIES, TECHNIQUES

COLUMNS = {c.name: c for c in PAPER.columns["paper"] if c.name not in PAPER.large and not c.is_drawn}
PROTOCOLS = PAPER.protocols["paper"]
CIFAR = [name for name, column in COLUMNS.items() if (column.imbalance, column.subset) == ("lt", "authors")]
TOY = "cifar10-5000-500-1000"


def rows(column: str) -> dict:
    listed = PAPER.rows("paper", next(c for c in PAPER.columns["paper"] if c.name == column))
    found = {m.label: m for m in listed}
    assert len(found) == len(listed), "two rows of one label"
    return found


def test_every_printed_cifar_number_has_a_row_in_both_readings():
    frame = published(PAPER)
    printed = frame[frame["dataset"].isin(["cifar10", "cifar100"]) & (frame["table"] != "text")]
    assert len(printed) == 12 * 4 - 4 + 12 + 8 + 8
    for row in printed.itertuples():
        assert {f"{row.method}@{reading}" for reading in READINGS} <= rows(row.column).keys(), (row.table, row.method, row.column)


def test_a_cell_waits_for_runs_or_says_why_it_never_has_any():
    states = {}
    for cell in cells(Results(PAPER, {}, "paper")):
        states.setdefault(cell.state.partition(";")[0], []).append((cell.table, cell.reading))
    assert len(states.pop("no run yet")) == 72 * 2
    assert {state: len(found) for state, found in states.items()} == {
        "not run: needs imagenet-lt": 20, "not run: needs inaturalist2018": 15,
        "not run: no such method here": 1,  # meta-learning on iNaturalist 2018
        "not decidable: a change, and what it is measured against is not named": 2}


def test_rows_are_printed_but_for_the_switches():
    """Nothing is trained on a column of the tables that the tables do not print there."""
    frame = published(PAPER)
    for column in CIFAR:
        printed = set(frame[frame["column"] == column]["method"])
        assert {m.name for m in rows(column).values()} == printed
    for name, ratio_100 in (("equalization", True), ("la", True), ("kps-mixup", False)):
        assert [f"{name}@written" in rows(column) for column in CIFAR] == [True, not ratio_100, True, not ratio_100]


def test_protocols_are_section_3_5s_and_the_codes():
    written, released = PROTOCOLS["written"], PROTOCOLS["released"]
    for protocol in (written, released):
        assert (protocol.epochs, protocol.batch_size, protocol.momentum, protocol.weight_decay) == (200, 64, 0.9, 0.0002)
    epochs = (0, 4, 159, 160, 179, 180)
    assert [written.learning_rate(e) for e in epochs] == pytest.approx([0.02, 0.1, 0.1, 0.001, 0.001, 0.00001])
    assert [released.learning_rate(e) for e in epochs] == pytest.approx([0.02, 0.1, 0.1, 0.01, 0.01, 0.001])
    for reading in READINGS:
        second = PROTOCOLS[f"{reading}-mislas"]
        assert (second.epochs, second.batch_size, second.trains, second.schedule) == (10, 128, "head", "cosine")
        assert [second.learning_rate(e) for e in (0, 5)] == pytest.approx([0.1, 0.05])
    assert PROTOCOLS["toy"].epochs == 30


def test_columns_are_called_what_they_are():
    for profile in (PARAMS.paper, PARAMS.quick):
        assert all(name == column.name for name, column in profile.columns.items())
    assert set(PARAMS.stand_ins) == set(PARAMS.quick.columns)
    assert set(PARAMS.stand_ins.values()) <= set(PARAMS.paper.columns)
    assert set(PARAMS.paper.protocols) == set(PARAMS.quick.protocols)


NUMBERS = {"s": 15.0, "n_base": 50.0}
OWN = {
    "kps@written": {"function": "kps_ga", **NUMBERS, "m_max": 0.5, "start": 120},
    "kps@released": {"function": "kps_ga_as_released", **NUMBERS, "m_max": 0.2, "start": 120, "s_max": 50.0},
    "kps-no-ga@written": {"function": "kps", **NUMBERS, "m_max": 0.5},
    "kps-no-ga@released": {"function": "kps_as_released", **NUMBERS, "m_max": 0.2},
}


@pytest.mark.parametrize("column", CIFAR)
def test_own_rows_are_what_the_readme_says(column):
    found = {label: m.describe() for label, m in rows(column).items()}
    for label, loss in OWN.items():
        assert found[label]["loss"] == loss
    for reading in READINGS:
        plain = found[f"kps@{reading}"]
        assert plain["head"]["kind"] == "cosine"
        drw, no_ga = found[f"kps-drw@{reading}"], found[f"kps-no-ga@{reading}"]
        assert {key for key in drw if drw[key] != no_ga[key]} == {"weights"}
        mixed = found[f"kps-mixup@{reading}"]
        assert {key for key in mixed if mixed[key] != plain[key]} == {"mixup"}
        assert mixed["mixup"] == 1.0


@pytest.mark.parametrize("column", CIFAR)
def test_the_released_focal_loss_sees_the_cosine_head_as_in_its_code(column):
    written, released = (rows(column)[f"focal@{reading}"] for reading in READINGS)
    assert (written.head.kind, written.describe()["loss"]) == ("linear", {"function": "focal", "gamma": 1.0})
    assert (released.head.kind, released.describe()["loss"]) == ("cosine", {"function": "focal_detached", "gamma": 1.0})
    assert released.scale == 1.0


def test_post_hoc_adjustment_tests_the_network_of_the_row_ce():
    for reading in READINGS:
        (tested,) = plan(PAPER, "paper", columns=("cifar10-lt-100",), methods=(f"la[mode=posthoc]@{reading}",), seeds=1)
        (ce,) = plan(PAPER, "paper", columns=("cifar10-lt-100",), methods=(f"ce@{reading}",), seeds=1)
        assert (tested.spec.protocol.epochs, tested.start.spec.key) == (0, ce.spec.key)


def test_bbn_on_large_sets_mixes_over_200_epochs_though_180_are_trained():
    found = {column: rows(column)["bbn@written"].loss.keywords for column in PAPER.large if "bbn@written" in rows(column)}
    assert found == {"imagenet-lt-resnet50": {"epochs": 200}, "inaturalist2018-resnet50": {"epochs": 200}}
    assert {PAPER.large[column]["written"].epochs for column in found} == {180}


def test_drw_starts_with_the_first_decay_of_the_profile():
    counts = np.array([5000, 50])
    for profile, first in (("paper", 160), ("quick", 16)):
        listed = PAPER.methods(PAPER.columns[profile][0], PAPER.protocols[profile])
        drw = next(m for m in listed if m.label == "kps-drw@released")
        assert drw.weights(counts, first - 1).tolist() == [1, 1]
        after = drw.weights(counts, first)
        assert after.sum() == pytest.approx(2)
        assert after[1] / after[0] == pytest.approx(78.9, abs=0.1)


def test_ga_starts_after_three_fifths_of_the_epochs():
    starts = {}
    for profile in ("paper", "quick"):
        for column in (c for c in PAPER.columns[profile] if not c.is_drawn):
            listed = PAPER.rows(profile, column)
            starts[column.name] = {m.describe()["loss"]["start"] for m in listed if m.name == "kps" and not m.variant}
    assert starts == {**{name: {120} for name in CIFAR}, TOY: {18}, "digits-lt-20": {12}, "digits-120-12-24": {12},
                      **{name: {108} for name in PAPER.large}}


@pytest.mark.parametrize("column", CIFAR)
def test_mislas_with_kps_shares_the_first_stage_and_the_second_ones_setting(column):
    for reading in READINGS:
        theirs, ours = (rows(column)[f"{name}@{reading}"] for name in ("mislas", "mislas-kps"))
        assert ours.first_stage == theirs.first_stage
        first = ours.first_stage
        assert (first.mixup, first.describe()["loss"]["function"], first.protocol) == (
            1.0, "softmax_cross_entropy", PROTOCOLS[reading])
        assert ours.protocol == theirs.protocol
        assert ours.protocol.moving_statistics is (COLUMNS[column].dataset == "cifar100")
        assert ours.sampler(np.array([5000, 50]), 0).tolist() == [0.5, 0.5]
        assert (ours.mixup, ours.head.kind, ours.head.keep, ours.head.rescale) == (0.0, "cosine", False, "")
        assert ours.describe()["loss"] == OWN[f"kps@{reading}"] | {"start": 0}


def test_a_backbone_is_trained_once_for_both_second_stages():
    items = plan(PAPER, "paper", columns=("cifar100-lt-50",), methods=("mislas", "mislas-kps"), seeds=2)
    assert len(items) == 8
    starts = {item.start.spec.key for item in items}
    assert len(starts) == 4  # two readings, two seeds
    assert {item.start.spec.seed for item in items} == {0, 1}


def test_readings_of_all_rows_differ_in_their_setting():
    """Text and code disagree on the decay, so no run may serve both."""
    for column in CIFAR:
        keys = {reading: {PAPER.spec("paper", COLUMNS[column], m, 0).key for m in rows(column).values()
                          if m.reading == reading and not is_step(m)} for reading in READINGS}
        assert not keys["written"] & keys["released"]


def test_a_switch_departs_in_one_thing_only():
    found = rows("cifar10-lt-100")
    differences = {}
    for label, method in found.items():
        if method.variant and method.variant != "mode=posthoc" and not is_step(method):  # which is another method
            base, said = found[f"{method.name}@{method.reading}"].describe(), method.describe()
            if {key for key in base if base[key] != said[key]} == {"loss"}:
                base, said = base["loss"], said["loss"]
            differences[label] = {key for key in said if base[key] != said[key]}
    assert differences == {
        "focal[head=linear]@released": {"head"},
        "kps[m_max=0.2]@written": {"m_max"}, "kps[m_max=0.5]@released": {"m_max"}, "kps[start=decay]@written": {"start"},
        "mislas-kps[sampler=instance]@written": {"sampler"},
    }
    assert found["kps[start=decay]@written"].describe()["loss"]["start"] == 160
    assert found["mislas-kps[sampler=instance]@written"].sampler(np.array([5000, 50]), 0) is None
    for column in CIFAR[1:]:
        assert not any(m.variant for m in rows(column).values())


def test_the_toy_set_trains_the_four_losses_of_its_figures_and_keeps_their_features():
    found = rows(TOY)
    assert list(found) == ["ce@written", "focal@written", "ldam@written", "kps@written"]
    assert all(m.keep_features and m.protocol == PROTOCOLS["toy"] for m in found.values())
    assert found["ldam@written"].describe()["loss"] == {"function": "ldam", "s": 30.0, "largest": 0.5}


def test_figures_name_rows_that_exist():
    numbers = [figure.number for figure in FIGURES]
    assert numbers == ["2.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7a", "3.7b", "3.8a", "3.8b"]
    for figure in FIGURES:
        bound = getattr(figure.draw, "keywords", {})
        for _, column, label, _ in bound.get("panels", ()):
            assert label in rows(column)
        if "published_column" in bound:
            assert set(bound["labels"]) <= rows(bound["published_column"]).keys()
    frame = published(PAPER)
    assert set(STRATEGIES) == set(frame[frame["table"] == "3.4"]["method"])
    assert set(TECHNIQUES) <= set(frame[frame["table"] == "3.2"]["method"])


def test_what_the_printed_numbers_say_of_the_claims():
    """KPS with mixup is better than MiSLAS in one CIFAR column of four; the rest of the prose agrees with its tables."""
    printed = {o.claim.id: o.printed for o in evaluate(Results(PAPER, {}, "paper"))}
    assert len(printed) == 33
    assert {name: verdict for name, verdict in printed.items() if verdict.startswith("fails")} == {
        "mixup-beats-mislas": "fails (3 of 4 columns)"}
    assert {name for name, verdict in printed.items() if verdict == "not printed"} == {
        name for name in printed if name.startswith("figure-")}


def test_claims_on_heads_middles_and_tails_are_about_the_groups_of_section_3_5_5():
    claims = load_claims(PAPER)
    groups = {claim.id: claim.group for claim in claims if claim.id.startswith("figure-")}
    parts = {"head": "head1-3", "mid": "mid1-4", "tail": "tail1-3", "head1": "head1", "head2": "head2", "tail1": "tail1"}
    assert {name: parts[next(word for word in name.split("-") if word in parts)] for name in groups} == groups
    assert all(set(claim.classes) == {"all"} for claim in claims)  # never a split at the geometric mean


def test_tables_3_5_and_3_6_have_a_claim_for_each_of_their_columns():
    columns = {(table, column) for claim in load_claims(PAPER) for table in claim.tables for column in claim.columns
               if table in ("3.5", "3.6")}
    frame = published(PAPER)
    assert columns == {(row.table, row.column) for row in frame[frame["table"].isin(("3.5", "3.6"))].itertuples()}


def test_the_quick_profile_trains_every_row():
    first, toy = PAPER.columns["quick"]
    protocols = PAPER.protocols["quick"]
    assert {m.label for m in PAPER.methods(first, protocols)} == {
        label for label, m in rows("cifar10-lt-100").items() if not is_step(m)}
    assert {m.label for m in PAPER.methods(toy, protocols)} == rows(TOY).keys()
    assert len(plan(PAPER, "quick")) == 41 + 4


def test_figures_from_equations_are_drawn_without_records_and_the_others_say_what_is_missing():
    drawn = {figure.number: figure.draw(Results(PAPER, {}, "paper")) for figure in FIGURES}
    from_equations = {"2.1", "3.2", "3.3", "3.4"}
    assert {number for number, drawing in drawn.items() if not isinstance(drawing, str)} == from_equations
    assert all(len(drawn[number].data) for number in from_equations)


@pytest.mark.parametrize(("column", "m_max", "rare"), [
    ("imagenet-lt-resnet50", 0.35, 58), ("imagenet-lt-resnext50", 0.35, 58), ("inaturalist2018-resnet50", 0.3, 27)])
def test_rows_of_large_sets_have_section_3_5_2s_margin_and_ga_from_three_fifths_of_their_epochs(column, m_max, rare):
    """rare: the smallest class that the equalised loss does not spare, 115,846 / 1,000 / 2 or 437,513 / 8,142 / 2."""
    found = {label: m.describe() for label, m in rows(column).items()}
    assert found["kps@written"]["loss"] == {"function": "kps_ga", **NUMBERS, "m_max": m_max, "start": 108}
    facts = LARGE[column.rpartition("-")[0]]
    threshold = found["equalization@written"]["loss"]["threshold"] * facts.train.images
    assert rare - 1 < threshold < rare
    decoupled = found["decoupling@written"]["head"]
    assert (decoupled["keep"], decoupled["rescale"]) == (True, "tau" if "inaturalist" in column else "class")
    if "resnext50" not in column:
        mixed, plain = found["kps-mixup@written"], found["kps@written"]
        assert {key for key in mixed if mixed[key] != plain[key]} == {"mixup"}
        theirs, ours = (rows(column)[f"{name}@written"] for name in ("mislas", "mislas-kps"))
        assert (ours.first_stage, ours.protocol, ours.head.kind) == (theirs.first_stage, theirs.protocol, "cosine")
        assert found["mislas-kps@written"]["loss"] == plain["loss"] | {"start": 0}
        assert found["mislas@written"]["loss"] == {"function": "label_aware_smoothing", "head": 0.3, "tail": 0.0}
        assert (ours.protocol.batch_size, ours.protocol.epochs, ours.protocol.learning_rate(0)) == (256, 10, 0.1)
        drw = rows(column)["ldam-drw@written"].weights
        assert drw(np.array([1000, 2]), 119).tolist() == [1, 1]
        assert drw(np.array([1000, 2]), 120)[1] > 1
