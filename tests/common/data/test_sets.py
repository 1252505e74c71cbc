"""Content digests, canonical order, and loading what prepare made."""

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.data import sources
from common.data.sets import SETS, Images, archive_order, canonical_order, content_digest, load
from common.errors import UserError
from common.spec import ARCHIVE_ORDER_KNOWN


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    sources.prepare("digits", folder)
    return folder


def random_images(count: int = 40, side: int = 4) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    return generator.integers(0, 256, (count, side, side, 3), np.uint8), generator.integers(0, 5, count).astype(np.uint8)


def test_digest_is_the_documented_one_for_two_images():
    images = np.array([[[[7]]], [[[9]]]], np.uint8)
    each = sorted(hashlib.sha256(pair).digest() for pair in (b"\x01\x07", b"\x00\x09"))
    assert content_digest(images, np.array([1, 0])) == hashlib.sha256(each[0] + each[1]).hexdigest()


def test_digest_ignores_order_and_sees_one_pixel_and_one_label():
    images, labels = random_images()
    order = np.random.default_rng(0).permutation(len(images))
    digest = content_digest(images, labels)
    assert content_digest(images[order], labels[order]) == digest
    other = images.copy()
    other[5, 1, 1, 1] ^= 1
    assert content_digest(other, labels) != digest
    relabelled = labels.copy()
    relabelled[5] += 1
    assert content_digest(images, relabelled) != digest


def test_canonical_order_sorts_by_label_then_by_hash_of_the_pixels():
    images, labels = random_images()
    order = canonical_order(images, labels)
    keys = [(labels[i], hashlib.sha256(images[i].tobytes()).hexdigest()) for i in order]
    assert sorted(order.tolist()) == list(range(len(images)))
    assert keys == sorted(keys)


def test_canonical_order_of_a_shuffled_copy_gives_the_same_arrays():
    images, labels = random_images()
    order = canonical_order(images, labels)
    mixed = np.random.default_rng(1).permutation(len(images))
    again = canonical_order(images[mixed], labels[mixed])
    np.testing.assert_array_equal(images[mixed][again], images[order])
    np.testing.assert_array_equal(labels[mixed][again], labels[order])


def test_identity_of_a_set_follows_both_digests():
    cifar = SETS["cifar10"]
    assert cifar.digest == hashlib.sha256(f"{cifar.digest_train}:{cifar.digest_test}".encode()).hexdigest()[:16]
    assert len({s.digest for s in SETS.values()}) == len(SETS)
    assert dataclasses.replace(cifar, digest_test="0").digest != cifar.digest


def test_importing_sets_and_sources_does_not_import_torch_or_sklearn():
    code = "import sys, common.data.sets, common.data.sources, common.data.imbalance; " \
           "print([m for m in ('torch', 'torchvision', 'sklearn', 'PIL') if m in sys.modules])"
    root = Path(sources.__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_digits_are_split_36_a_class_and_normalised_by_the_train_split(digits: Path):
    images = load("digits", digits)
    known = SETS["digits"]
    assert np.bincount(images.y_test).tolist() == [36] * 10
    assert len(images.x_train) + len(images.x_test) == 1797
    assert images.x_train.shape[1:] == (8, 8, 1)
    assert images.x_train.max() == 240
    assert (images.x_train / 255).mean() == pytest.approx(known.mean[0], abs=5e-5)
    assert (images.x_train / 255).std() == pytest.approx(known.std[0], abs=5e-5)
    assert content_digest(images.x_test, images.y_test) == known.digest_test


def test_digits_test_split_comes_first_in_canonical_order(digits: Path):
    images = load("digits", digits)
    for c in range(10):
        last = max(hashlib.sha256(x.tobytes()).digest() for x in images.x_test[images.y_test == c])
        assert last < min(hashlib.sha256(x.tobytes()).digest() for x in images.x_train[images.y_train == c])


def test_digits_agree_with_scikit_learn(digits: Path):
    from sklearn.datasets import load_digits

    images = load("digits", digits)
    labels, pixels = np.concatenate([images.y_train, images.y_test]), np.concatenate([images.x_train, images.x_test])
    ours = zip(labels.tolist(), (pixels // 15).reshape(-1, 64).tolist(), strict=True)
    bunch = load_digits()
    assert sorted(ours) == sorted(zip(bunch.target.tolist(), bunch.data.astype(int).tolist(), strict=True))


def test_a_missing_file_is_answered_with_the_command_that_makes_it(tmp_path: Path):
    with pytest.raises(UserError, match=r"cifar10\.npz is not here.*prepare cifar10 --from FOLDER.*make data-cifar10"):
        load("cifar10", tmp_path)


def test_an_unknown_name_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="Unknown dataset 'cifar11'; known: cifar10"):
        load("cifar11", tmp_path)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_damaged(digits: Path, tmp_path: Path, fraction: float):
    content = (digits / "digits.npz").read_bytes()
    (tmp_path / "digits.npz").write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(UserError, match="is damaged"):
        load("digits", tmp_path)


def test_one_changed_pixel_is_seen_by_the_checksum(digits: Path, tmp_path: Path):
    content = bytearray((digits / "digits.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "digits.npz").write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        load("digits", tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("digest_train", np.array("0" * 64), "digest of its train split is 0000000000000000, expected 1764531ee8426f6b"),
        ("digest_test", None, "digest of its test split is none"),
        ("y_test", np.zeros(360, np.int64), r"y_test is int64 \(360,\), expected uint8"),
        ("x_train", np.zeros((1437, 8, 8), np.uint8), r"x_train is uint8 \(1437, 8, 8\), expected"),
        ("x_test", None, "x_test is missing"),
        ("classes", np.array(["0"]), "names 1 classes, expected 10"),
    ],
)
def test_a_file_that_prepare_did_not_make_is_refused(key: str, value: np.ndarray, message: str, digits: Path, tmp_path: Path):
    arrays = dict(np.load(digits / "digits.npz"))
    arrays[key] = value
    np.savez(tmp_path / "digits.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(UserError, match=message):
        load("digits", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_real_cifar_has_the_known_means(name: str, request: pytest.FixtureRequest):
    folder = request.getfixturevalue(name)
    images = load(name, folder)
    means = {"cifar10": (0.49139968, 0.48215841, 0.44653091), "cifar100": (0.50707516, 0.48654887, 0.44091784)}
    sums = images.x_train.reshape(-1, 3).sum(0, dtype=np.int64)
    np.testing.assert_allclose(sums / (50_000 * 1024 * 255), means[name], atol=1e-7)
    assert np.bincount(images.y_train).tolist() == [50_000 // SETS[name].classes] * SETS[name].classes
    assert list(images.classes) == sorted(images.classes)
    assert content_digest(images.x_test, images.y_test) == SETS[name].digest_test


def test_the_order_is_known_of_the_datasets_that_columns_are_named_by():
    assert tuple(name for name, known in SETS.items() if known.order_digest) == ARCHIVE_ORDER_KNOWN
    assert archive_order("mnist") == (None, None)


@pytest.mark.parametrize("name", ARCHIVE_ORDER_KNOWN)
def test_the_committed_order_numbers_every_image_once(name: str):
    for order, count in zip(archive_order(name), (50_000, 10_000), strict=True):
        assert order.dtype == np.int64
        np.testing.assert_array_equal(np.sort(order), np.arange(count))


# The superclass of every fine class of CIFAR-100, as the archive numbers both.
COARSE = np.array([
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7,
    6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10,
    16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16,
    12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
], np.uint8)
# SHA-1 of the files of both archives in their binary form, as MXNet's loaders of these datasets state them.
BINARY = {
    "cifar10": {
        "train": ("aadd24acce27caa71bf4b10992e9e7b2d74c2540", "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
                  "1dd00a74ab1d17a6e7d73e185b69dbf31242f295", "aab85764eb3584312d3c7f65fd2fd016e36a258e",
                  "26e2849e66a845b7f1e4614ae70f4889ae604628"),
        "test": ("67eb016db431130d61cd03c7ad570b013799c88c",),
    },
    "cifar100": {"train": ("e207cd2e05b73b1393c74c7f5e7bea451d63e08e",), "test": ("8fb6623e830365ff53cf14adec797474f5478006",)},
}


def binary_files(name: str, x: np.ndarray, y: np.ndarray, order: np.ndarray, files: int) -> list[bytes]:
    """A split as the archive's binary form has it: an image is its label bytes, then the planes of its channels."""
    at = np.argsort(order)
    labels = [COARSE[y[at]], y[at]] if name == "cifar100" else [y[at]]
    rows = np.concatenate([np.stack(labels, 1), x[at].transpose(0, 3, 1, 2).reshape(len(at), -1)], 1)
    return [part.tobytes() for part in np.split(rows, files)]


def splits(images: Images) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    return {"train": (images.x_train, images.y_train, images.archive_order),
            "test": (images.x_test, images.y_test, images.archive_order_test)}


@pytest.mark.parametrize("name", ARCHIVE_ORDER_KNOWN)
def test_the_files_of_the_archive_can_be_built_anew_to_the_byte(name: str, request: pytest.FixtureRequest):
    images = load(name, request.getfixturevalue(name))
    for split, (x, y, order) in splits(images).items():
        published = BINARY[name][split]
        assert tuple(hashlib.sha1(file).hexdigest() for file in binary_files(name, x, y, order, len(published))) == published


def test_of_equal_images_the_first_in_canonical_order_stands_first_in_the_archive(cifar100: Path):
    """Five training images are there twice; without a rule, two machines could draw different indices."""
    images = load("cifar100", cifar100)
    twice = np.flatnonzero((images.x_train[1:] == images.x_train[:-1]).all((1, 2, 3)))
    assert len(twice) == 5
    assert (images.archive_order[twice] < images.archive_order[twice + 1]).all()
