"""The paired test: its parts by hand, and how often it errs where the truth is known."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from common.predictions import write_predictions
from common.report.paired import Hits, compare, hits_of, paired_test, standard_error
from common.store import save_record, seal
from tests.records import made_hits, made_predictions, toy_paper, toy_records

SIMULATED = 400


def runs(draw: np.random.Generator, lead: float, seeds: int, images: int = 500, between: float = 0.6, own_taste: float = 0.5
         ) -> tuple[np.ndarray, np.ndarray]:
    """Two methods whose true accuracies differ by `lead`: images differ in how hard they are, for each method by itself too
    (`own_taste`), and seeds in how good they came out (`between` points of accuracy)."""
    hard = draw.normal(0, 1.5, images)
    found = []
    for sign in (1, -1):
        own = hard + draw.normal(0, own_taste, images)
        skill = 1 + draw.normal(0, 5 * between / 100, (seeds, 1)) + sign * lead * 3.1
        found.append(draw.random((seeds, images)) < 1 / (1 + np.exp(-(skill + own))))
    return found[0], found[1]


def test_the_standard_error_by_hand():
    d = np.array([[1, 0, 0, -1], [1, 1, 0, 0]])
    by_seed, by_image = d.mean(1), d.mean(0)
    of_seeds = 4 * ((by_seed - d.mean()) ** 2).sum()
    of_images = 2 * ((by_image - d.mean()) ** 2).sum() / 3
    rest = ((d - by_seed[:, None] - by_image[None] + d.mean()) ** 2).sum() / 3
    error, freedom = standard_error(d)
    assert error == pytest.approx(np.sqrt((of_seeds + of_images - rest) / 8))
    assert freedom == pytest.approx((of_seeds + of_images - rest) ** 2 / of_seeds**2)


def test_images_that_do_not_matter_leave_the_paired_t_test_over_seeds():
    """Where images differ no more than by chance, seeds alone decide."""
    draw = np.random.default_rng(0)
    first, second = draw.random((6, 40)) < 0.6, draw.random((6, 40)) < 0.5
    d = first.astype(int) - second
    error, freedom = standard_error(d)
    by_seed, by_image = d.mean(1), d.mean(0)
    rest = ((d - by_seed[:, None] - by_image[None] + d.mean()) ** 2).sum() / (5 * 39)
    if 6 * ((by_image - d.mean()) ** 2).sum() / 39 <= rest:
        assert freedom == pytest.approx(5)
        assert paired_test(first, second).p == pytest.approx(ttest_1samp(by_seed, 0, alternative="greater").pvalue)
    else:
        assert error > by_seed.std(ddof=1) / np.sqrt(6)


def test_which_is_ahead_and_by_how_much():
    labels = np.array([0, 0, 1, 1])
    right = {"a0": [1, 1, 1, 1], "a1": [1, 1, 1, 0], "b0": [1, 0, 0, 1], "b1": [1, 1, 1, 0], "b2": [0, 0, 0, 0]}
    hits = {key: Hits(labels, np.array(bits, bool)) for key, bits in right.items()}

    def runs(*keys: str) -> list[dict]:
        return [{"key": key, "spec": {"seed": int(key[1])}} for key in keys]

    first, second = runs("a0", "a1"), runs("b2", "b1", "b0")
    found = compare(first, second, hits)
    assert (found.difference, found.wins, found.losses, found.seeds, found.images) == (25.0, 2, 0, 2, 4)
    assert found.low < 25 < found.high
    turned = compare(second, first, hits)
    assert turned.difference == -25
    assert turned.p == pytest.approx(1 - found.p)
    assert turned.p_either == pytest.approx(found.p_either) == pytest.approx(2 * found.p)
    assert compare(first, second, hits, {1}).images == 2
    assert compare(first, runs("b0", "b2"), hits) is None  # one seed of both
    assert compare(first, second, {key: hits[key] for key in hits if key != "b1"}) is None
    assert compare(first, second, hits | {"b1": Hits(labels.copy(), hits["b1"].right)}) is None  # another test set


def test_what_the_records_of_a_folder_answer_right(tmp_path: Path):
    """A run that diverged and one from before predictions were kept have no hits; all others share the labels of their set."""
    paper = toy_paper(tmp_path / "papers" / "toy")
    records = toy_records(paper, {"ce": (30.0, 31.0, None), "rival": (20.0,)}, columns=("cifar10-lt-100",))
    answers = {key: made_predictions(r) for key, r in records.items() if r["status"] == "done" and "rival" not in r["label"]}
    fields = write_predictions(tmp_path / "papers" / "toy" / "results" / "paper" / "cifar10-lt-100", answers)
    records = {key: seal(r | {"predictions": fields.get(key, {})}) for key, r in records.items()}
    for record in records.values():
        save_record(tmp_path / "papers" / "toy" / "results" / "paper" / "cifar10-lt-100", record)
    hits = hits_of(tmp_path / "papers", records)
    assert hits.keys() == answers.keys()
    assert [round(100 * run.right.mean(), 6) for run in hits.values()] == [70.0, 69.0]
    assert len({id(run.labels) for run in hits.values()}) == 1
    assert hits.keys() == made_hits(records).keys() - {key for key, r in records.items() if "rival" in r["label"]}


def test_without_spread_or_with_one_seed_there_is_no_evidence():
    right = np.ones((3, 10), bool)
    assert paired_test(right, ~right)[3:5] == (1.0, 1.0)
    assert paired_test(right[:1], right[:1]) is None


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_lead_that_is_not_there_is_seldom_seen(seeds):
    """At 5 % at most 8 % of the simulated comparisons without a lead are called one (5 % and what 400 draws scatter)."""
    draw = np.random.default_rng(seeds)
    called = [paired_test(*runs(draw, 0.0, seeds)).p < 0.05 for _ in range(SIMULATED)]
    assert np.mean(called) <= 0.08


def test_a_lead_that_is_there_is_seen_more_often_with_more_seeds():
    shares = []
    for seeds in (3, 5):
        draw = np.random.default_rng(seeds)
        shares.append(np.mean([paired_test(*runs(draw, 0.04, seeds)).p < 0.05 for _ in range(SIMULATED)]))
    assert shares[0] > 0.5
    assert shares[1] > shares[0]


def test_seeds_alone_would_err_where_images_differ():
    """The test is needed: a paired t-test over seeds takes the images for granted, and errs on another test set."""
    draw = np.random.default_rng(1)
    naive, ours = [], []
    for _ in range(SIMULATED):
        first, second = runs(draw, 0.0, 5, images=200, between=0.0, own_taste=1.5)
        naive.append(ttest_1samp((first.astype(int) - second).mean(1), 0, alternative="greater").pvalue < 0.05)
        ours.append(paired_test(first, second).p < 0.05)
    assert np.mean(naive) > 0.12
    assert np.mean(ours) <= 0.08
