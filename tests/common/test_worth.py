"""Which runs a campaign takes first, and what fits into the time."""

from dataclasses import replace

import pytest

from common.cost import work
from common.method import Method, plan
from common.spec import Column
from common.train.work import form_packs
from common.worth import begun_after, fit, needs, offers, schedule, wanted
from tests.records import some_loss, toy_paper


@pytest.fixture
def papers(tmp_path):
    """Two papers with the same protocol and columns; the second has a method of its own beside the same cross-entropy."""
    first = toy_paper(tmp_path / "first")
    printed = ("1,cifar10,lt,100,ce,[4],29.60,", "1,cifar10,lt,100,rival,ours,20.00,")
    second = replace(toy_paper(tmp_path / "second", published=printed), name="second", own=("rival",),
                     seeds={"paper": 5, "quick": 1})
    return first, second


def form(limit=100):
    return lambda runs: form_packs(runs, limit)


def per_run(pack) -> float:
    """Ten seconds a run."""
    return 10.0 * len(pack)


def tiers(papers, **selection) -> dict[str, int]:
    runs, worth = wanted(papers, "paper", **selection)
    return {f"{m.label}": worth[m.run.key].tier for m in runs}


def test_own_methods_and_cross_entropy_come_first_then_rows_then_ablations_then_further_seeds(papers):
    found = tiers(papers[:1], seeds=5)
    lt = "cifar10-lt-100"
    assert found[f"{lt} own@written seed 0"] == found[f"{lt} own@released seed 2"] == found[f"{lt} ce@written seed 0"] == 0
    assert found[f"{lt} rival@written seed 1"] == 1
    assert found[f"{lt} own[beta=1.0;delta=2.0]@written seed 0"] == 2
    assert found[f"{lt} own@written seed 3"] == 3
    assert found[f"{lt} own[beta=1.0;delta=2.0]@written seed 4"] == 5


def test_a_run_that_two_papers_print_is_there_once_and_worth_its_best_place_and_both_numbers(papers):
    runs, worth = wanted(papers, "paper")
    assert len({m.run.key for m in runs}) == len(runs)
    rival = next(m for m in runs if m.label == "cifar10-lt-100 rival@written seed 0")
    alone = wanted(papers[:1], "paper")[1][rival.run.key]
    assert (alone.tier, alone.numbers) == (1, 1)
    assert (worth[rival.run.key].tier, worth[rival.run.key].numbers) == (0, 2)
    assert rival.folder.is_relative_to(papers[0].folder)


def test_a_start_is_worth_what_needs_it(papers):
    def methods(column, protocols):
        first = Method("pretext", "written", some_loss, task="rotation")
        return (Method("own", "written", some_loss, starts_from=first), Method("ce", "written", some_loss))

    paper = replace(papers[0], methods=methods)
    runs, worth = wanted([paper], "paper", seeds=1)
    own = next(m for m in runs if m.method.name == "own")
    assert own.start.run.key not in {m.run.key for m in runs}
    assert worth[own.start.run.key] == worth[own.run.key]


def test_packs_are_offered_by_tier_then_by_printed_numbers_for_the_work(papers):
    runs, worth = wanted(papers[:1], "paper")
    found = offers(runs, worth, form(), per_run)
    assert [o.worth.tier for o in found] == [0, 0, 1, 1, 2, 2]
    for tier in range(3):
        a, b = (o for o in found if o.worth.tier == tier)
        each = [o.worth.numbers / len(o.pack) / work(o.pack[0].run.column, o.pack[0].run.protocol) for o in (a, b)]
        assert each[0] >= each[1]
    assert {m.run.key for o in found for m in o.pack} == {m.run.key for m in runs}


def test_what_does_not_fit_is_made_smaller_and_keeps_the_first_seeds(papers):
    runs, worth = wanted(papers[:1], "paper")
    found = offers(runs, worth, form(), per_run)
    assert fit(found, 1000.0, per_run) == found[0]
    smaller = fit(found, 45.0, per_run)
    assert len(smaller.pack) == 4
    assert sorted(m.run.seed for m in smaller.pack) == [0, 0, 0, 1]
    assert smaller.seconds == 40.0


def test_where_no_run_fits_the_first_is_begun_if_an_epoch_does(papers):
    runs, worth = wanted(papers[:1], "paper")
    found = offers(runs, worth, form(), lambda pack: 400.0)  # four epochs
    assert fit(found, 150.0, lambda pack: 400.0) == found[0]
    assert fit(found, 99.0, lambda pack: 400.0) is None
    unknown = offers(runs, worth, form(), lambda pack: None)
    assert fit(unknown, 1.0, lambda pack: None) == unknown[0]


def test_the_plan_fills_the_time_of_every_place_and_never_more(papers):
    runs, worth = wanted(papers[:1], "paper")

    def offer(ready):
        return offers(ready, worth, form(8), per_run)

    for places in (1, 2):
        planned = schedule(runs, offer, per_run, 200.0, places)
        assert sum(o.seconds for o in planned) == 200.0 * places
        keys = [m.run.key for o in planned for m in o.pack]
        assert len(set(keys)) == len(keys) == 20 * places
    assert sum(len(o.pack) for o in schedule(runs, offer, per_run, float("inf"))) == len(runs)


def test_a_second_stage_is_planned_after_its_first():
    from pathlib import Path

    from tests.common.train.toys import METHODS, ROTATION, planned

    second = planned(Method("second", "written", METHODS[0].loss, starts_from=ROTATION), Path("/nowhere"))
    waiting = {m.run.key: m for m in (second, second.start)}
    assert begun_after(waiting) == [second.start]
    waiting.pop(second.start.run.key)
    assert begun_after(waiting) == [second]


def test_hours_of_everything_name_what_nobody_knows(papers):
    runs = plan(papers[0], "paper")
    assert needs(runs, form(), per_run) == (10.0 * len(runs), 0)

    def unknown_step(pack):
        return None if pack[0].run.column.imbalance == "step" else 10.0 * len(pack)

    known = [m for m in runs if m.run.column.imbalance == "lt"]
    assert needs(runs, form(), unknown_step) == (10.0 * len(known), len(runs) - len(known))


def test_only_the_named_columns(papers):
    runs, _ = wanted(papers, "paper", columns=["cifar10-step-100"])
    assert {m.run.column for m in runs} == {Column("cifar10", "step", 100, "resnet32")}
