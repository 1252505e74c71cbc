"""Finished runs answer a further test set: on the test images of their dataset, what their records say."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from common.cli.answers import answer_packs, answered, find_tests, ready_to_answer, record_name
from common.data.second_tests import FurtherImages
from common.errors import UserError
from common.methods.losses import softmax_cross_entropy
from common.methods.method import Head, Method, Start
from common.methods.one_stage import prior_adjustment
from common.predictions import Library
from common.report.clean import second_of
from common.store import load_records, weights_metadata
from common.train.device import Device
from common.train.loop import train_pack
from common.train.state import Workspace
from tests.common.train.toys import METHODS, PROTOCOL, ROTATION, planned

SINGLE = Device("cpu", "float32", False)
ADJUSTED = Method("adjusted", "written", softmax_cross_entropy, adjust=partial(prior_adjustment, tau=1.0))


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory) -> tuple[Path, list]:
    root = tmp_path_factory.mktemp("papers")
    members = [planned(method, root) for method in (METHODS[0], METHODS[1], ADJUSTED, ROTATION)]
    assert train_pack(members, digits, SINGLE, Workspace(root / "work", 30.0))
    return root, members


def further(digits, rows: slice = slice(None)) -> FurtherImages:
    return FurtherImages("digits.9", "digits", digits.x_test[rows], digits.y_test[rows], "0123456789abcdef")


def test_on_the_test_images_themselves_the_answers_are_those_of_the_record(trained, digits, digits_folder):
    root, members = trained
    records, tests = load_records(root), further(digits)
    ready, said = ready_to_answer(members, records, tests)
    assert ([item.method.name for item in ready], said) == (["ce", "ldam-drw", "adjusted"], [])
    answer_packs([ready], records, tests, digits_folder, SINGLE)
    [file] = root.glob("*/second-tests/digits.9-01234567/*.predictions.npz")
    assert file.parents[2].name == "toy"
    found, library = second_of(root, digits_folder).further[tests.title], Library(root)
    assert found.keys() == answered(root, tests) == {record_name(records[item.spec.key]) for item in ready}
    for item in ready:
        mine, theirs = found[record_name(records[item.spec.key])], library.of(records[item.spec.key])
        np.testing.assert_array_equal(mine.labels, theirs.labels)
        for one, other in ((mine.answers, theirs.answers), (mine.plain, theirs.plain)):
            assert (one is None) == (other is None)
            if one:
                np.testing.assert_array_equal(one.last, other.last)
                assert np.abs(one.confidence.astype(int) - other.confidence).max() <= 1  # of another pack
                np.testing.assert_array_equal(one.best, one.last)
    assert sum(one.plain is not None for one in found.values()) == 1
    ready, said = ready_to_answer(members, records, tests)
    assert (ready, said) == ([], ["Of 3 selected runs on digits 3 have answered already."])


def test_a_part_of_the_images_is_answered_as_that_part(trained, digits, digits_folder):
    root, members = trained
    records, tests = load_records(root), further(digits, slice(0, 360, 7))._replace(name="digits.8")
    answer_packs([members[:1]], records, tests, digits_folder, SINGLE)
    [mine] = second_of(root, digits_folder).further[tests.title].values()
    np.testing.assert_array_equal(mine.answers.last, Library(root).of(records[members[0].spec.key]).answers.last[::7])


def test_runs_that_are_not_finished_or_have_no_weights_are_counted(trained, digits, tmp_path):
    _, members = trained
    records = load_records(trained[0])
    elsewhere = [planned(item.method, tmp_path) for item in members[:2]]
    assert ready_to_answer(elsewhere, {}, further(digits)) == ([], ["Of 2 selected runs on digits 2 have no finished run yet."])
    ready, said = ready_to_answer(elsewhere, records, further(digits))
    assert ready == []
    assert said == ["Of 2 selected runs on digits 2 have no weights here: these stay on the machine that trained them."]


def test_the_weights_of_another_run_are_refused(trained, digits, digits_folder, tmp_path):
    mine = planned(METHODS[0], tmp_path)
    mine.checkpoint.parent.mkdir(parents=True)
    save_file(load_file(trained[1][0].checkpoint), mine.checkpoint, weights_metadata(key="another", label=""))
    with pytest.raises(UserError, match="holds the weights of run another"):
        answer_packs([[mine]], load_records(trained[0]), further(digits), digits_folder, SINGLE)
    mine.checkpoint.write_bytes(b"nothing")
    with pytest.raises(UserError, match="is damaged"):
        answer_packs([[mine]], load_records(trained[0]), further(digits), digits_folder, SINGLE)


def test_an_unknown_test_set_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"No further test set 'cifar10\.1' .* there is: none"):
        find_tests("cifar10.1", tmp_path)


def test_a_head_of_another_kind_answers_too(digits, digits_folder, tmp_path):
    """A second stage, whose head is kept and whose backbone is another run's."""
    first = planned(METHODS[0], tmp_path)
    setting = replace(PROTOCOL, trains="head", epochs=1, warmup_epochs=0, decay_epochs=())
    method = Method("second", "written", softmax_cross_entropy, Head("linear", keep=True),
                    start=Start(replace(METHODS[0], protocol=PROTOCOL)), protocol=setting)
    second = planned(method, tmp_path, protocol=setting)
    for item in (first, second):
        assert train_pack([item], digits, SINGLE, Workspace(tmp_path / "work", 30.0))
    records, tests = load_records(tmp_path), further(digits)
    answer_packs([[second]], records, tests, digits_folder, SINGLE)
    [mine] = second_of(tmp_path, digits_folder).further[tests.title].values()
    np.testing.assert_array_equal(mine.answers.last, Library(tmp_path).of(records[second.spec.key]).answers.last)
