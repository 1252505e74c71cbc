"""The path from the text's method to the code's of every paper that has both readings, and the switches that its README names."""

import re

import pytest
import torch

from common.campaign.priority import TIERS, wanted
from common.methods.path import UNTIL, is_step, steps_of
from common.paper import Paper
from common.report.page.page import DIFFERENCES
from common.report.published import published
from common.report.results import Results
from common.report.waterfall import waterfall_block
from common.store import load_records
from papers.catalog import PAPERS
from papers.icu import equations as icu
from papers.kps import replicate as kps
from papers.mm import replicate as mm
from tests import loss_checks
from tests.papers import test_icu_losses

COLUMN = "cifar10-lt-100"
WITH_BOTH = {"icu": "icu", "mm": "mm-drw", "kps": "kps", "fbl": "fbl", "gcl": "gcl"}
PATHS = [pytest.param(paper, id=paper.name) for paper in PAPERS if paper.name in WITH_BOTH]


def column_of(paper: Paper):
    return next(column for column in paper.columns["paper"] if column.name == COLUMN)


def keys_of(paper: Paper) -> dict[str, str]:
    """Label -> key of seed 0."""
    return {row.label: paper.spec("paper", column_of(paper), row, 0).key for row in paper.rows("paper", column_of(paper))}


def test_the_papers_with_two_readings_of_one_row_have_a_path_and_no_other_has():
    for paper in PAPERS:
        rows = paper.rows("paper", column_of(paper))
        readings = {reading: {row.name for row in rows if row.name in paper.own and row.reading == reading and not row.variant}
                    for reading in ("written", "released")}
        wanted_names = {WITH_BOTH[paper.name]} if readings["written"] & readings["released"] else set()
        assert {row.name for row in steps_of(rows)} == wanted_names, paper.name


@pytest.mark.parametrize("paper", PATHS)
def test_a_path_ends_in_the_released_run_and_each_step_is_a_run_of_its_own(paper: Paper):
    keys, name = keys_of(paper), WITH_BOTH[paper.name]
    steps = [row.label for row in steps_of(paper.rows("paper", column_of(paper)))]
    chain = [keys[f"{name}@written"], *(keys[label] for label in steps)]
    assert chain[-1] == keys[f"{name}@released"]
    assert len(set(chain)) == len(chain)


def parts(paper: Paper, row) -> dict:
    """What a run is made of, flat: protocol and method, of its first stage too, and the numbers of its loss."""
    spec = paper.spec("paper", column_of(paper), row, 0).as_json()
    flat = {}

    def walk(place: str, value) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{place}.{key}", inner)
        else:
            flat[place] = value

    walk("", {"protocol": spec["protocol"], "method": spec["method"]})
    return flat


CHANGES = {  # of each step, by hand: what of the run it changes
    "mm": [{"loss.s"}, {"weights.then.function", "weights.then.beta"}, {"loss.function", "loss.own"}, {"loss.own"},
           {"loss.function", "loss.own"}],
    "kps": [{"protocol.decay_factor"}, {"loss.m_max"}, {"loss.function"}, {"loss.function", "loss.s_max"}],
    "fbl": [{"protocol.batch_size"}, {"loss.curriculum.T"}, {"loss.function", "loss.strength"}],
    "gcl": [{"loss.cloud", "starts_from.loss.cloud"}, {"starts_from.protocol.batch_size"}, {"starts_from.protocol.decay_factor"},
            {"mixup"}, {"protocol.batch_size", "protocol.epochs", "protocol.rate"}, {"head.keep"}, {"loss.s"},
            {"loss.function", "loss.gamma", "loss.m"}, {"loss.gamma"}, {"sampler"}],
    "icu": [{"protocol.decay_epochs"}, {"network"}, {"loss.alpha", "loss.gamma"}, {"loss.function"},
            {"loss.function", "loss.dimensions"}, {"loss", "head"}],
}


@pytest.mark.parametrize("paper", PATHS)
def test_each_step_changes_what_it_says_and_nothing_else(paper: Paper):
    rows = paper.rows("paper", column_of(paper))
    written = next(row for row in rows if row.label == f"{WITH_BOTH[paper.name]}@written")
    chain = [parts(paper, row) for row in (written, *steps_of(rows))]
    assert len(chain) == len(CHANGES[paper.name]) + 1
    for before, after, wanted_changes in zip(chain[:-1], chain[1:], CHANGES[paper.name], strict=True):
        changed = {place for place in before.keys() | after.keys() if before.get(place) != after.get(place)}
        places = {place.removeprefix(".").removeprefix("method.") for place in changed}
        for whole in wanted_changes & {"sampler", "loss", "head"}:  # another function, with other numbers
            places = {whole if place.startswith(f"{whole}.") else place for place in places}
        assert places == wanted_changes


def test_steps_are_planned_in_the_published_profile_alone_and_among_the_ablations():
    for paper in PAPERS:
        quick = [row for column in paper.columns["quick"] for row in paper.rows("quick", column)]
        assert not any(is_step(row) for row in quick)
        others = {key for label, key in keys_of(paper).items() if UNTIL not in label}
        _, worth = wanted([paper], "paper", (COLUMN,), 1)
        new = {label: key for label, key in keys_of(paper).items() if UNTIL in label and key not in others}
        assert {worth[key].reason for key in new.values()} <= {TIERS[2]}, paper.name
        assert bool(new) == (paper.name in WITH_BOTH)


# ---------------------------------------------------------------- the table of differences in the README


def table_rows(paper: Paper) -> list[list[str]]:
    """The cells of the table of differences, its header first."""
    text = (paper.folder / "README.md").read_text()
    section = text.split(f"## {DIFFERENCES}\n\n")[1].split("\n\n")[0]
    lines = [line for line in section.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def planned_names(paper: Paper) -> set[str]:
    columns = paper.columns["paper"]
    printed = {row.variant for row in published(paper).itertuples()}
    return ({row.variant for column in columns for row in paper.rows("paper", column)} - printed) | {c.name for c in columns}


@pytest.mark.parametrize("paper", PATHS)
def test_each_difference_has_a_planned_switch_or_says_why_there_is_none(paper: Paper):
    header, *rows = table_rows(paper)
    assert header[-1] == "switch"
    switches = [name for row in rows for name in re.findall(r"`([^`]*[=-][^`]*)`", row[-1])]
    known = planned_names(paper) | {row.name for row in paper.rows("paper", column_of(paper))}
    assert [name for name in switches if name not in known] == []
    for row in rows:
        assert len(row) == len(header), row[0]
        named = re.findall(r"`([^`]*[=-][^`]*)`", row[-1])
        assert named or "cannot be switched: " in row[-1] or row[-1].startswith("none needed: "), row[0]
    steps = {row.variant for row in steps_of(paper.rows("paper", column_of(paper)))}
    assert steps <= set(switches), "a step that no row of the table names"


def test_the_paper_without_code_names_planned_rows_where_it_fills_a_gap_the_other_way():
    paper = next(p for p in PAPERS if p.name == "two_head")
    _, *rows = table_rows(paper)
    named = [name for row in rows for name in re.findall(r"`((?:\w|-)+=[^`]*)`", row[-1])]
    assert len(named) > 10
    known = planned_names(paper)
    assert [n for n in named if n not in known and not (n.endswith("=") and any(k.startswith(n) for k in known))] == []


# ---------------------------------------------------------------- the losses between text and code


def test_a_margin_between_the_readings_is_the_texts_where_a_rival_is_above_zero_and_the_codes_but_for_equality():
    z = torch.tensor([[0.5, 0.2, -0.1], [0.1, 0.4, 0.3], [0.9, 0.2, 0.1], [-0.5, -0.2, 0.8]], dtype=torch.float64)
    y = torch.tensor([0, 2, 1, 2])
    between = mm.margin_between(z, y, 0.9, 0.6, "label")
    written, released = mm.maximum_margin(z, y, 0.9, 0.6), mm.margin_as_released(z, y, 0.6, 1.5)
    assert torch.equal(between[:3], written[:3])
    assert between[3] == pytest.approx(torch.tensor(-0.8 - 0.9, dtype=torch.float64).exp())  # the rival, -0.2, counts as 0
    assert written[3] == pytest.approx(torch.tensor(-1.0 - 0.9, dtype=torch.float64).exp())
    first = mm.margin_between(z, y, 0.9, 0.6, "first")
    equal = released == 0  # class 0, of the first sample, is the strongest rival
    assert equal.tolist() == [False, False, True, False]
    assert torch.allclose(first[~equal], released[~equal], atol=0, rtol=1e-12)
    assert first[2] == pytest.approx(torch.tensor(-0.9, dtype=torch.float64).exp())  # counts as correct


def test_kps_between_the_readings_has_the_codes_margins_and_the_texts_scales():
    outputs, labels, context = loss_checks.make()[:3]
    numbers = {"s": 15.0, "n_base": 50.0, "m_max": 0.2, "start": 0}
    between, written = (f(outputs, labels, context, **numbers) for f in (kps.kps_ga_flipped_margins, kps.kps_ga))
    released = kps.kps_ga_as_released(outputs, labels, context, **numbers, s_max=1e9)
    assert not torch.allclose(between, written)
    assert not torch.allclose(between, released)
    early = {**numbers, "start": 9}  # before the scales of the classes' own, only the margins count
    assert torch.equal(kps.kps_ga_flipped_margins(outputs, labels, context, **early),
                       kps.kps_ga_as_released(outputs, labels, context, **early, s_max=1e9))


def test_icu_between_the_readings_has_one_difference_to_either_neighbour():
    outputs, labels, context = test_icu_losses.make("gaussian")
    numbers = {"alpha": 0.3, "lambda_mu": 0.15, "lambda_sigma": 0.07}
    with_gamma = icu.icu_multiplied_per_sample(outputs, labels, context, gamma=0.2, **numbers)
    assert not torch.allclose(with_gamma, icu.icu_per_sample(outputs, labels, context, gamma=0.2, **numbers))
    without = icu.icu_multiplied_per_sample(outputs, labels, context, gamma=0.0, **numbers)
    assert torch.allclose(without, icu.icu_per_sample(outputs, labels, context, gamma=0.0, **numbers))
    free = {"alpha": 0.3, "lambda_mu": 0.0, "lambda_sigma": 0.0, "gamma": 0.2}
    assert torch.allclose(icu.icu_multiplied_per_sample(outputs, labels, context, **free),
                          icu.icu_multiplied(outputs, labels, context, **free))


@pytest.mark.parametrize("paper", PATHS)
def test_the_readme_holds_the_waterfall_of_the_records(paper: Paper):
    block = waterfall_block(Results(paper, load_records(paper.folder.parent), "paper"))
    assert block.strip() in (paper.folder / "README.md").read_text(), "run make report"
