"""Decoding, crops, flips and jitter, their independence of processes and workers, and what happens to damaged files."""

import hashlib
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from common.data.decoding import (
    TestInput,
    TrainInput,
    as_input,
    centre_transform,
    check_decodable,
    read_image,
    synthetic,
    train_transform,
)
from common.data.large_sets import LARGE
from common.data.large_sources import read_source
from common.data.shares import draw_order, spans
from common.errors import UserError
from common.methods.method import Streams
from common.methods.sampling import again
from tests.common.data.test_shares import BATCH, make_method
from tests.large_miniature import facts, written

SEED = 3
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")  # torchvision points to torchcodec


@pytest.fixture(scope="module")
def small():
    """Facts of the ImageNet-LT miniature."""
    return facts("imagenet-lt")


@pytest.fixture(scope="module")
def images(tmp_path_factory, small):
    return read_source(small, written(tmp_path_factory, "imagenet-lt"))


def read_epoch(images, how, order, workers=0, world=1, epoch=1, first=0, seed=SEED):
    """The images [streams, images, ...] of an epoch from all processes, put together batch by batch; from batch `first` on."""
    parts = []
    for rank in range(world):
        reader = TrainInput(images, how, seed, workers, pin=False)
        share = spans(order.index.shape[1], BATCH, False, rank, world)[first:]
        parts.append([b.images for b in reader.epoch(epoch, order, share)])
    return torch.cat([torch.cat(of_ranks, 1) for of_ranks in zip(*parts, strict=True)], 1)


@pytest.fixture(scope="module")
def order(images):
    method = make_method(streams=Streams((again,)))
    return draw_order(method, SEED, 1, torch.from_numpy(images.train_labels), images.counts, BATCH)


@pytest.fixture(scope="module")
def whole(images, small, order):
    return read_epoch(images, replace(small, jitter=0.4), order)


@pytest.mark.parametrize(("workers", "world"), [(2, 1), (0, 2), (1, 3), (0, 8)])
def test_an_epoch_is_the_same_on_any_number_of_processes_and_workers(workers, world, images, small, order, whole):
    assert torch.equal(read_epoch(images, replace(small, jitter=0.4), order, workers, world), whole)


def test_an_epoch_goes_on_where_it_stopped(images, small, order, whole):
    assert torch.equal(read_epoch(images, replace(small, jitter=0.4), order, first=5), whole[:, 5 * BATCH:])


def test_workers_live_on_and_each_epoch_has_crops_of_its_own(images, small, order, whole):
    jittered, parts = replace(small, jitter=0.4), spans(259, BATCH, False, 0, 1)
    reader = TrainInput(images, jittered, SEED, 2, pin=False)
    begun = reader.epoch(1, order, parts)
    next(begun)
    begun.close()  # an epoch that is broken off leaves nothing behind
    pids = [w.pid for w in reader._loader.loader._iterator._workers]
    second = torch.cat([b.images for b in reader.epoch(2, order, parts)], 1)
    first = torch.cat([b.images for b in reader.epoch(1, order, parts)], 1)
    assert [w.pid for w in reader._loader.loader._iterator._workers] == pids
    assert torch.equal(first, whole)
    assert not (first == second).flatten(2).all(-1).any()
    assert torch.equal(second, read_epoch(images, jittered, order, epoch=2))
    reader.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_streams_and_seeds_draw_their_own_crops(images, small, order, whole):
    assert torch.equal(order.index[0], order.index[1])
    assert not (whole[0] == whole[1]).flatten(1).all(-1).any()
    other = read_epoch(images, replace(small, jitter=0.4), order, seed=4)
    assert not (whole == other).flatten(2).all(-1).any()


def test_an_image_is_what_its_position_says(images, small, order, whole):
    """Against torchvision under a seed worked out here."""
    crop = v2.RandomResizedCrop(32, (0.08, 1.0), antialias=True)
    by_hand = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4)])
    for stream, name, position in ((0, "", 0), (0, "", 200), (1, "-1", 77)):
        digest = hashlib.sha256(f"{SEED}/augmentation{name}/1/{position}".encode()).digest()
        image = read_image(images.root / images.train_paths[order.index[stream, position]].decode())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            expected = by_hand(image)
        assert torch.equal(whole[stream, position].permute(2, 0, 1), expected)
    before = torch.get_rng_state()
    read_epoch(images, small, order)
    assert torch.equal(torch.get_rng_state(), before)


def test_resize_crop_keeps_the_scale_and_reaches_every_place():
    transform = train_transform(replace(LARGE["imagenet-lt"], side=32, crop="resize-crop"))
    columns = torch.arange(60, dtype=torch.uint8).expand(3, 37, 60)  # the shorter side is 37 = round(32 * 256 / 224) already
    seen = set()
    for seed in range(500):
        torch.manual_seed(seed)
        row = transform(columns)[0, 0].int()
        steps = row.diff().tolist()
        assert len(row) == 32
        assert steps in ([1] * 31, [-1] * 31)
        seen.add((steps[0], min(row.tolist())))
    assert seen == {(step, first) for step in (1, -1) for first in range(29)}


def test_random_resized_crop_covers_eight_to_a_hundred_percent():
    transform = train_transform(replace(LARGE["imagenet-lt"], side=32))
    y, x = torch.meshgrid(torch.arange(250), torch.arange(250), indexing="ij")
    image = torch.stack([y, x, x]).to(torch.uint8)
    areas = []
    for seed in range(400):
        torch.manual_seed(seed)
        crop = transform(image).float()
        height, width = (crop[k].max() - crop[k].min() + 250 / 32 for k in (0, 1))
        areas.append(float(height * width) / 250**2)
    assert 0.06 < min(areas) < 0.12
    assert 0.9 < max(areas) < 1.1
    assert 0.45 < np.mean(areas) < 0.6  # uniform on (0.08, 1): 0.54


def test_jitter_is_a_switch():
    grey = torch.full((3, 60, 60), 100, dtype=torch.uint8)
    plain, jittered = [], []
    for seed in range(200):
        for jitter, found in ((0.0, plain), (0.4, jittered)):
            torch.manual_seed(seed)
            found.append(int(train_transform(replace(LARGE["imagenet-lt"], jitter=jitter))(grey)[0, 0, 0]))
    assert set(plain) == {100}
    assert 55 < min(jittered) < 65  # 0.6 times, and a level lost to rounding in each of three steps
    assert 135 < max(jittered) <= 140


def test_test_images_are_the_centre_as_pillow_cuts_it(images, small):
    path = images.root / images.test_paths[0].decode()
    found = centre_transform(small)(read_image(path))
    picture = Image.open(path)
    scale = 37 / min(picture.size)
    resized = picture.resize([int(side * scale) for side in picture.size], Image.Resampling.BILINEAR)
    left, top = (round((side - 32) / 2) for side in resized.size)
    expected = np.asarray(resized.crop((left, top, left + 32, top + 32))).astype(int)
    assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() <= 2


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (3, 1), (8, 0)])
def test_every_test_image_comes_once_with_its_label(world, workers, images, small):
    found = {}
    for rank in range(world):
        reader, number = TestInput(images, small, rank, world, 7, workers, pin=False), rank
        for pixels, labels in reader.batches():
            for image, label in zip(pixels, labels.tolist(), strict=True):
                assert images.test_labels[number] == label
                found[number] = image
                number += world
    assert sorted(found) == list(range(60))
    expected = centre_transform(small)(read_image(images.root / images.test_paths[41].decode()))
    assert torch.equal(found[41].permute(2, 0, 1), expected)


def test_input_is_normalised_and_channels_last(small):
    pixels = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    found = as_input(pixels, small, torch.device("cpu"), torch.float32)
    expected = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(pixels.permute(0, 3, 1, 2) / 255)
    assert torch.allclose(found, expected, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert as_input(pixels, small, torch.device("cpu"), torch.float64).dtype == torch.float64


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "RGBA"])
def test_other_kinds_of_files_become_rgb(mode, tmp_path):
    """ImageNet has CMYK files and a PNG under the name of a JPEG."""
    values = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    picture = Image.fromarray(values).resize((50, 40)).convert(mode)
    path = tmp_path / "image.JPEG"
    picture.save(path, format="JPEG" if mode in ("CMYK", "L") else "PNG")
    found = read_image(path)
    assert found.shape == (3, 40, 50)
    assert found.dtype == torch.uint8
    if mode != "RGBA":
        assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - np.asarray(Image.open(path).convert("RGB"))).max() <= 4


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["cut", "text", "missing"])
def test_damaged_image_is_one_sentence(workers, kind, images, small, order, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(images.root, root)
    images = read_source(small, root)
    path = root / images.train_paths[order.index[0, 100]].decode()
    if kind == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:300] if kind == "cut" else b"no image")
    with pytest.raises(UserError) as error:
        read_epoch(images, small, order, workers)
    assert f"{path} is {'missing' if kind == 'missing' else 'damaged'}" in str(error.value)
    assert "\n" not in str(error.value)


def test_killed_worker_is_one_sentence(images, small, order):
    reader = TrainInput(images, small, SEED, 1, pin=False)
    begun = reader.epoch(1, order, spans(259, BATCH, False, 0, 1))
    next(begun)
    os.kill(reader._loader.loader._iterator._workers[0].pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"^A process that reads images was ended from outside .*--workers\.$"):
        list(begun)


def test_empty_share_and_synthetic_batches_have_the_same_form(images, small, order):
    parts = spans(33, 32, False, 0, 2)
    assert [s.share for s in parts] == [16, 0]
    real = list(TrainInput(images, small, SEED, 0, pin=False).epoch(1, order, parts))
    made = list(synthetic(small, 259, parts, 2, pin=False))
    for a, b in zip(real, made, strict=True):
        assert a.span == b.span
        assert a.images.shape == b.images.shape == (2, a.span.share, 32, 32, 3)
        assert (a.images.dtype, a.index.dtype) == (b.images.dtype, b.index.dtype) == (torch.uint8, torch.int64)
        assert a.index.shape == b.index.shape == (2, a.span.share)
    assert int(made[0].index.max()) < 259
    assert made[0].images.float().std() > 60


INSIDE = {
    "overwritten": lambda b: b[:len(b) // 2] + bytes(x ^ 0x55 for x in b[len(b) // 2:len(b) // 2 + 40]) + b[len(b) // 2 + 40:],
    "ended early": lambda b: b[:len(b) // 2] + b"\xff\xd9" + b[len(b) // 2:],
    "more than needed": lambda b: b[:-2] + b"abcdefgh" + b[-2:],
}


@pytest.mark.parametrize("kind", INSIDE)
def test_what_libjpeg_says_of_a_file_names_it(kind, tmp_path, capfd):
    """It decodes a part, as for every tool, so that the image is used; once for a file is enough."""
    picture = np.kron(np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
    path = tmp_path / "some.JPEG"
    Image.fromarray(picture).save(path, quality=90)
    path.write_bytes(INSIDE[kind](path.read_bytes()))
    for _ in range(2):
        assert read_image(path).shape == (3, 120, 120)
    assert re.fullmatch(rf"{re.escape(str(path))}: Corrupt JPEG data: [^\n]+\n", capfd.readouterr().err)
    heard = []
    read_image(path, heard)
    assert heard[0].startswith(f"{path}: Corrupt JPEG data")
    assert capfd.readouterr().err == ""


def test_images_that_libjpeg_complains_of_are_listed_and_others_are_not(images, small, tmp_path, capfd):
    root = Path(shutil.copytree(images.root, tmp_path / "copy"))
    copied = read_source(small, root)
    path = root / copied.train_paths[7].decode()
    path.write_bytes(INSIDE["ended early"](path.read_bytes()))
    check_decodable(copied)
    said = capfd.readouterr()
    assert f"1 of 319 images of imagenet-lt are decoded in part or with a complaint: {path}: Corrupt JPEG data" in said.out
    assert said.err == ""
