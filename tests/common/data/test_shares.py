"""What all processes together are given in an epoch, against the draws of the small path."""

from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch

from common.data.decoding import TrainInput
from common.data.feed import INDEX, PARTNER, TURN, DrawSpec, draw_blend, draw_epoch, draw_stream
from common.data.large_sources import read_source
from common.data.shares import draw_order, draw_share_noise, evaluation_share, spans
from common.errors import UserError
from common.methods.method import LINEAR, Meta, Method, Streams
from common.methods.sampling import again, class_balanced, deferred, effective_number_sampler, reversed_frequency, shuffled
from tests.large_miniature import facts, written


def some_loss(outputs, labels, context):
    return outputs.logits.sum(-1)


def sloped(counts, epoch: int, low: float = 0.9, high: float = 0.99):
    """Effective numbers with a rate that grows with the class's size: what a class-wise balanced sampler does."""
    counts = np.asarray(counts, float)
    beta = low + (high - low) * counts / counts.max()
    weights = counts * (1 - beta) / (1 - beta**counts)
    return weights / weights.sum()


SAMPLERS = {
    "shuffle": shuffled,
    "balanced": class_balanced,
    "effective": effective_number_sampler,
    "effective-0.9": partial(effective_number_sampler, beta=0.9),
    "sloped": sloped,
    "reversed": reversed_frequency,
    "deferred": partial(deferred, before=shuffled, then=class_balanced, start=1),
}
WORLDS = (1, 2, 3, 8)
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")  # torchvision points to torchcodec
BATCH = 32


def make_method(**keywords) -> Method:
    return Method("some", "written", LINEAR, some_loss, **keywords)


@pytest.fixture(scope="module")
def small():
    """Facts of the ImageNet-LT miniature."""
    return facts("imagenet-lt")


@pytest.fixture(scope="module")
def images(tmp_path_factory, small):
    return read_source(small, written(tmp_path_factory, "imagenet-lt"))


@pytest.fixture(scope="module")
def labels(images):
    return torch.from_numpy(images.train_labels)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_all_processes_together_deliver_the_epoch_once(name, drop_last, images, small, labels):
    """Counted at the end of the input, after decoding: in each batch the processes have what one process has."""
    method, n = make_method(sampler=SAMPLERS[name]), len(labels)
    wanted = draw_epoch(DrawSpec(7, SAMPLERS[name](images.counts, 1), False), 1, labels, pad=0, flip=False, batch=BATCH)[INDEX]
    wanted = wanted[:n // BATCH * BATCH] if drop_last else wanted
    for world in WORLDS if name in ("shuffle", "sloped") else (3,):
        delivered, pixels = [[] for _ in range(-(-n // BATCH) - drop_last)], 0
        for rank in range(world):
            order = draw_order(method, 7, 1, labels, images.counts, BATCH)
            reader = TrainInput(images, small, 7, workers=0, pin=False)
            for b, batch in enumerate(reader.epoch(1, order, spans(n, BATCH, drop_last, rank, world))):
                delivered[b] += batch.index[0].tolist()
                pixels += len(batch.images[0])
        assert [i for batch in delivered for i in batch] == wanted.tolist()
        assert pixels == len(wanted)
        assert [len(batch) for batch in delivered[:-1]] == [BATCH] * (len(delivered) - 1)
    if name == "shuffle" and not drop_last:
        assert sorted(wanted.tolist()) == list(range(n))


@pytest.mark.parametrize("name", [n for n in SAMPLERS if n != "shuffle"])
def test_classes_come_as_often_as_the_sampler_says(name, images, labels):
    counts = images.counts
    method = make_method(sampler=SAMPLERS[name])
    drawn = torch.cat([draw_order(method, 3, epoch, labels, counts, BATCH).index[0] for epoch in range(1, 41)])
    found = np.bincount(labels[drawn], minlength=30)
    expected = SAMPLERS[name](counts, 1) * len(drawn)
    assert scipy.stats.chisquare(found, expected).pvalue > 0.001
    within = np.bincount(drawn[labels[drawn] == counts.argmax()] - int((labels < counts.argmax()).sum()), minlength=24)
    assert scipy.stats.chisquare(within).pvalue > 0.001


@pytest.mark.parametrize(("images_", "batch", "drop"), [
    (259, 32, False), (259, 32, True), (64, 32, True), (5, 32, False), (33, 32, False)])
@pytest.mark.parametrize("world", WORLDS)
def test_spans_tile_the_epoch(images_, batch, drop, world):
    shares = [spans(images_, batch, drop, rank, world) for rank in range(world)]
    kept = images_ // batch * batch if drop else images_
    covered = []
    for of_rank in zip(*shares, strict=True):
        assert len({(s.start, s.stop) for s in of_rank}) == 1
        assert max(s.share for s in of_rank) - min(s.share for s in of_rank) <= 1
        assert sum(s.share for s in of_rank) == of_rank[0].size <= batch
        covered += [p for s in of_rank for p in range(s.first, s.last)]
    assert covered == list(range(kept))


def test_shares_by_hand():
    assert spans(10, 4, False, 1, 3) == [(0, 4, 1, 2), (4, 8, 5, 6), (8, 10, 8, 9)]
    assert spans(9, 4, False, 0, 2)[-1].share == 0


@pytest.mark.parametrize("world", WORLDS)
def test_every_test_image_is_judged_once(world):
    shares = [evaluation_share(50, rank, world) for rank in range(world)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(50))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_companions_mixup_and_turns_are_those_of_the_small_path(images, labels):
    method = make_method(streams=Streams((again, class_balanced)), mixup=0.4, task="rotation")
    order = draw_order(method, 11, 2, labels, images.counts, BATCH)
    own = draw_epoch(DrawSpec(11, None, True, mixup=0.4), 2, labels, pad=0, flip=False, batch=BATCH)
    balanced = draw_stream(11, "-2", 2, class_balanced(images.counts, 2), labels, pad=0, flip=False)
    assert order.index.tolist() == [own[INDEX].tolist(), own[INDEX].tolist(), balanced[INDEX].tolist()]
    assert order.partner.tolist() == own[PARTNER].tolist()
    assert order.turn.tolist() == own[TURN].tolist()
    assert order.blend.tolist() == draw_blend(DrawSpec(11, None, False, mixup=0.4), 2, 259, BATCH).tolist()
    last = order.partner[256:]
    assert sorted(last.tolist()) == [0, 1, 2]
    assert len(draw_order(make_method(), 11, 2, labels, images.counts, BATCH).blend) == 0


def test_noise_is_the_same_for_any_number_of_processes():
    whole = draw_share_noise(5, 3, "normal", spans(40, 40, False, 0, 1)[0], 2, 200)
    parts = [draw_share_noise(5, 3, "normal", spans(40, 40, False, rank, 3)[0], 2, 200) for rank in range(3)]
    assert torch.equal(torch.cat(parts, 1), whole)
    assert scipy.stats.kstest(whole.flatten().numpy(), "norm").pvalue > 0.001
    uniform = draw_share_noise(5, 3, "uniform", spans(40, 40, False, 0, 1)[0], 1, 400)
    assert scipy.stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 0.001
    assert len({tuple(row) for row in whole.flatten(0, 1).tolist()}) == 80
    assert not torch.equal(draw_share_noise(5, 4, "normal", spans(40, 40, False, 0, 1)[0], 2, 200), whole)
    assert draw_share_noise(5, 3, "normal", spans(9, 4, False, 0, 2)[-1], 2, 200).shape == (2, 0, 200)


def test_held_out_images_are_refused(images, labels):
    with pytest.raises(UserError, match="learns from held-out images, which the large sets do not have"):
        draw_order(make_method(meta=Meta(held_out=10)), 0, 0, labels, images.counts, BATCH)
