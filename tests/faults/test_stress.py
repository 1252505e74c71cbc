"""Numbers under stress: what goes wrong in one run stays there, and what is rare or plenty is counted right."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from common.campaign.merging import RecordPlace, merge
from common.methods.losses import softmax_cross_entropy
from common.methods.method import Method
from common.plan import missing_runs
from common.spec import Column
from common.store import load_records, save_record
from common.train.device import Device
from common.train.loop import end_epoch, train_batches, train_pack
from common.train.record import Curves
from common.train.resident import ResidentSteps
from common.train.start import load_start
from common.train.state import Course, Workspace
from common.train.tally import BestAnswers
from tests.common.train.kinds import FIRST_STAGES, SECOND_STAGES
from tests.common.train.toys import METHODS, PROTOCOL, planned
from tests.records import make_record

CPU = Device("cpu", "float32", False)
RUNS = 64
SHORT = replace(PROTOCOL, epochs=2, batch_size=300, decay_epochs=(1,), warmup_epochs=0)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    from common.data.sets import load
    from common.data.sources import prepare

    folder = tmp_path_factory.mktemp("data")
    prepare("digits", folder, None)
    return load("digits", folder)


@pytest.fixture(scope="module")
def first_stages(digits, tmp_path_factory):
    """A folder with the trained first stages of all second stages."""
    folder = tmp_path_factory.mktemp("first")
    firsts = missing_runs([m for methods in SECOND_STAGES for m in second_members(methods, folder)], {})
    for name in ("clouded", "mixup"):
        mine = [m for m in firsts if m.method.name == name]
        assert train_pack(mine, digits, CPU, Workspace(folder / "work", 1e9))
    return folder


def first_members(methods, folder, runs: int):
    protocol = replace(SHORT, optimiser=optimiser_of(methods[0]))
    methods = [replace(m, protocol=None) for m in methods]
    return [planned(methods[i % len(methods)], folder, i // len(methods), protocol) for i in range(runs)]


def second_members(methods, folder):
    """So many seeds that the usual second stages fill a pack of 64 runs and one more."""
    seeds = range(1 + RUNS // len(methods) if len(methods) > 1 else 4)
    return [planned(m, folder, seed, m.protocol or PROTOCOL) for m in methods for seed in seeds]


def states(members, digits, poison: int | None):
    """What every run has after two epochs; `poison`: the run whose weights are not a number from the second on."""
    members = sorted(members, key=lambda m: m.method.label)
    steps = ResidentSteps(members, digits, CPU)
    load_start(steps)
    pack, course = steps.pack, Course(Curves(len(members)), BestAnswers(len(members)))
    run_epoch(steps, course)
    if poison is not None:
        pack.load_run_state(poison, {name: torch.full_like(t, float("nan")) if t.is_floating_point() else t
                                     for name, t in pack.run_state(poison).items()})
    run_epoch(steps, course)
    assert poison is None or not pack.alive[poison]
    tensors = [{name: t.clone() for name, t in pack.run_state(run).items()} for run in range(len(members))]
    steps.close()
    return tensors, course.curves


def run_epoch(steps: ResidentSteps, course: Course) -> None:
    for _ in train_batches(steps, course.epoch, 0):
        pass
    end_epoch(steps, course)


def optimiser_of(method: Method) -> str:
    return "adam" if method.head.kind in ("gaussian", "centres", "quadratic") else "sgd"


@pytest.mark.parametrize("methods", FIRST_STAGES, ids=lambda group: " ".join(m.name for m in group))
def test_a_run_that_is_not_a_number_changes_no_bit_of_the_others(methods, digits, tmp_path):
    runs = RUNS if len(methods) > 1 and methods[0].net.kind == "plain" and not methods[0].streams.samplers else 4
    the_others_are_as_before(first_members(methods, tmp_path, runs), digits)


@pytest.mark.parametrize("methods", SECOND_STAGES, ids=lambda group: " ".join(m.name for m in group))
def test_a_second_stage_that_is_not_a_number_changes_no_bit_of_the_others(methods, digits, first_stages):
    the_others_are_as_before(second_members(methods, first_stages), digits)


def the_others_are_as_before(members, digits) -> None:
    runs = len(members)
    whole, curves = states(members, digits, None)
    one, other = states(members, digits, runs // 2)
    for run in range(runs):
        if run != runs // 2:
            assert all(torch.equal(tensor, one[run][name]) for name, tensor in whole[run].items()), run
            assert curves.loss[run] == other.loss[run]
            assert curves.accuracy[run] == other.accuracy[run]


def last_step(outputs, labels, context, *, epoch: int):
    """Cross-entropy that is not a number in one epoch."""
    bad = (context.epoch == epoch).to(outputs.logits.dtype)
    return softmax_cross_entropy(outputs, labels, context) + (bad - bad) / (1 - bad)


def test_a_run_that_diverges_in_the_last_epoch_has_a_record_that_says_so_and_no_weights(digits, tmp_path):
    late = Method("late", "written", partial(last_step, epoch=1))
    members = [planned(m, tmp_path, 0, SHORT) for m in (METHODS[0], late)]
    assert train_pack(members, digits, CPU, Workspace(tmp_path / "work", 1e9))
    good, bad = (load_records(tmp_path)[m.spec.key] for m in members)
    assert (good["status"], bad["status"]) == ("done", "diverged")
    assert bad["made"]["diverged_in_epoch"] == 1
    assert [m.checkpoint.exists() for m in members] == [True, False]


def test_a_class_without_a_test_image_counts_nowhere(digits, tmp_path):
    kept = digits.y_test != 3
    images = replace(digits, x_test=digits.x_test[kept], y_test=digits.y_test[kept])
    item = planned(METHODS[0], tmp_path, 0, SHORT)
    assert train_pack([item], images, CPU, Workspace(tmp_path / "work", 1e9))
    record = load_records(tmp_path)[item.spec.key]
    assert sum(map(sum, record["confusion"])) == kept.sum()
    assert record["confusion"][3] == [0] * 10
    right = sum(record["confusion"][c][c] for c in range(10))
    assert record["accuracy"]["last"] == pytest.approx(100 * right / kept.sum(), abs=1e-3)


def test_a_subset_with_one_image_a_class_trains(digits, tmp_path):
    column = Column("digits", "counts", 1, "resnet8", subset="hash", counts=(1,) * 10)
    item = planned(METHODS[0], tmp_path, 0, SHORT, column)
    assert train_pack([item], digits, CPU, Workspace(tmp_path / "work", 1e9))
    record = load_records(tmp_path)[item.spec.key]
    assert (record["status"], record["counts"]) == ("done", [1] * 10)


def test_three_thousand_records_are_merged_in_one_go(tmp_path):
    items = [planned(method, tmp_path / "there", seed) for method in METHODS[:3] for seed in range(1000)]
    for item in items:
        save_quickly(item)
    places = {m.spec.key: RecordPlace(tmp_path / "here" / m.folder.relative_to(tmp_path / "there"), m.digest) for m in items}
    merged = merge([tmp_path / "there"], lambda seeds: places, tmp_path / "here")
    assert (merged.new, merged.refused) == (3000, [])


def save_quickly(item) -> None:
    save_record(item.folder, make_record(item, 70.0))
