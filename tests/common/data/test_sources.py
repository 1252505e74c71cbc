"""Every form of a source, whole and broken, on miniatures with the official names."""

import dataclasses
import errno
import gzip
import io
import os
import pickle
import re
import shutil
import socket
import struct
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from common.cli.doctor import examine
from common.data import sets, sources
from common.data.sets import SETS, canonical_order, content_digest, load, order_digest
from common.data.sources import ARCHIVES, IDX, VARIABLE, Raw, prepare
from common.errors import UserError

NAMES = ("cat", "dog", "eel")


@pytest.fixture(autouse=True)
def no_way_out(monkeypatch: pytest.MonkeyPatch):
    """No test of this file reads a copy that the machine happens to have, or touches the internet."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(sources, "download", lambda name, folder: pytest.fail("went to the internet"))


def make_mini(name: str, monkeypatch: pytest.MonkeyPatch, channels: int = 3) -> Raw:
    """Three classes of random 4 x 4 images (30 train, 6 test), in random order, put into SETS in the place of `name`."""
    generator = np.random.default_rng(11)
    arrays = []
    for per_class in (10, 2):
        labels = generator.permutation(np.repeat(np.arange(3, dtype=np.uint8), per_class))
        arrays += [generator.integers(0, 256, (len(labels), 4, 4, channels), np.uint8), labels]
    known = dataclasses.replace(
        SETS[name], side=4, channels=channels, classes=3, train=30, test=6,
        digest_train=content_digest(*arrays[:2]), digest_test=content_digest(*arrays[2:]), order_digest="",
    )
    monkeypatch.setitem(SETS, name, known)
    return Raw(*arrays, classes=NAMES, origin="here")


@pytest.fixture
def mini(monkeypatch: pytest.MonkeyPatch) -> Raw:
    return make_mini("cifar10", monkeypatch)


def python2_pickle(value: object) -> bytes:
    """Protocol 2 as Python 2's cPickle and an old NumPy wrote it, which is what the official archives contain."""

    def text(s: bytes) -> bytes:
        return b"T" + struct.pack("<I", len(s)) + s

    def write(v: object) -> bytes:
        if isinstance(v, dict):
            return b"}(" + b"".join(write(k) + write(x) for k, x in v.items()) + b"u"
        if isinstance(v, list):
            return b"](" + b"".join(map(write, v)) + b"e"
        if isinstance(v, np.ndarray):
            state = b"(K\3" + text(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\0tb"
            dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\0K\1\x87R" + state
            shape = b"".join(b"J" + struct.pack("<i", n) for n in v.shape) + b"\x86"
            make = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text(b"b") + b"\x87R"
            return make + b"(K\1" + shape + dtype + b"\x89" + text(v.tobytes()) + b"tb"
        return text(v.encode()) if isinstance(v, str) else b"J" + struct.pack("<i", int(v))

    return b"\x80\x02" + write(value) + b"."


def archive_files(name: str, raw: Raw) -> dict[str, bytes]:
    """File name -> content of a miniature official archive."""
    layout = ARCHIVES[name]
    files = {layout.meta: python2_pickle({layout.names: list(raw.classes)})}
    for part, x, y in ((layout.train, raw.x_train, raw.y_train), (layout.test, raw.x_test, raw.y_test)):
        for f, rows in zip(part, np.array_split(np.arange(len(x)), len(part)), strict=True):
            planes = x[rows].transpose(0, 3, 1, 2).reshape(len(rows), -1)
            files[f] = python2_pickle({"batch_label": f, layout.labels: y[rows].tolist(), "data": planes})
    return files


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for f, content in files.items():
        (folder / f).write_bytes(content)
    return folder


def write_tar(path: Path, folder: str, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for f, content in {**files, "readme.html": os.urandom(4000)}.items():
            info = tarfile.TarInfo(f"{folder}/{f}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_npz(path: Path, raw: Raw, **changed: np.ndarray | None) -> Path:
    arrays = {key: getattr(raw, key) for key in Raw._fields[:4]} | {"classes": np.array(raw.classes)} | changed
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def write_pngs(folder: Path, raw: Raw) -> Path:
    for split, x, y in (("train", raw.x_train, raw.y_train), ("test", raw.x_test, raw.y_test)):
        for i, (pixels, label) in enumerate(zip(x, y, strict=True)):
            path = folder / split / raw.classes[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.squeeze()).save(path)
    return folder


def assert_is(name: str, folder: Path, raw: Raw):
    """`folder` holds `raw` in canonical order."""
    images = load(name, folder)
    for x, y in (("x_train", "y_train"), ("x_test", "y_test")):
        order = canonical_order(getattr(raw, x), getattr(raw, y))
        np.testing.assert_array_equal(getattr(images, x), getattr(raw, x)[order])
        np.testing.assert_array_equal(getattr(images, y), getattr(raw, y)[order])
    assert images.classes == raw.classes


def test_every_form_of_cifar_gives_the_same_images(mini: Raw, tmp_path: Path):
    layout = ARCHIVES["cifar10"]
    files = archive_files("cifar10", mini)
    given = {
        "npz": write_npz(tmp_path / "some.npz", mini),
        "npz in a folder": write_npz(tmp_path / "cifar10.npz", mini).parent,
        "tar": write_tar(tmp_path / "renamed.tar.gz", layout.folder, files),
        "tar in a folder": write_tar(write_folder(tmp_path / "t", {}) / layout.tar, layout.folder, files).parent,
        "unpacked": write_folder(tmp_path / "u" / layout.folder, files),
        "unpacked in a folder": tmp_path / "u",
        "pngs": write_pngs(tmp_path / "p", mini),
        "pngs in a folder of many": write_pngs(tmp_path / "many" / "cifar10", mini).parent,
    }
    for form, source in given.items():
        prepare("cifar10", tmp_path / form, source)
        assert_is("cifar10", tmp_path / form, mini)


def make_known(name: str, raw: Raw, lists: Path, monkeypatch: pytest.MonkeyPatch):
    """The order of `raw` becomes the known one of the official archive."""
    order = {"train": canonical_order(raw.x_train, raw.y_train), "test": canonical_order(raw.x_test, raw.y_test)}
    monkeypatch.setattr(sets, "LISTS", lists)
    lists.mkdir()
    np.savez(lists / f"{name}-archive-order.npz", **{split: positions.astype("<u2") for split, positions in order.items()})
    monkeypatch.setitem(SETS, name, dataclasses.replace(SETS[name], order_digest=order_digest(**order)))


def assert_ordered(name: str, folder: Path, raw: Raw):
    """The images of `folder` are those of `raw`, at the positions that the archive's order says."""
    images = load(name, folder)
    np.testing.assert_array_equal(raw.x_train[images.archive_order], images.x_train)
    np.testing.assert_array_equal(raw.y_train[images.archive_order], images.y_train)
    np.testing.assert_array_equal(raw.x_test[images.archive_order_test], images.x_test)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_any_genuine_copy_gets_the_known_order_of_the_archive(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
):
    raw = make_mini(name, monkeypatch)
    make_known(name, raw, tmp_path / "lists", monkeypatch)
    mixed = np.random.default_rng(8).permutation(30)
    other = raw._replace(x_train=raw.x_train[mixed], y_train=raw.y_train[mixed])
    copies = {
        "archive": write_tar(tmp_path / "a.tar.gz", ARCHIVES[name].folder, archive_files(name, raw)),
        "npz": write_npz(tmp_path / "a.npz", other),
        "npz with an order of its own": write_npz(tmp_path / "b.npz", other, archive_order=np.arange(30)),
        "pngs": write_pngs(tmp_path / "p", other),
    }
    for form, source in copies.items():
        prepare(name, tmp_path / form, source)
        assert_ordered(name, tmp_path / form, raw)
        said = capsys.readouterr().out
        assert "archive order known" in said
        assert "elsewhere" not in said


@pytest.mark.parametrize(("batches", "count", "first"),
                         [((1, 0, 2, 3, 4), 12, 0), ((0, 1, 2, 4, 3), 12, 18), ((4, 1, 2, 3, 0), 12, 0)])
def test_an_archive_in_another_order_is_not_believed(
    batches: tuple[int, ...], count: int, first: int, mini: Raw, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture
):
    make_known("cifar10", mini, tmp_path / "lists", monkeypatch)
    files, names = archive_files("cifar10", mini), ARCHIVES["cifar10"].train
    files |= {name: files[names[b]] for name, b in zip(names, batches, strict=True)}
    source = write_folder(tmp_path / "cifar-10-batches-py", files)
    prepare("cifar10", tmp_path / "out", source)
    assert f"{source} are genuine, but {count} of its 30 train images, the first at position {first}, stand elsewhere in the " \
           "official archive: the known order is used, not this one.\n" in capsys.readouterr().out
    assert_ordered("cifar10", tmp_path / "out", mini)


def test_another_order_of_the_test_images_is_said_too(
    mini: Raw, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
):
    make_known("cifar10", mini, tmp_path / "lists", monkeypatch)
    swapped = mini._replace(x_test=mini.x_test[::-1], y_test=mini.y_test[::-1])
    prepare("cifar10", tmp_path / "out", write_folder(tmp_path / "cifar-10-batches-py", archive_files("cifar10", swapped)))
    assert "6 of its 6 test images, the first at position 0, stand elsewhere" in capsys.readouterr().out
    assert_ordered("cifar10", tmp_path / "out", mini)


def test_of_two_equal_images_the_first_in_canonical_order_stands_first_in_the_archive(
    mini: Raw, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """CIFAR-100 has five training images twice."""
    x = mini.x_train.copy()
    one, two = np.flatnonzero(mini.y_train == 1)[:2]
    x[two] = x[one]
    twice = mini._replace(x_train=x)
    known = dataclasses.replace(SETS["cifar10"], digest_train=content_digest(x, mini.y_train))
    monkeypatch.setitem(SETS, "cifar10", known)
    make_known("cifar10", twice, tmp_path / "lists", monkeypatch)
    prepare("cifar10", tmp_path / "out", write_folder(tmp_path / "cifar-10-batches-py", archive_files("cifar10", twice)))
    assert "elsewhere" not in capsys.readouterr().out
    assert_ordered("cifar10", tmp_path / "out", twice)
    order = load("cifar10", tmp_path / "out").archive_order.tolist()
    assert order.index(one) + 1 == order.index(two)


def test_an_earlier_versions_file_gets_the_order_when_loaded(mini: Raw, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """It may lack the order, or hold one that was taken on trust: neither matters."""
    path = prepare("cifar10", tmp_path / "out", write_npz(tmp_path / "a.npz", mini))
    assert load("cifar10", tmp_path / "out").archive_order is None
    make_known("cifar10", mini, tmp_path / "lists", monkeypatch)
    assert_ordered("cifar10", tmp_path / "out", mini)
    np.savez(path, **np.load(path), archive_order=np.arange(30))
    assert_ordered("cifar10", tmp_path / "out", mini)


@pytest.mark.parametrize(("absent", "said"), [
    ((), "residual networks train in C++"),
    (("c++",), "with a C++ compiler residual networks would train faster"),
    (("c++", "ninja"), "with a C++ compiler and ninja residual networks would train faster")])
def test_doctor_says_what_would_make_trainings_faster(absent, said, monkeypatch, tmp_path):
    monkeypatch.setattr("common.models.cpu_step.FOLDER", tmp_path)  # nothing is built yet
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None if name in absent else f"/usr/bin/{name}")
    monkeypatch.setattr("common.cli.doctor._has_ninja", lambda: "ninja" not in absent)
    monkeypatch.setattr("common.cli.doctor.sysconfig.get_path", lambda name: str(tmp_path))
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("os.getloadavg", lambda: (1.2, 0.0, 0.0))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    console = Console(file=io.StringIO(), width=500)
    examine(console, tmp_path, [])
    assert said in console.file.getvalue()
    assert "other programs keep" in console.file.getvalue()


def test_doctor_says_where_the_order_is_known(mini: Raw, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    prepare("cifar10", tmp_path / "out", write_npz(tmp_path / "a.npz", mini))

    def said() -> str:
        console = Console(file=io.StringIO(), width=500)
        examine(console, tmp_path / "out", ["cifar10"])
        return console.file.getvalue()

    assert "data/cifar10.npz: 30 training and 6 test images\n" in said().replace(" \n", "\n")
    make_known("cifar10", mini, tmp_path / "lists", monkeypatch)
    assert "data/cifar10.npz: 30 training and 6 test images, archive order known" in said()


@pytest.mark.parametrize(("change", "message"), [
    (lambda path: path.unlink(), "is not here; restore it from git"),
    (lambda path: path.write_bytes(path.read_bytes()[:300]), "is damaged .*; restore it from git"),
    (lambda path: np.savez(path, train=np.arange(30), test=np.arange(6)), "does not hold the order .* of cifar10; restore it"),
    (lambda path: np.savez(path, train=np.arange(30)), "does not hold the order"),
])
def test_a_wrong_file_of_the_order_is_told(change, message: str, mini: Raw, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    prepare("cifar10", tmp_path / "out", write_npz(tmp_path / "a.npz", mini))
    make_known("cifar10", mini, tmp_path / "lists", monkeypatch)
    change(tmp_path / "lists" / "cifar10-archive-order.npz")
    with pytest.raises(UserError, match=f"cifar10-archive-order.npz {message}") as error:
        load("cifar10", tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", ["", "MNIST/raw"])
def test_mnist_from_the_official_files(packed: bool, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    raw = make_mini("mnist", monkeypatch, channels=1)._replace(classes=("0", "1", "2"))
    write_idx(tmp_path / place, raw, packed)
    prepare("mnist", tmp_path / "out", tmp_path)
    assert_is("mnist", tmp_path / "out", raw)


def write_idx(folder: Path, raw: Raw, packed: bool = False):
    folder.mkdir(parents=True, exist_ok=True)
    for key, stem in IDX.items():
        array = getattr(raw, key).squeeze()
        content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
        (folder / f"{stem}{'.gz' if packed else ''}").write_bytes(gzip.compress(content) if packed else content)


def test_mnist_npz_may_lack_the_channel_axis(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    raw = make_mini("mnist", monkeypatch, channels=1)
    write_npz(tmp_path / "mnist.npz", raw, x_train=raw.x_train[..., 0], x_test=raw.x_test[..., 0])
    prepare("mnist", tmp_path / "out", tmp_path)
    assert_is("mnist", tmp_path / "out", raw)


def test_truncated_idx_says_how_many_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    write_idx(tmp_path, make_mini("mnist", monkeypatch, channels=1))
    path = tmp_path / IDX["x_train"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="train-images-idx3-ubyte is truncated: it has 479 bytes of data, expected 480"):
        prepare("mnist", tmp_path / "out", tmp_path)


def test_what_is_there_is_left_alone_and_what_is_damaged_made_anew(mini: Raw, tmp_path: Path, capsys: pytest.CaptureFixture):
    path = prepare("cifar10", tmp_path / "out", write_npz(tmp_path / "a.npz", mini))
    said = f"30 train and 6 test images of 3 classes, digest {SETS['cifar10'].digest}, from {tmp_path / 'a.npz'}"
    assert said in capsys.readouterr().out
    before = path.stat().st_mtime_ns, path.stat().st_ino
    assert prepare("cifar10", tmp_path / "out") == path
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    assert "already in" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:500])
    prepare("cifar10", tmp_path / "out", tmp_path / "a.npz")
    assert "is damaged" in capsys.readouterr().out
    assert_is("cifar10", tmp_path / "out", mini)


def test_the_same_file_whatever_the_order_of_the_source(mini: Raw, tmp_path: Path):
    mixed = np.random.default_rng(2).permutation(30)
    write_npz(tmp_path / "a.npz", mini)
    write_npz(tmp_path / "b.npz", mini, x_train=mini.x_train[mixed], y_train=mini.y_train[mixed].astype(np.int64))
    a, b = (prepare("cifar10", tmp_path / f, tmp_path / f"{f}.npz") for f in "ab")
    assert a.read_bytes() == b.read_bytes()


def test_the_source_comes_before_the_environment_and_that_before_the_internet(
    mini: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_npz(tmp_path / "cifar10.npz", mini)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    prepare("cifar10", tmp_path / "a")
    assert_is("cifar10", tmp_path / "a", mini)
    monkeypatch.setenv(VARIABLE, "/nowhere")
    prepare("cifar10", tmp_path / "b", tmp_path)
    with pytest.raises(UserError, match="/nowhere does not exist"):
        prepare("cifar10", tmp_path / "c")
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(sources, "download", lambda name, folder: mini)
    prepare("cifar10", tmp_path / "c")
    assert_is("cifar10", tmp_path / "c", mini)


@pytest.mark.parametrize("kept", [0, 10, 300, -40])
def test_truncated_tar(kept: int, mini: Raw, tmp_path: Path):
    path = write_tar(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", archive_files("cifar10", mini))
    path.write_bytes(path.read_bytes()[:kept])
    refuse("cifar-10-python.tar.gz is truncated or unreadable", tmp_path, path)


def test_tar_of_another_dataset_lacks_the_batches(mini: Raw, tmp_path: Path):
    path = write_tar(tmp_path / "cifar.tar.gz", "cifar-100-python", {"train": b""})
    refuse("lacks data_batch_1, .*test_batch, batches.meta; expected the official archive of cifar10", tmp_path, path)


def test_a_missing_batch_is_named(mini: Raw, tmp_path: Path):
    files = archive_files("cifar10", mini)
    del files["data_batch_4"]
    refuse("lacks data_batch_4; expected", tmp_path, write_folder(tmp_path / "cifar-10-batches-py", files))


@pytest.mark.parametrize("content", [b"", b"\x80", b"garbage", b"\x80\x02}.", python2_pickle([1]), python2_pickle({"data": "x"})])
def test_a_broken_batch_is_named(content: bytes, mini: Raw, tmp_path: Path):
    files = archive_files("cifar10", mini) | {"data_batch_2": content}
    refuse("cifar-10-batches-py: data_batch_2 ", tmp_path, write_folder(tmp_path / "cifar-10-batches-py", files))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_and_runs_nothing(protocol: int, mini: Raw, tmp_path: Path):
    witness = tmp_path / "witness"
    malicious = type("Malicious", (), {"__reduce__": lambda self: (os.system, (f"touch {witness}",))})
    bad = pickle.dumps({"data": malicious()}, protocol)
    files = archive_files("cifar10", mini) | {"data_batch_1": bad}
    refuse("it asks for .*system", tmp_path, write_folder(tmp_path / "cifar-10-batches-py", files))
    assert not witness.exists()
    pickle.loads(bad)  # the attack is a real one
    assert witness.exists()


def refuse(message: str, tmp_path: Path, source: Path, name: str = "cifar10"):
    """`prepare` fails with one sentence and leaves nothing behind."""
    with pytest.raises(UserError, match=message) as caught:
        prepare(name, tmp_path / "out", source)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_wrong_labels_are_told_by_the_digest(mini: Raw, tmp_path: Path):
    labels = mini.y_train.copy()
    pair = [np.flatnonzero(labels == 0)[0], np.flatnonzero(labels == 1)[0]]
    labels[pair] = labels[pair[::-1]]
    message = f"a.npz: the train split of cifar10 has digest .*, expected {SETS['cifar10'].digest_train[:16]}"
    refuse(message, tmp_path, write_npz(tmp_path / "a.npz", mini, y_train=labels))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_train": np.zeros((29, 4, 4, 3), np.uint8), "y_train": np.arange(29) % 3}, "has 29 train images .*expected 30"),
        ({"y_test": np.array([0, 0, 0, 2, 2, 2])}, "has no test image of 1 of the 3 classes of cifar10, the first is 'dog'"),
        ({"y_test": np.array([0, 1, 2, 3, 1, 2])}, "test label 3 of cifar10 is not one of 0 to 2"),
        ({"x_train": np.zeros((30, 8, 8, 3), np.uint8)}, r"train images of cifar10 are uint8 \(30, 8, 8, 3\)"),
        ({"x_train": np.zeros((30, 4, 4, 3))}, r"train images of cifar10 are float64"),
        ({"y_train": np.zeros(30)}, r"with float64 labels"),
        ({"y_train": np.zeros(29, np.uint8)}, r"labels \(29,\), expected uint8 \(30, 4, 4, 3\)"),
        ({"classes": np.array(["a"])}, "names 1 classes; cifar10 has 3"),
        ({"y_train": None}, "a.npz has no array 'y_train'"),
        ({"y_train": np.array([None] * 30)}, "a.npz is damaged"),
    ],
)
def test_wrong_arrays_are_told(changed: dict, message: str, mini: Raw, tmp_path: Path):
    refuse(message, tmp_path, write_npz(tmp_path / "a.npz", mini, **changed))


def test_a_missing_class_folder_and_one_too_many_are_named(mini: Raw, tmp_path: Path):
    folder = write_pngs(tmp_path / "p", mini)
    for split in ("train", "test"):
        (folder / split / "dog").rename(tmp_path / "elsewhere")
        refuse(f"{split} has no folder for 'dog'; expected 3 classes", tmp_path, folder)
        (tmp_path / "elsewhere").rename(folder / split / "dog")
    for split in ("train", "test"):
        (folder / split / "fox").mkdir()
    refuse("train has 4 class folders; cifar10 has 3", tmp_path, folder)


def test_an_empty_class_folder_a_damaged_and_a_large_png_are_told(mini: Raw, tmp_path: Path):
    folder = write_pngs(tmp_path / "p", mini)
    first = next((folder / "train" / "cat").glob("*.png"))
    Image.new("RGB", (5, 4)).save(first)
    refuse(f"{first.name} has 5 x 4 pixels, expected 4 x 4", tmp_path, folder)
    Image.fromarray(mini.x_train[0]).save(first)
    first.write_bytes(first.read_bytes()[:60])
    refuse(f"{first.name} is damaged", tmp_path, folder)
    _ = [path.unlink() for path in first.parent.iterdir()]
    refuse("has no train image of 1 of the 3 classes of cifar10, the first is 'cat'", tmp_path, folder)


def test_an_unfit_source_is_answered_with_the_accepted_forms(mini: Raw, tmp_path: Path):
    everything = "cifar10.npz, the official cifar-10-python.tar.gz or its folder, or PNGs in train/<class>/ and test/"
    refuse(f"nothing does not exist; give {everything}", tmp_path, tmp_path / "nothing")
    refuse(f"holds no cifar10; it may be, or hold, {everything}", tmp_path, write_folder(tmp_path / "empty", {}))
    (tmp_path / "a.txt").write_text("hello")
    refuse("a.txt holds no cifar10", tmp_path, tmp_path / "a.txt")


@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_nothing_half_written(there: bool, mini: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, out = write_npz(tmp_path / "a.npz", mini), tmp_path / "out"
    out.mkdir()
    if there:
        (out / "cifar10.npz").write_bytes(b"old")

    def full(handle: int):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cifar10.npz could not be written \(No space left on device\)"):
        prepare("cifar10", out, source)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == ({"cifar10.npz": b"old"} if there else {})


def test_a_failed_download_is_one_sentence_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()  # the real download, but with no network below it
    monkeypatch.delenv(VARIABLE, raising=False)

    def unreachable(*args: object, **kwargs: object):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    refuse("cifar10 could not be downloaded .*not known.*give --from or set LONGTAIL_DATA to a copy: c", tmp_path, None)
    refuse("mnist could not be downloaded .*the four official idx files", tmp_path, None, name="mnist")
    assert socket.getdefaulttimeout() is None


def test_a_download_is_read_like_any_other_source(mini: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import torchvision.datasets

    monkeypatch.undo()
    monkeypatch.delenv(VARIABLE, raising=False)
    raw = make_mini("cifar10", monkeypatch)
    files, inner = archive_files("cifar10", raw), "cifar-10-batches-py"
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", lambda root, download: write_folder(Path(root) / inner, files))
    prepare("cifar10", tmp_path / "out")
    assert_is("cifar10", tmp_path / "out", raw)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["cifar10.npz"]


def test_real_cifar_from_an_archive_made_of_it(cifar10: Path, capsys: pytest.CaptureFixture):
    """The whole round trip at full size: 50,000 images through the official layout, in an order of its own."""
    images = load("cifar10", cifar10)
    mixed = np.random.default_rng(4).permutation(50_000)
    raw = Raw(images.x_train[mixed], images.y_train[mixed], images.x_test, images.y_test, images.classes, "here")
    with tempfile.TemporaryDirectory() as folder:  # tmp_path would keep its 400 MB for days
        write_folder(Path(folder) / "cifar-10-batches-py", archive_files("cifar10", raw))
        prepare("cifar10", Path(folder), Path(folder))
        again = load("cifar10", Path(folder))
    np.testing.assert_array_equal(again.x_train, images.x_train)
    np.testing.assert_array_equal(again.archive_order, images.archive_order)
    assert re.search(r"4\d,\d{3} of its 50,000 train images, the first at position \d, stand elsewhere", capsys.readouterr().out)


def make_numbered(name: str, monkeypatch: pytest.MonkeyPatch, classes: int = 12) -> Raw:
    """Twelve classes of two training images and one test image of random 4 x 4 pixels, put into SETS; their pixels are known."""
    generator, arrays = np.random.default_rng(3), []
    for per_class in (2, 1):
        labels = np.repeat(np.arange(classes, dtype=np.uint8), per_class)
        arrays += [generator.integers(0, 256, (len(labels), 4, 4, 3), np.uint8), labels]
    digests = {f"{what}_{split}": content_digest(x, y * keep) for what, keep in (("digest", 1), ("pixels", 0))
               for split, x, y in (("train", *arrays[:2]), ("test", *arrays[2:]))}
    monkeypatch.setitem(SETS, name, dataclasses.replace(SETS[name], side=4, classes=classes, train=2 * classes, test=classes,
                                                        order_digest="", **digests))
    return Raw(*arrays, classes=tuple(map(str, range(classes))), origin="here")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("form", ["{0}", "{0:02d}", "{1}", "{1:05d}"])
def test_folders_that_are_numbers_are_in_the_order_of_their_values(
    form: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    raw = make_numbered(name, monkeypatch)
    raw = raw._replace(classes=tuple(form.format(c, c + 1) for c in range(12)))
    prepare(name, tmp_path / "out", write_pngs(tmp_path / "p", raw))
    assert_is(name, tmp_path / "out", raw)


@pytest.mark.parametrize(("names", "words"), [
    ([f"c{c}" for c in range(12)], "class 0 is 'c0' and class 1 'c1'; .* ordered by the alphabet"),
    ([str(12 - c) for c in range(12)], "class 0 is '1' and class 1 '2'; .* ordered by value"),
    ([f"{c % 3}{c // 3}x" for c in range(12)], "class 0 is '00x' and class 1 '01x'"),
])
def test_genuine_images_under_other_labels_are_told_from_wrong_pixels(
    names: list[str], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    raw = make_numbered("cifar100", monkeypatch)._replace(classes=tuple(names))
    source = write_pngs(tmp_path / "p", raw)
    refuse(f"its images are those of the genuine dataset, their labels are not: here {words}", tmp_path, source, "cifar100")
    first = source / "train" / names[0] / "0.png"
    Image.fromarray(255 - np.asarray(Image.open(first))).save(first)
    refuse("some labels or pixels are not those of the genuine dataset; take another copy", tmp_path, source, "cifar100")


def test_pixels_of_the_real_sets_are_known(cifar10: Path):
    images = load("cifar10", cifar10)
    assert content_digest(images.x_test, np.zeros(10_000, np.uint8)) == SETS["cifar10"].pixels_test


def test_class_folders_of_train_and_test_need_the_same_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    raw = make_numbered("cifar10", monkeypatch)
    source = write_pngs(tmp_path / "p", raw)
    for folder in (source / "test").iterdir():
        folder.rename(folder.with_name(f"c{folder.name}"))
    refuse("train has the class folders .0., .1., .2., ... and .*test .c0., .*: their names say the labels, so give both the",
           tmp_path, source)
    (source / "train" / "07").mkdir()
    (source / "test" / "07").mkdir()
    for folder in (source / "test").glob("c*"):
        folder.rename(folder.with_name(folder.name[1:]))
    refuse("has the class folders '07' and '7', which are one number", tmp_path, source)


@pytest.mark.parametrize("leave", [
    lambda root: (root / "train" / "cat" / "._0.png").write_bytes(b"\0\5\x16\7"),
    lambda root: (root / "test" / "dog" / ".DS_Store").write_bytes(b"x"),
    lambda root: shutil.copytree(root / "train" / "cat", root / "train" / ".ipynb_checkpoints"),
    lambda root: shutil.copytree(root / "train" / "cat", root / "test" / "__MACOSX"),
    lambda root: shutil.copytree(root / "train" / "cat", root / "test" / "@eaDir"),
    lambda root: (root / "train" / "eel" / "Thumbs.db").write_bytes(b"x"),
    lambda root: (root / "train" / "desktop.ini").write_text("x"),
    lambda root: [p.rename(p.with_suffix(".PNG")) for p in root.glob("*/dog/*.png")],
    lambda root: shutil.copytree(root, root / "." / "copy" / "inner") and [shutil.rmtree(root / s) for s in ("train", "test")],
])
def test_what_systems_leave_behind_is_not_there(leave, mini: Raw, tmp_path: Path):
    source = write_pngs(tmp_path / "p", mini)
    leave(source)
    prepare("cifar10", tmp_path / "out", source)
    assert_is("cifar10", tmp_path / "out", mini)


def test_jpegs_are_no_source_of_lossless_images(mini: Raw, tmp_path: Path):
    source = write_pngs(tmp_path / "p", mini)
    Image.fromarray(mini.x_train[0]).save(source / "train" / "cat" / "x.JPG", format="JPEG")
    refuse("cat/x.JPG is a JPEG, which does not keep the pixels of cifar10; take a copy in PNG", tmp_path, source)


@pytest.mark.parametrize("changed", [
    lambda raw: {"x_train": raw.x_train.transpose(0, 3, 1, 2), "x_test": raw.x_test.transpose(0, 3, 1, 2)},
    lambda raw: {"y_train": raw.y_train.astype(np.int64)[:, None], "y_test": raw.y_test.astype(np.int32)[:, None]},
    lambda raw: {"x_train": raw.x_train.astype(np.int64), "classes": np.array([c.encode() for c in NAMES])},
])
def test_an_npz_as_other_tools_write_it(changed, mini: Raw, tmp_path: Path):
    prepare("cifar10", tmp_path / "out", write_npz(tmp_path / "a.npz", mini, **changed(mini)))
    assert_is("cifar10", tmp_path / "out", mini)


def test_mnist_npz_needs_no_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    raw = make_mini("mnist", monkeypatch, channels=1)._replace(classes=("0", "1", "2"))
    prepare("mnist", tmp_path / "out", write_npz(tmp_path / "mnist.npz", raw, x_train=raw.x_train[..., 0], classes=None))
    assert_is("mnist", tmp_path / "out", raw)


def in_own_folder(path: Path) -> None:
    """As some unpackers do: train-images.idx3-ubyte/train-images.idx3-ubyte."""
    content = path.read_bytes()
    path.unlink()
    path.mkdir()
    (path / path.name.replace("-idx", ".idx")).write_bytes(content)


@pytest.mark.parametrize("change", [
    lambda path: path.rename(f"{path}.gz"),
    lambda path: path.write_bytes(gzip.compress(path.read_bytes())),
    lambda path: Path(f"{path}.gz").write_bytes(gzip.compress(gzip.compress(path.read_bytes()))) and path.unlink(),
    in_own_folder,
    lambda path: Path(f"{path}.gz").write_bytes(path.read_bytes()) and path.write_bytes(path.read_bytes()[:-1]),
])
def test_the_first_bytes_say_whether_an_idx_file_is_packed(change, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    raw = make_mini("mnist", monkeypatch, channels=1)._replace(classes=("0", "1", "2"))
    write_idx(tmp_path / "s", raw)
    for stem in (IDX["x_train"], IDX["y_test"]):
        change(tmp_path / "s" / stem)
    prepare("mnist", tmp_path / "out", tmp_path / "s")
    assert_is("mnist", tmp_path / "out", raw)


@pytest.mark.parametrize("form", ["npz", "tar", "idx"])
def test_the_first_bytes_of_a_file_say_its_form(form: str, mini: Raw, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    name, raw = ("mnist", make_mini("mnist", monkeypatch, channels=1)) if form == "idx" else ("cifar10", mini)
    raw = raw._replace(classes=("0", "1", "2")) if form == "idx" else raw
    if form == "idx":
        write_idx(tmp_path, raw, packed=True)
        source = tmp_path / f"{IDX['y_test']}.gz"
    else:
        source = (write_npz(tmp_path / "a.npz", raw) if form == "npz" else
                  write_tar(tmp_path / "a.tar.gz", ARCHIVES[name].folder, archive_files(name, raw)))
        source = source.rename(tmp_path / "no-suffix")
    prepare(name, tmp_path / "out", source)
    assert_is(name, tmp_path / "out", raw)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda s, raw: truncate(write_npz(s / "cifar10.npz", raw)), r"Passed over: .*cifar10.npz is damaged"),
    (lambda s, raw: write_npz(s / "cifar10.npz", raw, x_test=255 - raw.x_test),
     "Passed over: .*cifar10.npz: the test split .* digest"),
    (lambda s, raw: truncate(write_tar(s / ARCHIVES["cifar10"].tar, ARCHIVES["cifar10"].folder, archive_files("cifar10", raw))),
     r"Passed over: .*cifar-10-python.tar.gz is truncated or unreadable"),
    (lambda s, raw: write_folder(s / ARCHIVES["cifar10"].folder, {"data_batch_1": b""}), "Passed over: .* lacks data_batch_2"),
])
def test_a_damaged_form_beside_a_whole_one_is_named_and_passed_over(
    spoil, said: str, mini: Raw, tmp_path: Path, capsys: pytest.CaptureFixture
):
    source = write_pngs(tmp_path / "p", mini)
    spoil(source, mini)
    prepare("cifar10", tmp_path / "out", source)
    assert_is("cifar10", tmp_path / "out", mini)
    assert re.search(said, capsys.readouterr().out)


def test_if_all_forms_are_damaged_each_is_named(mini: Raw, tmp_path: Path):
    source = write_pngs(tmp_path / "p", mini)
    truncate(write_npz(source / "cifar10.npz", mini))
    shutil.rmtree(source / "test" / "dog")
    refuse(r"cifar10.npz is damaged .* And beside it: .*test has no folder for 'dog'", tmp_path, source)


@pytest.mark.parametrize("file", ["cifar-10-python.tar", "cifar-10-python (1).tar.gz", "CIFAR-10-PYTHON.TGZ"])
def test_an_archive_under_the_names_that_browsers_give(file: str, mini: Raw, tmp_path: Path):
    source = write_folder(tmp_path / "s", {})
    write_tar(source / file, ARCHIVES["cifar10"].folder, archive_files("cifar10", mini))
    prepare("cifar10", tmp_path / "out", source)
    assert_is("cifar10", tmp_path / "out", mini)
