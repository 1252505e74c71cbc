"""Predictions: small files that give back every answer, and from which a record's numbers follow."""

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.metrics import summary
from common.plan import plan
from common.predictions import Answers, Library, Predictions, decode, encode, measure, write_predictions
from common.store import save_record
from common.train.tally import BestAnswers, Tally
from tests.records import make_record, toy_paper

COUNTS = {10: np.array([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]),
          100: np.array([int(500 * 0.01 ** (i / 99)) for i in range(100)])}


def made(classes: int, seed: int, adjusted: bool = False, images: int = 10_000) -> Predictions:
    """Answers of which about half are right, as a trained network gives them."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), images // classes)

    def answers() -> Answers:
        last = np.where(draw.random(images) < 0.5, labels, draw.integers(0, classes, images)).astype(np.int64)
        best = np.where(draw.random(images) < 0.15, draw.integers(0, classes, images), last)
        return Answers(last, best, np.floor(255 * draw.beta(2, 1.2, images)).astype(np.uint8))

    return Predictions(labels, answers(), answers() if adjusted else None)


def same(one: Answers, other: Answers) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("classes", [10, 100, 365])
def test_a_file_gives_back_every_answer(classes):
    images = 36_500 if classes == 365 else 10_000
    runs = {f"{seed:016x}": made(classes, seed, adjusted=seed == 1, images=images) for seed in range(3)}
    back = decode(encode(runs), "here")
    for key, run in runs.items():
        assert same(back[key].answers, run.answers)
        assert back[key].digest == run.digest
        assert (back[key].plain is None) == (run.plain is None)
    assert same(back[f"{1:016x}"].plain, runs[f"{1:016x}"].plain)
    assert encode(back) == encode(runs)


def test_runs_of_one_pack_may_have_other_labels():
    """A pretext task turns the same images and asks for the turn."""
    classes = made(10, 0)
    turns = classes._replace(labels=np.arange(10_000) % 4)
    back = decode(encode({"0" * 16: classes, "1" * 16: turns}), "here")
    assert np.array_equal(back["0" * 16].labels, classes.labels)
    assert np.array_equal(back["1" * 16].labels, turns.labels)
    assert [back[key].digest for key in back] == [classes.digest, turns.digest]


@pytest.mark.parametrize(("classes", "adjusted", "most"), [(10, False, 25_000), (100, False, 25_000), (100, True, 45_000)])
def test_a_run_takes_few_bytes(classes, adjusted, most):
    assert len(encode({"0" * 16: made(classes, 0, adjusted)})) <= most


def test_a_record_s_numbers_follow_from_the_answers():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat_interleave(30)
    logits = torch.randn(2, 300, 10, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 10)
    tally = Tally(2, 10, 300, "cpu")
    for part in (slice(0, 170), slice(170, 300)):
        tally.add(logits[:, part], torch.ones(2, 130 + 40 * (part.start == 0), 3), labels[part], part)
    last, confidence = (part.numpy() for part in tally.answered())
    for run in range(2):
        found = measure(Predictions(labels.numpy(), Answers(last[run], last[run], confidence[run])), COUNTS[10])
        true = summary(tally.confusion[run].numpy(), tally.bins[run].numpy(), COUNTS[10])
        for name in ("accuracy", "confusion", "groups", "per_class_accuracy"):
            assert found[name] == true[name]
        assert found["calibration"]["ece"] == pytest.approx(true["calibration"]["ece"], abs=100 / 510)
        assert [row[0] for row in found["calibration"]["bins"]] == [row[0] for row in true["calibration"]["bins"]]


def test_the_best_epoch_is_the_first_of_highest_accuracy():
    labels = torch.tensor([0, 0, 1, 1])
    epochs = ([[0, 1, 1, 0], [1, 1, 1, 1]], [[0, 1, 1, 1], [1, 1, 0, 1]], [[0, 0, 1, 0], [1, 0, 0, 1]])
    best = BestAnswers(2)
    for epoch in epochs:
        tally = Tally(2, 2, 4, "cpu")
        tally.add(torch.nn.functional.one_hot(torch.tensor(epoch), 2).float(), torch.ones(2, 4, 1), labels, slice(0, 4))
        best.add([tally.answered()], tally.accuracy())
    assert best.predicted[0].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
    copy = BestAnswers(1)
    copy.load(best.tensors(), [1])
    assert copy.predicted[0].tolist() == [[1, 1, 1, 1]]
    assert copy.accuracy.tolist() == [50.0]


def test_an_adjustment_leaves_both_answers():
    labels, logits = torch.tensor([0, 1]), torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    tally = Tally(1, 2, 2, "cpu", adjusted=True)
    tally.add(logits + torch.tensor([0.0, 3.0]), torch.ones(1, 2, 1), labels, slice(0, 2), logits)
    assert [part.tolist() for part in tally.answered()[::2]] == [[[1, 1]], [[0, 0]]]
    best = BestAnswers(1)
    best.add([tally.answered()], tally.accuracy())
    assert [part.tolist() for part in best.predicted] == [[[1, 1]], [[0, 0]]]


def test_records_and_their_predictions_find_each_other(tmp_path):
    planned = plan(toy_paper(tmp_path / "papers" / "toy"), "paper")[:2]
    folder, root = planned[0].folder, tmp_path / "papers"
    runs = {item.spec.key: made(10, seed) for seed, item in enumerate(planned)}
    fields = write_predictions(folder, runs)
    records = [make_record(item, 50.0, predictions=fields[item.spec.key]) for item in planned]
    for record in records:
        save_record(folder, record)
    assert same(Library(root).of(records[1]).answers, runs[records[1]["key"]].answers)
    assert Library(root).of(make_record(planned[0], None)) is None
    foreign = records[1] | {"predictions": records[1]["predictions"] | {"digest": "0" * 64}}
    with pytest.raises(UserError, match="does not hold the predictions of cifar10-lt-100 ce@written seed 1"):
        Library(root).of(foreign)
    path = folder / records[1]["predictions"]["file"]
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match="is damaged"):
        Library(root).of(records[1])
    path.unlink()
    with pytest.raises(UserError, match="is not here"):
        Library(root).of(records[1])
