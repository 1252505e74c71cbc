"""Class counts, selection, and the committed index lists."""


from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.data.imbalance import (
    LISTED,
    class_counts,
    index_digest,
    make_list,
    read_list,
    select,
    write_list,
    write_lists,
)
from common.data.sets import Images, canonical_order, content_digest, load
from common.errors import UserError
from common.spec import Column

LISTS = Path(__file__).resolve().parents[3] / "data" / "lists"
CIFAR10_LT = {
    10: [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500],
    50: [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100],
    100: [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50],
    200: [5000, 2775, 1540, 854, 474, 263, 146, 81, 45, 25],
}
CIFAR100_LT = {
    10: ([500, 488, 477, 466, 455], [53, 52, 51, 50], 19_573),
    50: ([500, 480, 462, 444, 426], [11, 10, 10, 10], 12_608),
    100: ([500, 477, 455, 434, 415], [5, 5, 5, 5], 10_847),
    200: ([500, 473, 449, 425, 403], [2, 2, 2, 2], 9_502),
}
STEP_TOTALS = {
    10: {10: 27_500, 50: 25_500, 100: 25_250, 200: 25_125},
    100: {10: 27_500, 50: 25_500, 100: 25_250, 200: 25_100},
}


def lt(ratio: int, subset: str = "canonical", imbalance: str = "lt") -> Column:
    return Column("cifar10", imbalance, ratio, "resnet32", subset)


def small_set(per_class: int = 60, classes: int = 4) -> Images:
    """Random images in canonical order, with a made-up archive order."""
    generator = np.random.default_rng(5)
    labels = generator.permutation(np.repeat(np.arange(classes, dtype=np.uint8), per_class))
    images = generator.integers(0, 256, (len(labels), 2, 2, 3), np.uint8)
    order = canonical_order(images, labels)
    return Images(images[order], labels[order], images[:0], labels[:0], tuple("abcd"), order)


@pytest.mark.parametrize("ratio", CIFAR10_LT)
def test_cifar10_lt_counts_are_the_published_ones(ratio: int):
    assert class_counts("lt", ratio, 5000, 10).tolist() == CIFAR10_LT[ratio]


def test_cifar10_lt_totals_are_the_published_ones():
    totals = [class_counts("lt", r, 5000, 10).sum() for r in (10, 50, 100, 200)]
    assert totals == [20_431, 13_996, 12_406, 11_203]


@pytest.mark.parametrize("ratio", CIFAR100_LT)
def test_cifar100_lt_counts_are_the_published_ones(ratio: int):
    head, tail, total = CIFAR100_LT[ratio]
    counts = class_counts("lt", ratio, 500, 100)
    assert (counts[:5].tolist(), counts[-4:].tolist(), counts.sum()) == (head, tail, total)


@pytest.mark.parametrize("classes", STEP_TOTALS)
@pytest.mark.parametrize("ratio", [10, 50, 100, 200])
def test_step_counts_are_the_published_ones(classes: int, ratio: int):
    n_max = 50_000 // classes
    counts = class_counts("step", ratio, n_max, classes)
    assert set(counts[: classes // 2]) == {n_max}
    assert set(counts[classes // 2:]) == {n_max // ratio}
    assert counts.sum() == STEP_TOTALS[classes][ratio]


@example(417, 5421, 10, "lt")  # 5421 * (1 / 417) is a hair below 13
@example(49, 539, 10, "step")
@given(st.integers(1, 500), st.integers(500, 6000), st.integers(2, 200), st.sampled_from(["lt", "step"]))
def test_counts_fall_from_the_largest_class_to_its_share(ratio: int, n_max: int, classes: int, imbalance: str):
    counts = class_counts(imbalance, ratio, n_max, classes)
    assert len(counts) == classes
    assert counts[0] == n_max
    assert counts[-1] == n_max // ratio
    assert (np.diff(counts) <= 0).all()


@pytest.mark.parametrize(
    ("imbalance", "ratio", "message"),
    [("lt", 0.01, "0.01 is below 1"), ("lt", float("nan"), "below 1"), ("exp", 100, "Unknown imbalance 'exp'"),
     ("none", 1, "Unknown imbalance"), ("lt", 501, "leaves a class of 500 images empty"), ("step", 501, "use at most 500")],
)
def test_wrong_imbalances_are_refused(imbalance: str, ratio: float, message: str):
    with pytest.raises(UserError, match=message):
        class_counts(imbalance, ratio, 500, 10)


def test_selection_is_the_first_of_every_class_and_the_histogram_is_the_declared_one():
    images = small_set()
    indices = select(images.y_train, lt(10))
    assert np.bincount(images.y_train[indices]).tolist() == class_counts("lt", 10, 60, 4).tolist() == [60, 27, 12, 6]
    for c, n in enumerate([60, 27, 12, 6]):
        np.testing.assert_array_equal(indices[images.y_train[indices] == c], 60 * c + np.arange(n))


def test_a_column_without_imbalance_keeps_everything():
    images = small_set()
    np.testing.assert_array_equal(select(images.y_train, Column("mnist", "none", 1, "lenet")), np.arange(240))


def test_the_largest_class_is_as_large_as_the_smallest_of_the_dataset():
    labels = np.repeat(np.arange(3, dtype=np.uint8), [50, 40, 70])
    assert np.bincount(labels[select(labels, lt(4))]).tolist() == [40, 20, 10]


def test_any_copy_of_the_dataset_gives_the_same_subset():
    images = small_set()
    kept = select(images.y_train, lt(10))
    mixed = np.random.default_rng(9).permutation(len(images.y_train))
    x, y = images.x_train[mixed], images.y_train[mixed]
    order = canonical_order(x, y)
    again = select(y[order], lt(10))
    np.testing.assert_array_equal(x[order][again], images.x_train[kept])


@pytest.mark.parametrize("subset", ["canonical", "archive"])
def test_selection_neither_reads_nor_moves_the_global_random_state(subset: str):
    images = small_set()
    np.random.seed(1)
    expected = np.random.rand(3)
    np.random.seed(1)
    before = select(images.y_train, lt(10, subset), images.archive_order)
    np.testing.assert_array_equal(np.random.rand(3), expected)
    np.random.rand(1000)
    after = select(images.y_train, lt(10, subset), images.archive_order)
    assert index_digest(before) == index_digest(after)


@pytest.mark.parametrize("imbalance", ["lt", "step"])
def test_archive_subset_is_the_one_of_the_released_routine(imbalance: str):
    images = small_set()
    x, y = np.empty_like(images.x_train), np.empty_like(images.y_train)
    x[images.archive_order], y[images.archive_order] = images.x_train, images.y_train
    np.random.seed(0)
    expected = []
    for c, n in enumerate(class_counts(imbalance, 10, 60, 4)):
        positions = np.where(y.astype(np.int64) == c)[0]
        np.random.shuffle(positions)
        expected += [x[p].tobytes() for p in positions[:n]]
    kept = select(images.y_train, lt(10, "archive", imbalance), images.archive_order)
    assert sorted(x.tobytes() for x in images.x_train[kept]) == sorted(expected)
    assert kept.tolist() != select(images.y_train, lt(10, imbalance=imbalance)).tolist()


def test_archive_subset_without_the_archive_says_what_is_needed():
    with pytest.raises(UserError, match="cifar10-lt-10-archive needs the order of the official archive; prepare cifar10 --from"):
        select(small_set().y_train, lt(10, "archive"))


def test_a_list_survives_writing_and_reading(tmp_path: Path):
    images = small_set()
    listed = make_list(images, lt(10))
    write_list(tmp_path / "a.json", listed)
    assert read_list(tmp_path / "a.json") == listed
    np.testing.assert_array_equal(listed.indices, select(images.y_train, lt(10)))
    assert len((tmp_path / "a.json").read_text().splitlines()) == 10  # one line a key


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [("[0,60]", "[0,61]", "contradicts itself"), ("[60,87]", "[61,88]", "contradicts itself"),
     ('"total": 105', '"total": 106', "contradicts itself"),
     ('"counts"', '"count"', "is not an index list"), ("{", "", "is not an index list")],
)
def test_an_edited_list_is_refused(tmp_path: Path, old: str, new: str, message: str):
    write_list(tmp_path / "a.json", make_list(small_set(), lt(10)))
    text = (tmp_path / "a.json").read_text()
    assert old in text
    (tmp_path / "a.json").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        read_list(tmp_path / "a.json")


def test_lists_hold_canonical_subsets_only():
    with pytest.raises(UserError, match="canonical subsets only"):
        make_list(small_set(), lt(10, "archive"))


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize(("imbalance", "ratio"), LISTED)
def test_committed_lists_have_the_published_counts(dataset: str, imbalance: str, ratio: int):
    classes = {"cifar10": 10, "cifar100": 100}[dataset]
    listed = read_list(LISTS / f"{dataset}-{imbalance}-{ratio}.json")
    assert (listed.dataset, listed.imbalance, listed.ratio) == (dataset, imbalance, ratio)
    assert listed.counts == class_counts(imbalance, ratio, 50_000 // classes, classes).tolist()
    assert [first for first, _ in listed.ranges] == list(range(0, 50_000, 50_000 // classes))


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_committed_lists_agree_with_the_real_images(dataset: str, request: pytest.FixtureRequest):
    images = load(dataset, request.getfixturevalue(dataset))
    for imbalance, ratio in LISTED:
        listed = read_list(LISTS / f"{dataset}-{imbalance}-{ratio}.json")
        indices = select(images.y_train, Column(dataset, imbalance, ratio, "resnet32"))
        assert index_digest(indices) == listed.index_sha256
        assert content_digest(images.x_train[indices], images.y_train[indices]) == listed.content_sha256


def test_the_committed_lists_can_be_made_anew(cifar10: Path, tmp_path: Path):
    (tmp_path / "cifar10.npz").symlink_to(cifar10 / "cifar10.npz")
    for path in write_lists(tmp_path, ("cifar10",)):
        assert path.read_text() == (LISTS / path.name).read_text()
