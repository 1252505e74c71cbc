"""Which runs a campaign takes first, and what fits into the time."""

import itertools
from dataclasses import replace
from functools import partial

import pytest

from common.campaign.priority import LAST, begun_after, by_worth, fit, needs, offers, schedule, wanted
from common.cost import Costs, Speed, whole_work
from common.methods.method import Method, Start
from common.plan import plan
from common.spec import Column
from common.train.packing import form_packs, together
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
    return lambda runs: form_packs(runs, lambda item: limit)


class Fixed:
    """Stands for `Costs`: so many seconds of a pack, whatever was trained before."""

    def __init__(self, seconds):
        self.of = seconds

    def after(self, pack) -> "Fixed":
        return self


PER_RUN = Fixed(lambda pack: 10.0 * len(pack))


def tiers(papers, **selection) -> dict[str, int]:
    runs, worth = wanted(papers, "paper", **selection)
    return {f"{m.label}": worth[m.spec.key].tier for m in runs}


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
    assert len({m.spec.key for m in runs}) == len(runs)
    rival = next(m for m in runs if m.label == "cifar10-lt-100 rival@written seed 0")
    alone = wanted(papers[:1], "paper")[1][rival.spec.key]
    assert (alone.tier, alone.numbers) == (1, 1)
    assert (worth[rival.spec.key].tier, worth[rival.spec.key].numbers) == (0, 2)
    assert rival.folder.is_relative_to(papers[0].folder)


def test_a_start_is_worth_what_needs_it(papers):
    def methods(column, protocols):
        first = Method("pretext", "written", some_loss, task="rotation")
        return (Method("own", "written", some_loss, start=Start(first)), Method("ce", "written", some_loss))

    paper = replace(papers[0], methods=methods)
    runs, worth = wanted([paper], "paper", seeds=1)
    own = next(m for m in runs if m.method.name == "own")
    assert own.start.spec.key not in {m.spec.key for m in runs}
    assert worth[own.start.spec.key].as_start == replace(worth[own.start.spec.key], as_start=None) == worth[own.spec.key]


def test_a_run_that_is_wanted_for_its_weights_alone_is_worth_what_needs_them(papers):
    """Cross-entropy has its record, and a method that is printed in no table starts from its weights."""
    def methods(column, protocols):
        first = Method("ce", "written", some_loss)
        return first, Method("another", "written", some_loss, start=Start(first), reduction="batch")

    runs, worth = wanted([replace(papers[0], methods=methods)], "paper", seeds=1)
    first, second = (next(m for m in runs if m.method.name == name) for name in ("ce", "another"))
    assert worth[first.spec.key].numbers > worth[second.spec.key].numbers
    assert worth[first.spec.key].tier < worth[second.spec.key].tier
    assert worth[first.spec.key].as_start == worth[second.spec.key]


def test_a_pack_is_the_best_runs_of_a_setting_filled_up_with_lower_tiers(papers):
    runs, worth = wanted(papers[:1], "paper")
    found = offers(runs, worth, form(12), PER_RUN)
    assert {m.spec.key for o in found for m in o.pack} == {m.spec.key for m in runs}
    assert sum(len(o.pack) for o in found) == len(runs)
    for column in {m.spec.column for m in runs}:
        mine = [o for o in found if o.pack[0].spec.column == column]
        assert all(len({m.spec.column for m in o.pack}) == 1 for o in mine)
        assert sorted(len(o.pack) for o in mine) == [12, 12]
        tiers = [[worth[m.spec.key].tier for m in o.pack] for o in mine]
        assert tiers[0][:9] == [0] * 9  # own in two readings and CE, three seeds each
        assert tiers[0][9:] == [1] * 3
        assert [m.spec.seed for m in mine[0].pack] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 1, 2]
        assert mine[0].worth.tier == 0
        assert mine[0].worth.numbers == sum(worth[m.spec.key].numbers for m in mine[0].pack)
    each = [o.worth.numbers / len(o.pack) / whole_work(o.pack[0].spec.column, o.pack[0].spec.protocol) for o in found[:2]]
    assert each[0] >= each[1]
    labels = [m.method.label for m in together(found[0].pack)]
    assert len([a for a, b in itertools.pairwise(labels) if a != b]) == len(set(labels)) - 1


def test_what_comes_last_is_offered_after_everything(papers):
    def methods(column, protocols):
        return (Method("ce", "written", partial(some_loss, kind="slow"), last=True), Method("dear", "written", some_loss_too))

    paper = replace(papers[0], methods=methods)
    runs, worth = wanted([paper], "paper", seeds=4)
    assert {worth[m.spec.key].tier for m in runs if m.method.last} == {LAST}
    assert [m.method.name for m in by_worth(runs, worth)][-8:] == ["ce"] * 8
    assert offers(runs, worth, form(1), PER_RUN)[-1].worth.reason == "long trainings, last"


def some_loss_too(outputs, labels, context):
    """Another loss that is only looked at."""


def test_what_does_not_fit_is_made_smaller_and_keeps_the_most_worthy(papers):
    runs, worth = wanted(papers[:1], "paper")
    found = offers(runs, worth, form(), PER_RUN)
    assert fit(found, 1000.0, PER_RUN) == found[0]
    smaller = fit(found, 45.0, PER_RUN)
    assert smaller.pack == found[0].pack[:4]
    assert [m.spec.seed for m in smaller.pack] == [0, 0, 0, 1]
    assert smaller.seconds == 40.0


def test_where_no_run_fits_the_first_is_begun_if_an_epoch_does(papers):
    runs, worth = wanted(papers[:1], "paper")
    four_epochs = Fixed(lambda pack: 400.0)
    found = offers(runs, worth, form(), four_epochs)
    assert fit(found, 150.0, four_epochs) == found[0]
    assert fit(found, 99.0, four_epochs) is None
    unknown = Fixed(lambda pack: None)
    found = offers(runs, worth, form(), unknown)
    assert fit(found, 1.0, unknown) == found[0]


def test_without_a_limit_of_time_what_nobody_knows_keeps_its_place(papers):
    runs, worth = wanted(papers[:1], "paper")
    best = offers(runs, worth, form(2), PER_RUN)[0].pack
    partly = Fixed(lambda pack: None if all(m in best for m in pack) else 10.0)
    found = offers(runs, worth, form(2), partly)
    assert fit(found, float("inf"), partly).pack == best
    assert fit(found, 1000.0, partly).pack != best  # nobody knows what would fit after it


def test_runs_of_no_epochs_are_offered_and_planned_like_others(papers):
    """They are tested only: what they cost is little, and nothing is divided by it."""
    def methods(column, protocols):
        only = replace(protocols["written"], epochs=0, warmup_epochs=0, decay_epochs=(), trains="head")
        first = Method("ce", "written", some_loss)
        start = Start(replace(first, protocol=protocols["written"]))
        return first, replace(first, name="own", adjust=some_loss_too, start=start, protocol=only)

    paper = replace(papers[0], methods=methods)
    runs, worth = wanted([paper], "paper", seeds=1)
    tested = [m for m in runs if m.start]
    costs = Costs(Speed({"resnet32": {1: 1.0}}))
    found = offers(tested, worth, form(), costs)
    assert 0 < found[0].seconds < offers([tested[0].start], worth, form(), costs)[0].seconds / 10
    assert fit(found, 1e-9, costs) is None
    assert sum(len(o.pack) for o in schedule(runs, lambda ready, c: offers(ready, worth, form(), c), costs, float("inf"))) == 4


def test_the_plan_fills_the_time_of_every_place_and_never_more(papers):
    runs, worth = wanted(papers[:1], "paper")

    def offer(ready, costs):
        return offers(ready, worth, form(8), costs)

    for places in (1, 2):
        planned = schedule(runs, offer, PER_RUN, 200.0, places)
        assert sum(o.seconds for o in planned) == 200.0 * places
        keys = [m.spec.key for o in planned for m in o.pack]
        assert len(set(keys)) == len(keys) == 20 * places
    assert sum(len(o.pack) for o in schedule(runs, offer, PER_RUN, float("inf"))) == len(runs)
    assert len(schedule(runs, offer, PER_RUN, float("inf"), most=2)) == 3


def test_a_plan_ends_with_what_nobody_knows_and_says_what_goes_on_next_time(papers):
    runs, worth = wanted(papers[:1], "paper")

    def planned(costs: Costs, seconds: float, places: int = 1) -> list:
        return schedule(runs, lambda ready, c: offers(ready, worth, form(8), c), costs, seconds, places)

    unknown = Fixed(lambda pack: None)
    assert [o.seconds for o in planned(unknown, 200.0)] == [None]
    assert len(planned(unknown, 200.0, places=2)) == 2
    assert sum(len(o.pack) for o in planned(unknown, float("inf"))) == len(runs)  # all of it comes at some time
    assert all(o.fits for o in planned(PER_RUN, 200.0))
    [one] = planned(Fixed(lambda pack: 100.0), 30.0)  # one of its four epochs does
    assert not one.fits


def test_a_second_stage_is_planned_after_its_first():
    from pathlib import Path

    from tests.common.train.toys import METHODS, ROTATION, planned

    second = planned(Method("second", "written", METHODS[0].loss, start=Start(ROTATION)), Path("/nowhere"))
    waiting = {m.spec.key: m for m in (second, second.start)}
    assert begun_after(waiting) == [second.start]
    waiting.pop(second.start.spec.key)
    assert begun_after(waiting) == [second]


def test_hours_of_everything_name_what_nobody_knows(papers):
    runs = plan(papers[0], "paper")
    assert needs(runs, form(), PER_RUN) == (10.0 * len(runs), 0)
    unknown_step = Fixed(lambda pack: None if pack[0].spec.column.imbalance == "step" else 10.0 * len(pack))
    known = [m for m in runs if m.spec.column.imbalance == "lt"]
    assert needs(runs, form(), unknown_step) == (10.0 * len(known), len(runs) - len(known))


def test_only_the_named_columns(papers):
    runs, _ = wanted(papers, "paper", columns=["cifar10-step-100"])
    assert {m.spec.column for m in runs} == {Column("cifar10", "step", 100, "resnet32")}
