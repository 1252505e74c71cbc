"""Do the gains survive? Every ranked method on cleaner tests than the usual one, from the predictions that records keep.

A test gives each image a value for a method, the mean over its runs, and each method the mean of these values over the images
that the test has. The intervals are a bootstrap over images (Efron, Annals of Statistics 7, 1979; percentiles): the same images
are drawn for all methods and for both tests, the runs are held as they are. So they say what another test set of the same kind
could show, and nothing about other seeds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.data.near_duplicates import GROUPS, group_of, kept_images, real_labels
from common.data.second_tests import SecondTests, has_partner, is_clear, load_second_tests
from common.predictions import SUFFIX, Answers, Library, Predictions, decode
from common.report.boards import Board, LeaderboardRow
from common.report.intervals import SEED, Interval, central
from common.report.order import ENOUGH, tau_b
from common.report.paired import Hits
from common.report.results import Record, Records
from common.spec import ARCHIVE_ORDER_KNOWN, Column

DRAWS = 1000
USUAL = "usual test"
FURTHER = "second-tests"  # folder of a paper with the predictions on further test sets, in one folder for each
RULE = (
    "Accuracy of the last epoch, mean over a method's runs. Without near-duplicates: on the test images whose "
    "near-duplicate (ciFAIR's lists) is not among the training images that the subset keeps, or not in the full training "
    "set. Clear images: those on which at least 95 % of the people of CIFAR-10H agree. Votes: the share of the people who "
    "chose the predicted class. Cross-entropy, in nats, is that of the prediction against the votes, lower is better; "
    "records keep the confidence in the predicted class alone, to a 255th, so the rest is taken as spread evenly over the "
    "other classes. Kendall's tau-b compares the order of the ranked methods on both tests: 1 is the same order. All 95 % "
    "intervals are a bootstrap over images (1,000 draws, the same images for all methods and both tests, runs held as they "
    "are): they say nothing about other seeds. A lead is the difference of a method to the next one in the usual ranking; "
    "it was shown where its usual interval is above 0, and is gone where the clean test has it at 0 or below."
)

Values = np.ndarray  # of each method for each image [methods, images]


class Second(NamedTuple):
    """What is known beside the records. tests: by dataset. answers: the predictions of a record, or None. further: of each
    further test set, by its title, the predictions by the first 16 digits of their record's digest."""

    tests: Mapping[str, SecondTests]
    answers: Callable[[Record], Predictions | None]
    further: Mapping[str, Mapping[str, Predictions]]


class CleanTest(NamedTuple):
    """A test for the ranked methods of a board. values: [methods, images]; mask: the images that it has. rows: places of its
    methods among the ranked ones. sign: -1 where less is better. unit: "%" or "nats". same: whether its images are those of the
    usual test."""

    name: str
    values: Values
    mask: np.ndarray
    rows: tuple[int, ...]
    sign: int = 1
    unit: str = "%"
    same: bool = True


class Lead(NamedTuple):
    """Of a method to the next one in the usual ranking, in points, and the same on the clean test in its unit; above 0 is
    better."""

    ahead: str
    behind: str
    usual: float
    usual_interval: Interval
    clean: float
    clean_interval: Interval

    @property
    def is_shown(self) -> bool:
        """Whether the usual test shows it, beyond the luck of its images."""
        return self.usual_interval.low > 0

    @property
    def is_gone(self) -> bool:
        return self.usual > 0 >= self.clean


class Result(NamedTuple):
    """A test of a board. images: in it. scores: of each ranked method, None where it has no answers; groups: its accuracy over
    many-, medium- and few-shot classes, None where that means nothing. tau: None below three methods or without an order."""

    name: str
    unit: str
    images: int
    scores: tuple[float | None, ...]
    groups: tuple[tuple[float | None, ...] | None, ...]
    tau: float | None
    interval: Interval | None
    leads: tuple[Lead, ...]

    @property
    def gone(self) -> tuple[Lead, ...]:
        return tuple(lead for lead in self.leads if lead.is_gone)


class Drop(NamedTuple):
    """By how much the accuracy over a group's classes is higher on the usual test than without near-duplicates, in points: the
    mean over the ranked methods."""

    group: str
    drop: float
    interval: Interval


class CleanBoard(NamedTuple):
    """methods: labels of the ranked methods with predictions, by the usual ranking. drops: of the test without the
    near-duplicates that the subset keeps; more: of the first group beyond the last one, None where there is one group."""

    column: Column
    setting: str
    methods: tuple[str, ...]
    left_out: tuple[str, ...]
    usual: Result
    results: tuple[Result, ...]
    drops: tuple[Drop, ...] = ()
    more: Drop | None = None


# ---------------------------------------------------------------- what is here


def second_of(root: Path, data: Path) -> Second:
    """root: the folder of all papers; data: where `prepare second-tests` has put what it made."""
    further: dict[str, dict[str, Predictions]] = {}
    for path in sorted(root.glob(f"*/{FURTHER}/*/*{SUFFIX}")):
        further.setdefault(path.parent.name, {}).update(decode(path.read_bytes(), str(path)))
    return Second({name: load_second_tests(name, data) for name in ARCHIVE_ORDER_KNOWN}, Library(root).of, further)


def clean_boards(boards: Iterable[Board], records: Records, hits: Mapping[str, Hits], second: Second) -> tuple[CleanBoard, ...]:
    """Of every board whose dataset has lists or further test sets, and at least two ranked methods with predictions on the whole
    test set."""
    clean = []
    for board in boards:
        if board.column.dataset not in ARCHIVE_ORDER_KNOWN:
            continue
        labels = real_labels(board.column.dataset, "test")
        ranked = [row for row in board.rows if row.rank is not None]
        rows = [row for row in ranked if all(key in hits and np.array_equal(hits[key].labels, labels) for key in row.keys)]
        if len(rows) < 2:
            continue
        right = np.stack([np.mean([hits[key].right for key in row.keys], 0) for row in rows]).astype(np.float32)
        tests = [*_listed_tests(board.column, rows, right, records, second), *_further_tests(rows, records, second)]
        if tests:
            left_out = tuple(row.label for row in ranked if row not in rows)
            shots = group_of(np.array(records[rows[0].keys[0]]["counts"]))
            clean.append(_clean_board(board, [row.label for row in rows], left_out, right, tests, shots))
    return tuple(clean)


def _listed_tests(column: Column, rows: Sequence[LeaderboardRow], right: Values, records: Records, second: Second
                  ) -> list[CleanTest]:
    """The tests that the public lists allow."""
    known, images = second.tests.get(column.dataset, SecondTests()), right.shape[1]
    tests, every = [], tuple(range(len(rows)))
    if known.duplicates is not None:
        kept = kept_images(column)
        for where, some in (("the subset", kept), ("the full set", np.ones_like(kept))):
            if where != "the subset" or not kept.all():
                mask = ~has_partner(known, some, images)
                tests.append(CleanTest(f"without near-duplicates in {where}", right, mask, every))
    if known.votes is not None:
        tests.append(CleanTest("clear images", right, is_clear(known.votes), every))
        answers = [[second.answers(records[key]) for key in row.keys] for row in rows]
        if all(one is not None for several in answers for one in several):
            for name, of, sign, unit in (("votes", vote_share, 1, "%"), ("cross-entropy", vote_cross_entropy, -1, "nats")):
                values = np.stack([np.mean([of(one.answers, known.votes) for one in several], 0) for several in answers])
                tests.append(CleanTest(name, values.astype(np.float32), np.ones(images, bool), every, sign, unit))
    return tests


def _further_tests(rows: Sequence[LeaderboardRow], records: Records, second: Second) -> list[CleanTest]:
    """Of each further test set that two or more of the methods have answered; of a method, the runs that have count."""
    tests = []
    for title, answered in second.further.items():
        runs = [[answered[digest] for key in row.keys if (digest := records[key]["digest"][:16]) in answered] for row in rows]
        places = tuple(place for place, several in enumerate(runs) if several)
        if len(places) > 1:
            values = np.stack([np.mean([one.answers.last == one.labels for one in runs[place]], 0) for place in places])
            mask = np.ones(values.shape[1], bool)
            tests.append(CleanTest(title, values.astype(np.float32), mask, places, same=False))
    return tests


# ---------------------------------------------------------------- against the votes


def vote_share(answers: Answers, votes: np.ndarray) -> np.ndarray:
    """Share of the people who chose the predicted class, of each image."""
    return votes[np.arange(len(votes)), answers.last] / votes.sum(1)


def vote_cross_entropy(answers: Answers, votes: np.ndarray) -> np.ndarray:
    """-sum_c v_c log q_c of each image, in nats: v the shares of the votes, q the confidence in the predicted class, in the
    middle of its 255th, and the rest spread evenly over the other classes."""
    share, confidence = vote_share(answers, votes), (np.minimum(answers.confidence, 254) + 0.5) / 255
    return -share * np.log(confidence) - (1 - share) * np.log((1 - confidence) / (votes.shape[1] - 1))


# ---------------------------------------------------------------- scores, order, leads


@cache
def drawn_images(images: int) -> np.ndarray:
    """How often each image is in each bootstrap sample of a test set: float32 [DRAWS, images], for a matrix product."""
    generator = np.random.default_rng((SEED, images))  # test sets of other sizes are drawn apart from each other
    drawn = [np.bincount(generator.integers(images, size=images), minlength=images) for _ in range(DRAWS)]
    return np.stack(drawn).astype(np.float32)


class Scores(NamedTuple):
    """point: of each method [methods]; drawn: in each bootstrap sample [draws, methods]. Higher is better."""

    point: np.ndarray
    drawn: np.ndarray


def scores_of(values: Values, mask: np.ndarray, factor: float) -> Scores:
    """`factor` times the mean over the images of the mask."""
    within = np.concatenate([values, np.ones((1, values.shape[1]), np.float32)]) * mask
    *totals, images = (drawn_images(values.shape[1]) @ within.T).T.astype(np.float64)  # one product; the last row counts images
    point = values[:, mask].mean(1, dtype=np.float64)
    return Scores(factor * point, factor * np.stack(totals, 1) / images[:, None])


def _clean_board(board: Board, names: Sequence[str], left_out: tuple[str, ...], right: Values, tests: Sequence[CleanTest],
                 shots: np.ndarray) -> CleanBoard:
    labels = real_labels(board.column.dataset, "test")
    whole = CleanTest(USUAL, right, np.ones(len(labels), bool), tuple(range(len(names))))
    scores = scores_of(right, whole.mask, 100)
    usual, *results = (_result(test, scores, names, labels, shots) for test in (whole, *tests))
    drops, more = (), None
    if near := next((test for test in tests if test.name.startswith("without")), None):
        drops, more = drops_of(right.mean(0), near.mask, labels, shots)
    return CleanBoard(board.column, board.setting, tuple(names), left_out, usual, tuple(results), drops, more)


def _result(test: CleanTest, ranking: Scores, names: Sequence[str], labels: np.ndarray, shots: np.ndarray) -> Result:
    """All numbers of a test. Scores and leads are in percent and points, but for cross-entropy. ranking: the usual test's."""
    mine = list(test.rows)
    usual = Scores(ranking.point[mine], ranking.drawn[:, mine])
    clean = scores_of(test.values, test.mask, test.sign * (100 if test.unit == "%" else 1))
    tau, interval = _order(usual, clean)
    by_rank = np.argsort(-usual.point, kind="stable")
    leads = tuple(Lead(names[test.rows[a]], names[test.rows[b]], *_difference(usual, a, b), *_difference(clean, a, b))
                  for a, b in pairwise(by_rank))
    scores = dict(zip(test.rows, (test.sign * clean.point).tolist(), strict=True))
    has_groups = test.same and test.unit == "%"
    groups = {place: group_scores(values, test.mask, labels, shots)
              for place, values in zip(test.rows, test.values, strict=True)} if has_groups else {}
    each = range(len(names))
    return Result(test.name, test.unit, int(test.mask.sum()), tuple(map(scores.get, each)), tuple(map(groups.get, each)), tau,
                  interval, leads)


def _difference(scores: Scores, a: int, b: int) -> tuple[float, Interval]:
    return float(scores.point[a] - scores.point[b]), central(scores.drawn[:, a] - scores.drawn[:, b])


def _order(usual: Scores, clean: Scores) -> tuple[float | None, Interval | None]:
    """Kendall's tau-b between both orders, and its interval over the bootstrap samples."""
    tau = float(tau_b(usual.point, clean.point[None])[0]) if len(usual.point) >= ENOUGH else float("nan")
    if np.isnan(tau):
        return None, None
    drawn = tau_b(usual.drawn, clean.drawn)
    return tau, central(drawn[~np.isnan(drawn)])


# ---------------------------------------------------------------- many, medium and few


def group_scores(values: np.ndarray, mask: np.ndarray, labels: np.ndarray, shots: np.ndarray) -> tuple[float | None, ...]:
    """Mean of the classes' accuracies in percent over the many-, medium- and few-shot classes, as records have it; None for a
    group without a class. values: of one method [images]; shots: place in `GROUPS` of each class."""
    per_class = np.bincount(labels[mask], values[mask], len(shots)) / np.bincount(labels[mask], minlength=len(shots))
    return tuple(float(100 * per_class[shots == g].mean()) if (shots == g).any() else None for g in range(len(GROUPS)))


def drops_of(values: np.ndarray, mask: np.ndarray, labels: np.ndarray, shots: np.ndarray
             ) -> tuple[tuple[Drop, ...], Drop | None]:
    """The drop of every group that has classes, and by how much that of the first group exceeds that of the last. values: mean
    over methods [images]."""
    whole, there = np.ones_like(mask), [g for g in range(len(GROUPS)) if (shots == g).any()]
    usual, clean = (group_scores(values, some, labels, shots) for some in (whole, mask))
    drawn_usual, drawn_clean = (_drawn_classes(values, some, labels) for some in (whole, mask))
    point = {g: usual[g] - clean[g] for g in there}
    drawn = {g: 100 * (drawn_usual - drawn_clean)[:, shots == g].mean(1) for g in there}
    drops = tuple(Drop(GROUPS[g], point[g], central(drawn[g])) for g in there)
    first, last = there[0], there[-1]
    more = Drop(f"{GROUPS[first]} beyond {GROUPS[last]}", point[first] - point[last], central(drawn[first] - drawn[last]))
    return drops, more if len(there) > 1 else None


def _drawn_classes(values: np.ndarray, mask: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Accuracy of every class in each bootstrap sample [draws, classes]; labels ascend."""
    starts, drawn = np.searchsorted(labels, np.arange(labels.max() + 1)), drawn_images(len(labels)) * mask
    return np.add.reduceat(drawn * values, starts, 1) / np.add.reduceat(drawn, starts, 1)


class Count(NamedTuple):
    """Of a test, over all boards: how many have it, the leads that the usual test shows, and those of them that are gone."""

    name: str
    boards: int
    shown: int
    gone: int


def counts_of(boards: Sequence[CleanBoard]) -> list[Count]:
    """One for each test, in the order in which boards have them."""
    results = [result for board in boards for result in board.results]
    counted = []
    for name in dict.fromkeys(result.name for result in results):
        mine = [result for result in results if result.name == name]
        shown = [lead for result in mine for lead in result.leads if lead.is_shown]
        counted.append(Count(name, len(mine), len(shown), sum(lead.is_gone for lead in shown)))
    return counted
