"""What the feed delivers: crops, flips and turns pixel by pixel, and the class histogram of every sampler."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.data.augment import as_network_input, crop, normalise, pad_images, source_pixels
from common.data.feed import DX, DY, FLIP, INDEX, TURN, DrawSpec, Feed, draw_epoch
from common.methods import sampling
from common.spec import Column
from tests.common.train.toys import COLUMN

SEEDS = range(4)


@pytest.fixture(scope="module")
def feed(digits):
    return Feed(digits, COLUMN, turns=True, device=torch.device("cpu"), dtype=torch.float64)


@pytest.mark.parametrize("turns", [False, True])
def test_crop_flip_and_turn_of_each_image_is_torchs_own_one_by_one(turns):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (9, 6, 6, 3), generator=generator, dtype=torch.uint8)
    index = torch.randint(0, 9, (2, 20), generator=generator)
    dy, dx = torch.randint(0, 5, (2, 2, 20), generator=generator)
    flip = torch.randint(0, 2, (2, 20), generator=generator)
    turn = torch.randint(0, 4 if turns else 1, (2, 20), generator=generator)
    found = crop(pad_images(images, 2), source_pixels(6, turns, "cpu"), index, dy, dx, flip, turn)
    for run in range(2):
        for i in range(20):
            whole = F.pad(images[index[run, i]].permute(2, 0, 1), (2, 2, 2, 2))
            wanted = whole[:, dy[run, i]:dy[run, i] + 6, dx[run, i]:dx[run, i] + 6]
            wanted = torch.flip(wanted, (2,)) if flip[run, i] else wanted
            wanted = torch.rot90(wanted, int(turn[run, i]), (1, 2))
            assert torch.equal(found[run, i].permute(2, 0, 1), wanted)


def test_the_border_is_black_before_normalising():
    image = torch.full((1, 4, 4, 1), 255, dtype=torch.uint8)
    zero = torch.zeros(1, 1, dtype=torch.int64)
    found = crop(pad_images(image, 1), source_pixels(4, False, "cpu"), zero, zero, zero, zero, zero)
    value = normalise(found, torch.tensor([0.5]), torch.tensor([0.25]), torch.float32)
    assert value[0, 0, 0].unique().tolist() == [-2.0]  # (0 - 0.5) / 0.25, not 0
    assert value[0, 0, 1:, 1:].unique().tolist() == [2.0]


def test_network_input_puts_the_channels_of_a_run_together():
    images = torch.arange(2 * 3 * 4 * 4 * 3).reshape(2, 3, 4, 4, 3).float()
    packed = as_network_input(images)
    assert packed.shape == (3, 6, 4, 4)
    assert torch.equal(packed[1, 3:6], images[1, 1].permute(2, 0, 1))
    assert packed.is_contiguous(memory_format=torch.channels_last)


def test_a_shuffle_delivers_every_image_once(feed):
    drawn = draw_epoch(DrawSpec(0, None, False), 3, feed.cpu_labels, pad=1, flip=True, batch=32)
    assert sorted(drawn[INDEX].tolist()) == list(range(len(feed.cpu_labels)))
    assert drawn[DY].unique().tolist() == drawn[DX].unique().tolist() == [0, 1, 2]
    assert drawn[FLIP].unique().tolist() == [0, 1]
    assert drawn[TURN].unique().tolist() == [0]


def test_draws_are_the_runs_own_and_repeat(feed):
    def draw(seed, epoch):
        return draw_epoch(DrawSpec(seed, None, True), epoch, feed.cpu_labels, pad=1, flip=True, batch=32)

    first = draw(1, 5)
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(first, draw(1, 5))
    assert not torch.equal(first[INDEX], draw(2, 5)[INDEX])
    assert not torch.equal(first[INDEX], draw(1, 6)[INDEX])
    assert not torch.equal(first[DY], draw(1, 6)[DY])


def test_turns_are_balanced_in_each_batch(feed):
    drawn = draw_epoch(DrawSpec(0, None, True), 0, feed.cpu_labels, pad=0, flip=False, batch=32)
    for start in range(0, 448, 32):
        assert torch.bincount(drawn[TURN, start:start + 32]).tolist() == [8, 8, 8, 8]


SAMPLERS = {
    "class-balanced": (sampling.class_balanced, lambda n: np.ones(10)),
    "effective number": (partial(sampling.effective_number_sampler, beta=0.99), lambda n: n * (1 - 0.99) / (1 - 0.99**n)),
    "square root": (sampling.square_root, lambda n: n**0.5),
    "reversed": (sampling.reversed_frequency, lambda n: 1 / n),
    "progressive": (partial(sampling.progressive, epochs=8), lambda n: 0.75 * n / n.sum() + 0.25 * np.ones(10) / 10),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_histogram_delivered_is_the_one_declared(feed, name):
    """Over many epochs, what the feed delivers is within 4.5 standard errors of the declared share of each class."""
    sampler, literal = SAMPLERS[name]
    counts = feed.counts.astype(float)
    share = literal(counts) / literal(counts).sum()
    probabilities = sampler(feed.counts, 2)
    assert probabilities == pytest.approx(share)
    seen = np.zeros(10)
    for epoch in range(40):
        drawn = draw_epoch(DrawSpec(0, probabilities, False), epoch, feed.cpu_labels, pad=1, flip=False, batch=32)
        seen += np.bincount(feed.cpu_labels[drawn[INDEX]], minlength=10)
    total = seen.sum()
    assert total == 40 * len(feed.cpu_labels)
    assert (np.abs(seen - total * share) <= 4.5 * np.sqrt(total * share * (1 - share))).all()


def test_images_of_one_class_are_equally_likely(feed):
    seen = np.zeros(len(feed.cpu_labels))
    for epoch in range(60):
        drawn = draw_epoch(DrawSpec(0, sampling.class_balanced(feed.counts, 0), False), epoch, feed.cpu_labels, pad=1, flip=False,
                           batch=32)
        seen += np.bincount(drawn[INDEX], minlength=len(seen))
    tail = seen[feed.cpu_labels == 9]
    assert tail.min() > 0.8 * tail.mean()
    assert tail.mean() == pytest.approx(60 * len(seen) / 10 / 6, rel=0.05)


def test_weights_are_the_formulas():
    n = np.array([5000.0, 50, 500])
    effective = (1 - 0.9999) / (1 - 0.9999**n)
    assert sampling.effective_number_weights(n, 0) == pytest.approx(effective / effective.sum() * 3)
    assert sampling.inverse_weights(n, 0) == pytest.approx((1 / n) / (1 / n).sum() * 3)
    late = partial(sampling.deferred, before=sampling.uniform_weights, then=sampling.inverse_weights, start=160)
    assert late(n, 159).tolist() == [1, 1, 1]
    assert late(n, 160) == pytest.approx(sampling.inverse_weights(n, 0))


@pytest.mark.parametrize("subset", ["authors", "hash", "seed-666"])
def test_held_out_images_follow_the_kept_ones_and_are_others(digits, subset):
    ordered = dataclasses.replace(digits, archive_order=np.random.default_rng(1).permutation(len(digits.y_train)))
    column = dataclasses.replace(COLUMN, subset=subset)
    feed = Feed(ordered, column, turns=False, device=torch.device("cpu"), dtype=torch.float32, held_out=10)
    inside = feed.padded[:, 1:-1, 1:-1].flatten(1).tolist()
    kept, aside = ({(*image, int(y)) for image, y in zip(inside[part], feed.labels[part], strict=True)}
                   for part in (slice(feed.size), slice(feed.size, None)))
    assert not kept & aside
    assert torch.bincount(feed.labels[feed.size:]).tolist() == [10] * 10
    assert len(kept) == feed.size == feed.counts.sum()
    assert feed.counts[0] == np.bincount(digits.y_train).min() - 10


def test_cifar10_lt_100_from_real_images(cifar10):
    """The labels that an epoch delivers are the literature's 12,406, and a crop shows pixels of its own image."""
    from common.data.sets import load

    images = load("cifar10", cifar10)
    feed = Feed(images, Column("cifar10", "lt", 100, "resnet32"), turns=False, device=torch.device("cpu"), dtype=torch.float32)
    drawn = feed.draw([DrawSpec(0, None, False)], 0, 128).images
    labels = feed.labels[drawn[INDEX, 0]]
    assert torch.bincount(labels).tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    batch = feed.batch(drawn[:, :, :128])
    assert batch.shape == (128, 3, 32, 32)
    centre = drawn.clone()
    centre[DY:DX + 1], centre[FLIP] = 4, 0
    plain = feed.batch(centre[:, :, :128])[0].permute(1, 2, 0)
    wanted = torch.from_numpy(images.x_train[np.flatnonzero(images.y_train == int(labels[0]))])
    pixels = ((plain * feed.std + feed.mean) * 255).round().to(torch.uint8)
    assert (wanted == pixels).flatten(1).all(1).any()
