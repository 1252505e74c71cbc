"""Tiny-ImageNet in every accepted form, whole and broken, on a miniature with the official layout; the feed at 64 x 64."""

import dataclasses
import hashlib
import os
import random
import shutil
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets.utils
from PIL import Image

from common.cost import training_images
from common.data import sources, tiny
from common.data.feed import DX, DY, FLIP, INDEX, DrawSpec, Feed
from common.data.imbalance import class_counts, select
from common.data.sets import SETS, Images, content_digest, load
from common.data.sources import VARIABLE, prepare
from common.errors import UserError
from common.methods.losses import softmax_cross_entropy
from common.methods.method import Method
from common.spec import Column, Protocol
from common.store import load_records
from common.train.device import Device
from common.train.loop import train_pack
from common.train.state import Workspace
from tests.common.train.toys import planned

CLASSES = {"n02": "toad, Bufo", "n01": "newt", "n10": "crane"}  # as wnids.txt has them: in no order
ORDER = ("n01", "n02", "n10")
TRAIN, VAL = 4, 2


@pytest.fixture(autouse=True)
def no_way_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(sources, "download", lambda name, folder: pytest.fail("went to the internet"))


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The official folder with three classes of 8 x 8 images."""
    shrink(monkeypatch, 8, len(CLASSES), TRAIN, VAL)
    return make_official(tmp_path / "source" / tiny.FOLDER, CLASSES, 8, TRAIN, VAL)


def shrink(monkeypatch: pytest.MonkeyPatch, side: int, classes: int, train: int, val: int) -> None:
    known = dataclasses.replace(SETS[tiny.NAME], side=side, classes=classes, train=classes * train, test=classes * val)
    monkeypatch.setitem(SETS, tiny.NAME, known)


def make_official(root: Path, classes: dict[str, str], side: int, train: int, val: int) -> Path:
    """The layout of tiny-imagenet-200: random JPEGs, the first one grey; test images without labels."""
    generator, annotations = np.random.default_rng(8), []

    def write(path: Path, *size: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, size, np.uint8)).save(path, format="JPEG", quality=95)

    for wnid in classes:
        for i in range(train):
            write(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", side, side, *([] if i == 0 else [3]))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t7\t7\n")
    for i, wnid in enumerate(random.Random(3).sample(list(classes) * val, len(classes) * val)):
        write(root / "val" / "images" / f"val_{i}.JPEG", side, side, 3)
        annotations.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t7\t7\n")
    write(root / "test" / "images" / "test_0.JPEG", side, side, 3)
    (root / "val" / "val_annotations.txt").write_text("".join(annotations))
    (root / "wnids.txt").write_text("\n".join(classes))
    (root / "words.txt").write_text("n00\tentity\n" + "".join(f"{w}\t{name}\n" for w, name in classes.items()))
    return root


def expected(root: Path) -> Images:
    """What the official folder means, read in the plainest way: label by label, sorted by the hash of the pixels."""
    labels = dict(line.split("\t")[:2] for line in (root / "val" / "val_annotations.txt").read_text().splitlines())
    arrays = []
    for split in ("train", "val"):
        rows = []
        for path in (root / split).rglob("*.JPEG"):
            wnid = labels[path.name] if split == "val" else path.parent.parent.name
            pixels = np.asarray(Image.open(path).convert("RGB"))
            rows.append((ORDER.index(wnid), hashlib.sha256(pixels.tobytes()).hexdigest(), pixels))
        rows.sort(key=lambda row: row[:2])
        arrays += [np.stack([row[2] for row in rows]), np.array([row[0] for row in rows], np.uint8)]
    return Images(*arrays, classes=("newt", "toad, Bufo", "crane"))


def assert_is(folder: Path, wanted: Images) -> None:
    images = load(tiny.NAME, folder)
    for name in ("x_train", "y_train", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(images, name), getattr(wanted, name))
    assert images.classes == wanted.classes


def refold(root: Path, inner: str, flat: bool = False) -> Path:
    """val by class, as the usual scripts do it: val/<wnid>/<inner>; `flat` does away with train/<wnid>/images too."""
    for line in (root / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        place = root / "val" / wnid / inner
        place.mkdir(parents=True, exist_ok=True)
        (root / "val" / "images" / name).rename(place / name)
    (root / "val" / "images").rmdir()
    for folder in (root / "train").iterdir() if flat else ():
        for path in (folder / "images").iterdir():
            path.rename(folder / path.name)
    return root


def write_zip(path: Path, root: Path, prefix: str = f"{tiny.FOLDER}/", packing: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", packing) as archive:
        for file in sorted(root.rglob("*"), reverse=True):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(root).as_posix())
        archive.writestr("__MACOSX/" + prefix + "train/n01/images/._n01_0.JPEG", b"not an image")
    return path


def test_the_set_is_the_one_that_the_papers_use():
    known = SETS["tiny-imagenet"]
    assert (known.side, known.channels, known.classes, known.train, known.test) == (64, 3, 200, 100_000, 10_000)
    assert (known.pad, known.flip) == (8, True)
    assert known.mean == (0.485, 0.456, 0.406)
    assert known.std == (0.229, 0.224, 0.225)
    assert known.digest == dataclasses.replace(known, mean=(0.5,)).digest  # a constant, without any image


@pytest.mark.parametrize(("ratio", "total", "tail"), [(10, 39_072, 50), (50, 25_082, 10), (100, 21_549, 5), (200, 18_836, 2)])
def test_class_counts_are_those_of_the_literature(ratio: int, total: int, tail: int):
    counts = class_counts("lt", ratio, 500, 200)
    assert (counts.sum(), counts[0], counts[-1]) == (total, 500, tail)
    column = Column("tiny-imagenet", "lt", ratio, "resnet18", "hash")
    assert training_images(column) == total
    kept = select(np.repeat(np.arange(200, dtype=np.uint8), 500), column)
    np.testing.assert_array_equal(np.bincount(kept // 500), counts)


def test_every_form_gives_the_same_images(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wanted = expected(official)
    assert wanted.x_train.shape == (12, 8, 8, 3)
    (official / "train" / "n01" / "images" / "._n01_0.JPEG").write_bytes(b"what a Mac leaves behind")
    copies = [shutil.copytree(official, tmp_path / str(i) / name)
              for i, name in enumerate((tiny.FOLDER, tiny.FOLDER, "tiny-imagenet", "renamed"))]
    given = {
        "folder": official,
        "parent": official.parent,
        "refolded": refold(copies[0], "images"),
        "refolded without images": refold(copies[1], ""),
        "among many": refold(copies[2], "", flat=True).parent,
        "renamed": copies[3],
        "zip": write_zip(tmp_path / "x.zip", official),
        "zip without a folder": write_zip(tmp_path / "y.zip", official, ""),
        "zip in a folder": write_zip(tmp_path / "z" / tiny.ZIP, official, packing=zipfile.ZIP_STORED).parent,
        "zip of a refolded copy": write_zip(tmp_path / "r.zip", copies[1], "some/where/"),
    }
    for form, source in given.items():
        prepare(tiny.NAME, tmp_path / "out" / form, source)
        assert_is(tmp_path / "out" / form, wanted)
    first = (tmp_path / "out" / "folder" / f"{tiny.NAME}.npz")
    prepare(tiny.NAME, tmp_path / "out" / "npz", first)
    prepare(tiny.NAME, tmp_path / "out" / "npz in a folder", first.parent)
    monkeypatch.setenv(VARIABLE, str(official.parent))
    prepare(tiny.NAME, tmp_path / "out" / "environment")
    assert {p.read_bytes() == first.read_bytes() for p in (tmp_path / "out").glob("*/*.npz")} == {True}


def test_the_images_are_in_memory_once(official: Path):
    """Read in canonical order, so that putting them in order copies nothing: 1.4 GB at the real size."""
    raw = tiny.read_tiny(tiny.NAME, official)
    images = sources.to_canonical(tiny.NAME, raw, sources.check(tiny.NAME, raw))
    assert np.shares_memory(images.x_train, raw.x_train)
    assert np.shares_memory(images.x_test, raw.x_test)


def test_nothing_is_unpacked(official: Path, tmp_path: Path):
    archive = write_zip(tmp_path / "alone" / tiny.ZIP, official)
    prepare(tiny.NAME, tmp_path / "alone", archive)
    assert sorted(p.name for p in archive.parent.iterdir()) == [tiny.ZIP, f"{tiny.NAME}.npz"]


def test_the_line_says_that_no_digest_is_known_and_which_one_was_found(official: Path, tmp_path: Path, capsys):
    wanted, out = expected(official), tmp_path / "out"
    digests = content_digest(wanted.x_train, wanted.y_train), content_digest(wanted.x_test, wanted.y_test)
    said = (f"tiny-imagenet: 12 train and 6 test images of 3 classes, digest of train {digests[0][:16]} and of test "
            f"{digests[1][:16]} (none of the genuine pixels is known to compare with), ")
    prepare(tiny.NAME, out, official)
    assert f"{said}from {official}, now in {out / 'tiny-imagenet.npz'}.\n" == capsys.readouterr().out
    prepare(tiny.NAME, out)
    assert f"{said}already in {out / 'tiny-imagenet.npz'}.\n" == capsys.readouterr().out
    assert load(tiny.NAME, out).digests == digests


def test_a_foreign_npz_is_put_in_order_and_checked_as_far_as_it_can_be(official: Path, tmp_path: Path):
    wanted, mixed = expected(official), np.random.default_rng(0).permutation(12)
    arrays = {"x_train": wanted.x_train[mixed], "y_train": wanted.y_train[mixed], "x_test": wanted.x_test,
              "y_test": wanted.y_test, "classes": np.array(wanted.classes)}
    np.savez(tmp_path / "a.npz", **arrays)
    prepare(tiny.NAME, tmp_path / "out", tmp_path / "a.npz")
    assert_is(tmp_path / "out", wanted)
    np.savez(tmp_path / "b.npz", **arrays | {"x_train": arrays["x_train"][:11], "y_train": arrays["y_train"][:11]})
    refuse("has 11 train images of tiny-imagenet, expected 12", tmp_path, tmp_path / "b.npz")
    (tmp_path / "c").mkdir()
    np.savez(tmp_path / "c" / "tiny-imagenet.npz", **arrays)
    with pytest.raises(UserError, match="the digest of its train split is none, expected one; make it anew"):
        load(tiny.NAME, tmp_path / "c")


def test_one_changed_pixel_of_the_file_is_seen_by_its_checksum(official: Path, tmp_path: Path):
    path = prepare(tiny.NAME, tmp_path / "out", official)
    content = bytearray(path.read_bytes())
    content[content.index(expected(official).x_train[5].tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        load(tiny.NAME, tmp_path / "out")


def refuse(message: str, tmp_path: Path, source: Path | None):
    """`prepare` fails with one sentence and leaves nothing behind."""
    with pytest.raises(UserError, match=message) as caught:
        prepare(tiny.NAME, tmp_path / "refused", source)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "refused").exists() or not list((tmp_path / "refused").iterdir())


IMAGE = Path("train", "n02", "images", "n02_2.JPEG")


@pytest.mark.parametrize(("content", "message"), [
    (b"", r"n02_2.JPEG is damaged \(not a JPEG file\); take another copy"),
    (b"garbage", r"n02_2.JPEG is damaged \(not a JPEG file\)"),
    (-60, r"n02_2.JPEG is damaged \(.*truncated"),
    ("JPEG", "n02_2.JPEG has 9 x 8 pixels, expected 8 x 8"),
    ("PNG", r"n02_2.JPEG is damaged \(not a JPEG file\)"),
])
@pytest.mark.parametrize("packed", [False, True])
def test_a_bad_image_is_named(content: bytes | int | str, message: str, packed: bool, official: Path, tmp_path: Path):
    path = official / IMAGE
    if isinstance(content, str):
        Image.new("RGB", (9, 8)).save(path, format=content)
    else:
        path.write_bytes(path.read_bytes()[:content] if isinstance(content, int) else content)
    source = write_zip(tmp_path / "x.zip", official) if packed else official
    refuse(("x.zip: " if packed else f"{tiny.FOLDER}/") + f"{IMAGE.parent.as_posix()}/{message}", tmp_path, source)


@pytest.mark.parametrize("name", ["wnids.txt", "words.txt", "val/val_annotations.txt"])
def test_a_missing_list_is_named(name: str, official: Path, tmp_path: Path):
    (official / name).unlink()
    whole = f"{name} is not here; expected the official folder tiny-imagenet-200, or its zip, whole"
    refuse(f"{tiny.FOLDER}/{whole}", tmp_path, official)
    refuse(f"x.zip: {whole}", tmp_path, write_zip(tmp_path / "x.zip", official, ""))


def test_a_class_with_another_number_of_images_is_named(official: Path, tmp_path: Path):
    (official / IMAGE).rename(tmp_path / "kept.JPEG")
    refuse(f"{tiny.FOLDER}/train has 3 images of class n02, expected 4; take a whole copy", tmp_path, official)
    shutil.move(official / "train" / "n02", tmp_path / "n02")
    refuse("train has 0 images of class n02, expected 4", tmp_path, official)
    shutil.move(tmp_path / "n02", official / "train" / "n02")
    (tmp_path / "kept.JPEG").rename(official / IMAGE)
    shutil.copy(official / IMAGE, official / "train" / "n02" / "n02_2.JPEG")
    refuse("train has 5 images of class n02, expected 4", tmp_path, official)
    (official / "train" / "n02" / "n02_2.JPEG").unlink()
    (refold(official, "") / "val" / "n10" / "val_9.JPEG").write_bytes(b"")
    refuse("val has 3 images of class n10, expected 2", tmp_path, official)


def test_annotations_that_do_not_fit_are_told(official: Path, tmp_path: Path):
    table = official / "val" / "val_annotations.txt"
    lines = table.read_text().splitlines(keepends=True)
    for changed, message in (
        ([*lines, "val_7.JPEG\tn01\n"], r"val/images/val_7.JPEG is not here, but val/val_annotations.txt names it"),
        ([*lines[:-1], lines[-1].split("\t")[0] + "\tn77\n"], "val_annotations.txt, line 6: 'n77' is not a class of wnids.txt"),
        ([*lines, "val_0.JPEG\n"], "line 7: '' is not a class"),
        (lines[:-1] + lines[:1], "val has 1 images of class"),
        ([*lines, "../../train/n01/images/n01_1.JPEG\tn01\n"], "n01_1.JPEG is not here, but"),
    ):
        table.write_text("".join(changed))
        refuse(message, tmp_path, official)


def test_lists_that_do_not_fit_are_told(official: Path, tmp_path: Path):
    words = (official / "words.txt").read_text()
    (official / "words.txt").write_text(words.replace("n10\t", "n11\t"))
    refuse("words.txt has no name for n10; take another copy", tmp_path, official)
    (official / "words.txt").write_text(words)
    (official / "wnids.txt").write_text("n01\nn02\nn02\n")
    refuse("wnids.txt lists 2 classes, expected 3", tmp_path, official)


@pytest.mark.parametrize("kept", [0, 10, 1000, -40])
def test_a_truncated_zip_is_told(kept: int, official: Path, tmp_path: Path):
    path = write_zip(tmp_path / tiny.ZIP, official)
    path.write_bytes(path.read_bytes()[:kept])
    refuse(r"tiny-imagenet-200.zip is truncated or unreadable \(.+\); take another copy", tmp_path, path)


def test_a_flipped_bit_in_a_zip_is_told_by_its_checksum(official: Path, tmp_path: Path):
    path = write_zip(tmp_path / tiny.ZIP, official, packing=zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.index((official / IMAGE).read_bytes()) + 200] ^= 1
    path.write_bytes(content)
    refuse(r"tiny-imagenet-200.zip: train/n02/images/n02_2.JPEG is damaged or unreadable \(Bad CRC-32", tmp_path, path)


def test_an_unfit_source_is_answered_with_the_accepted_forms(tmp_path: Path):
    forms = "tiny-imagenet.npz, the official tiny-imagenet-200.zip, or its folder with wnids.txt, words.txt, train/ and val/"
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("hello")
    refuse(f"holds no tiny-imagenet; it may be, or hold, {forms}", tmp_path, tmp_path / "empty")
    refuse("a.txt holds no tiny-imagenet", tmp_path, tmp_path / "a.txt")
    refuse(f"nothing does not exist; give {forms}", tmp_path, tmp_path / "nothing")


def test_a_failed_download_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    monkeypatch.delenv(VARIABLE, raising=False)

    def unreachable(*args: object, **kwargs: object):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    refuse("tiny-imagenet could not be downloaded .*not known.*give --from or set LONGTAIL_DATA to a copy: tiny", tmp_path, None)


def test_a_download_is_compared_with_the_stated_md5_and_read_like_any_zip(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    known, path = SETS[tiny.NAME], write_zip(tmp_path / "served.zip", official)
    monkeypatch.undo()
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setitem(SETS, tiny.NAME, known)
    monkeypatch.setattr(torchvision.datasets.utils, "_get_redirect_url", lambda url, max_hops: url)
    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", lambda url, file: shutil.copy(path, file))
    assert tiny.URL == "https://cs231n.stanford.edu/tiny-imagenet-200.zip"
    refuse(r"tiny-imagenet could not be downloaded \(File not found or corrupted\); give", tmp_path, None)
    monkeypatch.setattr(tiny, "MD5", hashlib.md5(path.read_bytes()).hexdigest())
    prepare(tiny.NAME, tmp_path / "out")
    assert_is(tmp_path / "out", expected(official))
    assert os.listdir(tmp_path / "out") == ["tiny-imagenet.npz"]


@pytest.fixture
def real_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    """Three classes of four 64 x 64 images, prepared."""
    shrink(monkeypatch, 64, 3, 4, 2)
    prepare(tiny.NAME, tmp_path / "data", make_official(tmp_path / tiny.FOLDER, CLASSES, 64, 4, 2))
    return load(tiny.NAME, tmp_path / "data")


def test_the_feed_delivers_crops_of_64_with_the_padding_and_statistics_of_the_set(real_size: Images):
    column = Column(tiny.NAME, "lt", 4, "resnet18", "hash")
    feed = Feed(real_size, column, turns=False, device=torch.device("cpu"), dtype=torch.float64)
    assert feed.counts.tolist() == [4, 2, 1]
    drawn = feed.draw([DrawSpec(seed, None, False) for seed in (0, 1)], 0, 7)
    delivered = feed.batch(drawn.images).reshape(7, 2, 3, 64, 64)
    assert sorted(drawn.images[INDEX, 0].tolist()) == list(range(7))
    assert drawn.images[[DY, DX]].max() > 8
    kept = real_size.x_train[[0, 1, 2, 3, 4, 5, 8]]
    for run, i in np.ndindex(2, 7):
        index, dy, dx, flip = (drawn.images[row, run, i] for row in (INDEX, DY, DX, FLIP))
        canvas = np.zeros((80, 80, 3))
        canvas[8:72, 8:72] = kept[index]
        patch = canvas[dy:dy + 64, dx:dx + 64]
        wanted = ((patch[:, ::-1] if flip else patch) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        np.testing.assert_allclose(delivered[i, run], wanted.transpose(2, 0, 1), rtol=1e-6, atol=1e-6)


def test_resnet18_trains_on_it(real_size: Images, tmp_path: Path):
    protocol = Protocol(epochs=2, batch_size=4, rate=0.05, momentum=0.9, weight_decay=0.0002, warmup_epochs=0, decay_epochs=(),
                        decay_factor=0.1, drop_last=False)
    run = planned(Method("ce", "written", softmax_cross_entropy), tmp_path, protocol=protocol,
                  column=Column(tiny.NAME, "lt", 4, "resnet18", "hash"))
    assert train_pack([run], real_size, Device("cpu", "float32", False), Workspace(tmp_path / "work", 30.0))
    record = load_records(tmp_path)[run.spec.key]
    assert record["status"] == "done"
    assert record["counts"] == [4, 2, 1]
    assert np.array(record["confusion"]).sum(1).tolist() == [2, 2, 2]
    assert record["spec"]["data"] == SETS[tiny.NAME].digest


def into_images(root: Path) -> Path:
    """val/images/<wnid>/, the refoldering that most copies have."""
    for line in (root / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        (root / "val" / "images" / wnid).mkdir(exist_ok=True)
        (root / "val" / "images" / name).rename(root / "val" / "images" / wnid / name)
    return root


def in_part(root: Path) -> Path:
    """A refoldering that was broken off."""
    into_images(root)
    for path in list((root / "val" / "images").glob("n0*/*"))[:3]:
        path.rename(root / "val" / "images" / path.name)
    return root


def as_windows_writes(root: Path) -> Path:
    for name in ("wnids.txt", "words.txt", "val/val_annotations.txt"):
        text = (root / name).read_text()
        (root / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", " \r\n").encode())
    return root


def other_case(root: Path) -> Path:
    for i, path in enumerate(list((root / "train").glob("*/images/*.JPEG"))):
        path.rename(path.with_suffix((".jpeg", ".JPG", ".jpg")[i % 3]))
    return root


def leftovers(root: Path) -> Path:
    shutil.copytree(root / "train" / "n01", root / "train" / ".ipynb_checkpoints")
    shutil.copytree(root / "train" / "n01" / "images", root / "train" / "n01" / "images" / ".ipynb_checkpoints")
    (root / "val" / "images" / "._val_0.JPEG").write_bytes(b"x")
    (root / "train" / "n02" / "images" / "Thumbs.db").write_bytes(b"x")
    return root


def copied(root: Path) -> Path:
    """A script that copies instead of moving."""
    flat = shutil.copytree(root / "val" / "images", root / "kept")
    refold(root, "images")
    flat.rename(root / "val" / "images")
    return root


@pytest.mark.parametrize("change", [into_images, in_part, as_windows_writes, other_case, leftovers, copied,
                                    lambda root: (into_images(root) / "val" / "val_annotations.txt").unlink()])
@pytest.mark.parametrize("packed", [False, True])
def test_copies_as_people_have_them(change, packed: bool, official: Path, tmp_path: Path):
    wanted = expected(official)
    change(official)
    prepare(tiny.NAME, tmp_path / "out", write_zip(tmp_path / "x.zip", official) if packed else official)
    assert_is(tmp_path / "out", wanted)


def test_images_moved_between_classes_are_told(official: Path, tmp_path: Path):
    one, two = (official / "train" / w / "images" for w in ("n01", "n02"))
    (one / "n01_2.JPEG").rename(two / "n01_2.JPEG")
    (two / "n02_1.JPEG").rename(one / "n02_1.JPEG")
    refuse("n02_1.JPEG stands in the folder of class n01, but its name says n02; put it back", tmp_path, official)
    (one / "n02_1.JPEG").rename(two / "n02_1.JPEG")
    (two / "n01_2.JPEG").rename(one / "n01_2.JPEG")
    val = into_images(official) / "val" / "images"
    a, b = (next((val / w).iterdir()) for w in ("n01", "n10"))
    a.rename(val / "n10" / a.name)
    b.rename(val / "n01" / b.name)
    refuse("stands in the folder of class n(01|10), but val/val_annotations.txt says n(10|01); put it back", tmp_path, official)


def test_folders_that_are_no_classes_are_named(official: Path, tmp_path: Path):
    for number, wnid in enumerate(ORDER):
        (refold(official, "") if not number else official / "val" / wnid)
        (official / "val" / wnid).rename(official / "val" / str(number))
    refuse("val has 0 images of class n01, expected 2, and folders '0', '1', '2', which are no classes of wnids.txt", tmp_path,
           official)


@pytest.mark.parametrize("kept", [0, 1000, -40])
def test_a_damaged_zip_beside_the_whole_folder_is_passed_over(kept: int, official: Path, tmp_path: Path, capsys):
    wanted, path = expected(official), write_zip(official.parent / tiny.ZIP, official)
    path.write_bytes(path.read_bytes()[:kept])
    prepare(tiny.NAME, tmp_path / "out", official.parent)
    assert_is(tmp_path / "out", wanted)
    assert f"Passed over: {path} is truncated or unreadable" in capsys.readouterr().out
