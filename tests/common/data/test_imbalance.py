"""Class counts, selection, and the committed index lists."""

import dataclasses
import itertools
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.data.imbalance import (
    RATIOS,
    SEEDS,
    class_counts,
    listed_columns,
    make_list,
    read_list,
    select,
    set_aside,
    shuffle_as_numpy,
    write_list,
    write_lists,
)
from common.data.sets import Images, Raw, archive_order, canonical_order, content_digest, load
from common.data.sources import to_canonical
from common.errors import UserError
from common.spec import ARCHIVE_ORDER_KNOWN, FURTHER_DRAWS, Column

LISTS = Path(__file__).resolve().parents[3] / "data" / "lists"
SUBSETS = ("authors", "hash", "seed-666", "draw-1", "draw-5")
LISTED = [pytest.param(column, id=column.name) for dataset in ARCHIVE_ORDER_KNOWN for column in listed_columns(dataset)]
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


def lt(ratio: int, subset: str = "hash", imbalance: str = "lt") -> Column:
    return Column("cifar10", imbalance, ratio, "resnet32", subset)


def small_set(per_class: int = 60, classes: int = 4) -> Images:
    """Random images in canonical order, with a made-up archive order."""
    generator = np.random.default_rng(5)
    labels = generator.permutation(np.repeat(np.arange(classes, dtype=np.uint8), per_class))
    images = generator.integers(0, 256, (len(labels), 2, 2, 3), np.uint8)
    order = canonical_order(images, labels)
    return Images(images[order], labels[order], images[:0], labels[:0], tuple("abcd"), order)


def real_labels(dataset: str) -> np.ndarray:
    """The training labels of a CIFAR set in canonical order; no image is needed to know them."""
    classes = {"cifar10": 10, "cifar100": 100}[dataset]
    return np.repeat(np.arange(classes, dtype=np.uint8), 50_000 // classes)


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


@pytest.mark.parametrize("subset", SUBSETS)
def test_selection_neither_reads_nor_moves_the_global_random_state(subset: str):
    images = small_set()
    np.random.seed(1)
    expected = np.random.rand(3)
    np.random.seed(1)
    before = select(images.y_train, lt(10, subset), images.archive_order)
    np.testing.assert_array_equal(np.random.rand(3), expected)
    np.random.rand(1000)
    np.testing.assert_array_equal(select(images.y_train, lt(10, subset), images.archive_order), before)


@pytest.mark.parametrize(("subset", "seed"), SEEDS.items())
@pytest.mark.parametrize("column", [
    lt(10), lt(10, imbalance="step"), Column("cifar10", "counts", 1, "resnet32", counts=(40, 5, 20)),
], ids=lambda column: column.imbalance)
def test_the_authors_subset_is_the_one_of_the_released_routine(subset: str, seed: int, column: Column):
    images = small_set()
    x, y = np.empty_like(images.x_train), np.empty_like(images.y_train)
    x[images.archive_order], y[images.archive_order] = images.x_train, images.y_train
    np.random.seed(seed)
    expected = []
    for c, n in enumerate(column.counts or class_counts(column.imbalance, 10, 60, 4)):
        positions = np.where(y.astype(np.int64) == c)[0]
        np.random.shuffle(positions)
        expected += [x[p].tobytes() for p in positions[:n]]
    kept = select(images.y_train, dataclasses.replace(column, subset=subset), images.archive_order)
    assert sorted(x.tobytes() for x in images.x_train[kept]) == sorted(expected)
    assert kept.tolist() != select(images.y_train, dataclasses.replace(column, subset="hash")).tolist()


def numpy_shuffle(values: list[int], twister: random.Random) -> None:
    """Fisher and Yates from the last place down, each index drawn by masking 32 bits until it fits, as NumPy did before 1.17."""
    for i in range(len(values) - 1, 0, -1):
        while (j := twister.getrandbits(32) & (1 << i.bit_length()) - 1) > i:
            pass
        values[i], values[j] = values[j], values[i]


def twister_of_seed(seed: int) -> random.Random:
    """Python's Mersenne Twister, started by Knuth's recurrence, as NumPy's legacy seeding does."""
    state = [seed]
    for i in range(1, 624):
        state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + i) & 0xFFFFFFFF)
    twister = random.Random()
    twister.setstate((3, (*state, 624), None))
    return twister


@pytest.mark.parametrize("dataset", ARCHIVE_ORDER_KNOWN)
@pytest.mark.parametrize("seed", SEEDS.values())
def test_the_draw_equals_one_that_does_without_numpy(dataset: str, seed: int):
    labels, (order, _) = real_labels(dataset), archive_order(dataset)
    in_archive, twister = np.empty_like(labels), twister_of_seed(seed)
    in_archive[order] = labels
    for c, ranked in enumerate(shuffle_as_numpy(labels, order, seed)):
        positions = np.flatnonzero(in_archive == c).tolist()
        numpy_shuffle(positions, twister)
        assert order[ranked].tolist() == positions


@pytest.mark.parametrize("dataset", ARCHIVE_ORDER_KNOWN)
@pytest.mark.parametrize("subset", SUBSETS)
def test_the_subsets_of_all_ratios_are_nested(dataset: str, subset: str):
    labels, (order, _) = real_labels(dataset), archive_order(dataset)
    for imbalance, ratios in (("lt", (10, 50, 100, 200)), ("step", (10, 100))):
        kept = [set(select(labels, Column(dataset, imbalance, r, "resnet32", subset), order).tolist()) for r in ratios]
        assert all(smaller < larger for larger, smaller in pairwise(kept))


@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize(("dataset", "imbalance", "ratio", "counts", "sizes"), [
    ("cifar10", "lt", 100, (), [4990, 2991, 1793, 1075, 644, 386, 231, 138, 83, 49]),
    ("cifar100", "step", 10, (), [490] * 50 + [49] * 50), ("cifar10", "none", 1, (), [4990] * 10),
    ("cifar10", "counts", 1, (4990, 500, 1000), [4990, 500, 1000]),
])
def test_held_out_images_lie_outside_the_kept_ones(dataset: str, imbalance: str, ratio: int, counts: tuple[int, ...],
                                                   sizes: list[int], subset: str):
    labels, (order, _) = real_labels(dataset), archive_order(dataset)
    column = Column(dataset, imbalance, ratio, "resnet32", subset, counts)
    kept, aside = select(labels, column, order, 10), set_aside(labels, column, order, 10)
    assert not set(kept.tolist()) & set(aside.tolist())
    assert np.bincount(labels[kept]).tolist() == sizes
    assert np.bincount(labels[aside]).tolist() == [10] * len(sizes)
    assert (np.diff(kept) > 0).all()
    assert (np.diff(aside) > 0).all()
    if imbalance == "lt":  # the largest class has no image that is neither kept nor held out
        assert set(kept[labels[kept] == 0].tolist()) | set(aside[labels[aside] == 0].tolist()) == set(range(5000))


def test_nothing_is_set_aside_where_nothing_is_held_out():
    images = small_set()
    assert len(set_aside(images.y_train, lt(10), None, 0)) == 0


@pytest.mark.parametrize(("imbalance", "held_out"), [("lt", 0), ("lt", 10), ("none", 10)])
@pytest.mark.parametrize("subset", SEEDS)
def test_a_subset_by_archive_order_needs_a_dataset_whose_order_is_known(imbalance: str, held_out: int, subset: str):
    labels = small_set().y_train
    column = Column("digits", imbalance, 4, "resnet8", subset)
    message = f"digits.* asks for subset '{subset}'.* known of cifar10 and cifar100 only: write `subset: hash` for digits"
    with pytest.raises(UserError, match=message) as error:
        select(labels, column, None, held_out)
    assert "\n" not in str(error.value)


def test_a_list_survives_writing_and_reading(tmp_path: Path):
    images = small_set()
    for subset in SUBSETS:
        listed = make_list(images, lt(10, subset))
        write_list(tmp_path / "a.json", listed)
        assert read_list(tmp_path / "a.json") == listed
        kept = select(images.y_train, lt(10, subset), images.archive_order)
        np.testing.assert_array_equal(listed.positions, np.sort(images.archive_order[kept]))
        assert len((tmp_path / "a.json").read_text().splitlines()) == 11  # one line a key


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [('"total": 105', '"total": 106', "contradicts itself"), ("[60,27", "[60,28", "contradicts itself"),
     ('"kept": "', '"kept": "gAAA', "contradicts itself"), ('"kept": "', '"kept": "AAA', "is not an index list"),
     ('"kept": "', '"kept": "?', "is not an index list"),
     ('"counts"', '"count"', "is not an index list"), ("{", "", "is not an index list")],
)
def test_an_edited_list_is_refused(tmp_path: Path, old: str, new: str, message: str):
    write_list(tmp_path / "a.json", make_list(small_set(), lt(10, "authors")))
    text = (tmp_path / "a.json").read_text()
    assert old in text
    (tmp_path / "a.json").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        read_list(tmp_path / "a.json")


def test_a_missing_list_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"a\.json is not here; restore it from git"):
        read_list(tmp_path / "a.json")


def test_every_ratio_has_the_authors_and_the_hash_ranked_list():
    names = {c.name for dataset in ARCHIVE_ORDER_KNOWN for c in listed_columns(dataset)}
    plain = {f"{dataset}-{imbalance}-{ratio}" for dataset in ARCHIVE_ORDER_KNOWN for imbalance, ratio in RATIOS}
    more = {f"{dataset}-lt-100-{subset}" for dataset in ARCHIVE_ORDER_KNOWN for subset in ("seed-666", *FURTHER_DRAWS)}
    assert names == plain | {f"{name}-hash" for name in plain} | more == {path.stem for path in LISTS.glob("*.json")}


@pytest.mark.parametrize("column", LISTED)
def test_committed_lists_are_what_the_columns_keep(column: Column):
    """Without any image: counts of the literature, and the positions that the committed order gives."""
    classes, (order, _) = {"cifar10": 10, "cifar100": 100}[column.dataset], archive_order(column.dataset)
    listed = read_list(LISTS / f"{column.name}.json")
    assert (listed.dataset, listed.imbalance, listed.ratio, listed.subset) == (
        column.dataset, column.imbalance, column.ratio, column.subset)
    assert listed.counts == class_counts(column.imbalance, column.ratio, 50_000 // classes, classes).tolist()
    kept = select(real_labels(column.dataset), column, order)
    np.testing.assert_array_equal(listed.positions, np.sort(order[kept]))


def test_the_kinds_of_subset_are_not_the_same_images():
    """About a quarter of CIFAR-10 is kept at ratio 100, and two draws agree little more than by chance outside the head class."""
    lists = {s: read_list(LISTS / f"{Column('cifar10', 'lt', 100, 'resnet32', s).name}.json") for s in SUBSETS}
    assert len({listed.content_sha256 for listed in lists.values()}) == len({x.positions_sha256 for x in lists.values()}) == 5
    for one, other in itertools.combinations(lists, 2):
        shared = np.intersect1d(lists[one].positions, lists[other].positions)
        by_chance = sum(n * n / 5000 for n in CIFAR10_LT[100])
        assert len(shared) == pytest.approx(by_chance, abs=150)


@pytest.mark.parametrize("dataset", ARCHIVE_ORDER_KNOWN)
def test_any_real_copy_gives_the_images_of_the_committed_lists(dataset: str, request: pytest.FixtureRequest):
    """A copy in an order of its own, put in order, keeps the very images of every list."""
    images = load(dataset, request.getfixturevalue(dataset))
    mixed = np.random.default_rng(2).permutation(50_000)
    raw = Raw(images.x_train[mixed], images.y_train[mixed], images.x_test, images.y_test, images.classes, "here")
    again = to_canonical(dataset, raw, images.digests)
    np.testing.assert_array_equal(again.x_train, images.x_train)
    for column in listed_columns(dataset):
        listed = read_list(LISTS / f"{column.name}.json")
        kept = select(again.y_train, column, again.archive_order)
        assert content_digest(again.x_train[kept], again.y_train[kept]) == listed.content_sha256


def test_the_committed_lists_can_be_made_anew(cifar10: Path, tmp_path: Path):
    (tmp_path / "cifar10.npz").symlink_to(cifar10 / "cifar10.npz")
    for path in write_lists(tmp_path, ("cifar10",)):
        assert path.read_text() == (LISTS / path.name).read_text()
