"""Public lists about test sets: read from a folder, put into canonical order, refused where they are something else."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.data import second_tests as module
from common.data.near_duplicates import BLOCK, counts_markdown, group_of, kept_images, pruned, real_labels
from common.data.second_tests import (
    LISTS,
    SecondTests,
    has_partner,
    is_clear,
    load_further,
    load_second_tests,
    missing_lists,
    prepare_second_tests,
    read_pairs,
    rows_digest,
)
from common.data.sets import Raw, load
from common.data.sources import to_canonical
from common.errors import UserError
from common.spec import Column
from tests.conftest import ROOT, SECOND_TESTS

PAIRS = "TestID,TrainID,Distance,Judgment\n7,49999,0.5,1\n3,11,0.25,2\n9999,0,0.0,0\n"


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a made list of CIFAR-10 that counts as the genuine one."""
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "duplicates_cifar10.csv").write_text(PAIRS)
    rows = np.array([[3, 11, 2], [7, 49999, 1], [9999, 0, 0]])
    monkeypatch.setattr(module, "LISTS", (replace(LISTS[0], digest=rows_digest(rows)), *LISTS[1:]))
    return folder


def further(folder: Path, name: str = "cifar10.9_v1", count: int = 30, **changes: np.ndarray) -> Path:
    """A made second test set in the form of CIFAR-10.1."""
    generator = np.random.default_rng(3)
    arrays = {"data": generator.integers(0, 256, (count, 32, 32, 3), np.uint8), "labels": generator.integers(0, 10, count)}
    arrays |= changes
    folder.mkdir(exist_ok=True)
    for part, array in arrays.items():
        np.save(folder / f"{name}_{part}.npy", array)
    return folder


def test_a_list_is_put_into_canonical_order_and_its_source_digest_and_licence_are_said(listed: Path, tmp_path: Path):
    said: list[str] = []
    assert [p.name for p in prepare_second_tests(listed, tmp_path, said.append)] == ["second-tests-cifar10.npz"]
    tests = load_second_tests("cifar10", tmp_path)
    train, test = module.archive_order("cifar10")
    pairs = {(int(test[a]), int(train[b]), int(c)) for a, b, c in tests.duplicates}
    assert pairs == {(7, 49999, 1), (3, 11, 2), (9999, 0, 0)}
    assert [one.part for one in missing_lists(tests, "cifar10")] == ["within", "votes"]
    assert all(word in said[0] for word in ("cvjena/cifair", "licence: none stated", rows_digest(read_pairs(
        listed / "duplicates_cifar10.csv", "cifar10", "duplicates"))[:16]))
    assert "git ignores" in said[-1]


def test_the_order_of_the_rows_and_the_spelling_of_the_distances_decide_nothing(listed: Path, tmp_path: Path):
    lines = PAIRS.splitlines()
    text = "\r\n".join([lines[0], *reversed(lines[1:])]).replace("0.25", "2.5e-1")
    (listed / "duplicates_cifar10.csv").write_text(text + "\r\n")
    prepare_second_tests(listed, tmp_path, str)
    assert len(load_second_tests("cifar10", tmp_path).duplicates) == 3


@pytest.mark.parametrize(("old", "new", "message"), [
    ("7,49999", "7,49998", "has the digest .* it is another version or damaged"),
    ("7,49999", "7,50000", "is not a list of near-duplicates of cifar10: .* below 10000, 50000 and 3"),
    ("7,49999", "10000,5", "below 10000"), ("0.25,2", "0.25,3", "and 3"), ("TestID", "Test", "its columns are TestID"),
    ("0.25,2", "0.25", "is not a list of near-duplicates"), ("7,49999", "7,x", "is not a list of near-duplicates")])
def test_another_list_is_refused_and_nothing_is_written(listed: Path, tmp_path: Path, old: str, new: str, message: str):
    (listed / "duplicates_cifar10.csv").write_text(PAIRS.replace(old, new))
    further(listed)
    with pytest.raises(UserError, match=message):
        prepare_second_tests(listed, tmp_path, str)
    assert not list(tmp_path.glob("*.npz"))


def test_lists_that_are_here_stay_where_a_folder_brings_others(listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prepare_second_tests(listed, tmp_path, str)
    votes = np.random.default_rng(1).integers(1, 9, (10_000, 10))
    monkeypatch.setattr(module, "LISTS", tuple(replace(one, digest=rows_digest(votes)) for one in LISTS if one.part == "votes"))
    (tmp_path / "other").mkdir()
    np.save(tmp_path / "other" / "cifar10h-counts.npy", votes.astype(np.int32))
    prepare_second_tests(tmp_path / "other", tmp_path, str)
    tests = load_second_tests("cifar10", tmp_path)
    assert len(tests.duplicates) == 3
    order = module.archive_order("cifar10")[1]
    np.testing.assert_array_equal(tests.votes, votes[order])


@pytest.mark.parametrize("votes", [np.ones((10, 10), int), np.ones((10_000, 10)), np.zeros((10_000, 10), int)])
def test_what_is_no_vote_is_refused(tmp_path: Path, votes: np.ndarray):
    np.save(tmp_path / "cifar10h-counts.npy", votes)
    with pytest.raises(UserError, match=r"votes are whole numbers \(10000, 10\), some for every image"):
        prepare_second_tests(tmp_path, tmp_path, str)


def test_a_folder_without_any_of_it_is_refused_in_one_sentence(tmp_path: Path):
    for folder in (tmp_path, None, tmp_path / "absent"):
        with pytest.raises(UserError, match="duplicates_cifar10_test"):
            prepare_second_tests(folder, tmp_path, str)


def test_a_further_test_set_is_read_in_any_order_and_its_digest_is_shown(tmp_path: Path):
    made, said = further(tmp_path / "made"), []
    prepare_second_tests(made, tmp_path, said.append)
    [found] = load_further(tmp_path)
    assert (found.name, found.dataset, len(found.images)) == ("cifar10.9_v1", "cifar10", 30)
    assert f"30 test images for networks of cifar10, digest {found.digest[:16]}" in said[0]
    assert found.title == f"cifar10.9_v1-{found.digest[:8]}"
    assert found.labels.tolist() == sorted(np.load(made / "cifar10.9_v1_labels.npy").tolist())
    mixed = np.random.default_rng(1).permutation(30)
    arrays = {part: np.load(made / f"cifar10.9_v1_{part}.npy")[mixed] for part in ("data", "labels")}
    prepare_second_tests(further(tmp_path / "mixed", **arrays), tmp_path / "again", str)
    [again] = load_further(tmp_path / "again")
    assert again.digest == found.digest
    np.testing.assert_array_equal(again.images, found.images)
    np.testing.assert_array_equal(again.labels, found.labels)


@pytest.mark.parametrize(("changes", "message"), [
    ({"name": "imagenet-v2"}, "is named after the dataset whose networks it tests"),
    ({"data": np.zeros((30, 28, 28, 3), np.uint8)}, r"images of cifar10 are uint8 \(count, 32, 32, 3\)"),
    ({"data": np.zeros((30, 32, 32, 3))}, "holds float64"),
    ({"labels": np.full(30, 10)}, "a whole number from 0 to 9 for each of the 30 images"),
    ({"labels": np.zeros(29, int)}, "for each of the 30 images"), ({"labels": np.zeros(30)}, "for each of the 30 images")])
def test_what_is_no_test_set_is_refused(tmp_path: Path, changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        prepare_second_tests(further(tmp_path / "made", **changes), tmp_path, str)


def test_images_without_labels_are_refused(tmp_path: Path):
    (further(tmp_path / "made") / "cifar10.9_v1_labels.npy").unlink()
    with pytest.raises(UserError, match=r"is here without cifar10\.9_v1_labels\.npy"):
        prepare_second_tests(tmp_path / "made", tmp_path, str)


def test_the_command_without_a_folder_is_one_sentence_and_exit_code_2():
    done = subprocess.run([sys.executable, "-m", "papers", "prepare", "second-tests"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: prepare second-tests reads a folder of yours: --from FOLDER")


def test_an_image_is_clean_without_its_partner_and_clear_where_nineteen_of_twenty_agree():
    tests = SecondTests(np.array([[0, 5, 1], [2, 5, 0], [3, 7, 2]]))
    kept = np.zeros(10, bool)
    kept[5] = True
    assert has_partner(tests, kept, 4).tolist() == [True, False, True, False]
    assert has_partner(tests, ~kept, 4).tolist() == [False, False, False, True]
    assert is_clear(np.array([[19, 1], [18, 2], [1, 19], [94, 6], [95, 5]])).tolist() == [True, False, True, False, True]


def test_groups_are_those_of_the_records():
    assert group_of(np.array([5000, 101, 100, 20, 19])).tolist() == [0, 0, 1, 1, 2]


# ---------------------------------------------------------------- the real lists


@pytest.mark.parametrize(("dataset", "pairs", "same", "equal"), [("cifar10", 286, 286, 0), ("cifar100", 891, 880, 10)])
def test_the_lists_name_images_that_are_alike(dataset: str, pairs: int, same: int, equal: int, second_tests: Path,
                                              request: pytest.FixtureRequest):
    """Eleven near-duplicates of CIFAR-100 have another class in training; by chance 882 would."""
    tests, images = load_second_tests(dataset, second_tests), load(dataset, request.getfixturevalue(dataset))
    test, train, _ = tests.duplicates.T
    assert len(test) == len(np.unique(test)) == pairs
    assert np.count_nonzero(images.y_test[test] == images.y_train[train]) == same
    assert np.count_nonzero((images.x_test[test] == images.x_train[train]).all((1, 2, 3))) == equal


def test_lists_rebuilt_from_two_copies_in_different_orders_are_equal(second_tests: Path, cifar10: Path):
    """The images of every pair and of every clear image, and their positions, from two copies in other orders."""
    images, tests = load("cifar10", cifar10), load_second_tests("cifar10", second_tests)
    test, train, _ = tests.duplicates.T
    rows = read_pairs(SECOND_TESTS / "duplicates_cifar10.csv", "cifar10", "duplicates")
    for seed in (1, 2):
        a, b = (np.random.default_rng(seed).permutation(n) for n in (50_000, 10_000))
        raw = Raw(images.x_train[a], images.y_train[a], images.x_test[b], images.y_test[b], images.classes, f"copy {seed}")
        copy = to_canonical("cifar10", raw, images.digests)
        np.testing.assert_array_equal(copy.x_train[train], images.x_train[train])
        np.testing.assert_array_equal(copy.x_test[test], images.x_test[test])
        np.testing.assert_array_equal(copy.x_test[is_clear(tests.votes)], images.x_test[is_clear(tests.votes)])
        positions = np.stack([copy.archive_order_test[test], copy.archive_order[train]], 1)
        assert sorted(positions.tolist()) == rows[:, :2].tolist()


def test_people_agree_with_the_labels(second_tests: Path):
    votes = load_second_tests("cifar10", second_tests).votes
    assert np.mean(votes.argmax(1) == real_labels("cifar10", "test")) == 0.9921
    assert np.count_nonzero(is_clear(votes)) == 7766
    assert (votes.sum(), votes.sum(1).min(), votes.sum(1).max()) == (511_000, 47, 63)


def test_partners_survive_in_the_head_classes(second_tests: Path):
    """With all training images every shot has its share; of a long-tailed subset hardly any is left in the tail."""
    for dataset, head in (("cifar10", 0.75), ("cifar100", 0.5)):
        tests = load_second_tests(dataset, second_tests)
        whole, subset = (pruned(tests, Column(dataset, *kind, "resnet32")) for kind in (("none", 1), ("lt", 100)))
        classes = len(whole)
        assert (subset <= whole).all()
        assert subset[0] == whole[0]
        assert subset[classes // 2:].sum() < 0.15 * subset.sum() < 0.35 * whole[classes // 2:].sum()
        assert subset[:classes // 3].sum() > head * subset.sum()


def test_the_table_of_the_readme_is_that_of_the_lists(second_tests: Path):
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    found = BLOCK.search(readme)
    assert found[0] == found[1] + counts_markdown(second_tests) + found[2]


def test_no_public_list_is_tracked():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert not {Path(name).name for name in tracked} & {one.file for one in LISTS}


def test_a_column_keeps_as_many_images_as_it_has():
    assert np.count_nonzero(kept_images(Column("cifar10", "lt", 100, "resnet32"))) == 12_406
    assert kept_images(Column("cifar100", "none", 1, "resnet32")).all()
