"""What the page shows of `common.report.clean`, as text: "Do the gains survive?"."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from common.data.near_duplicates import GROUPS
from common.data.second_tests import missing_lists
from common.report.boards import Board
from common.report.clean import RULE, CleanBoard, Drop, Lead, Result, Second, clean_boards, counts_of
from common.report.intervals import Interval
from common.report.paired import Hits
from common.report.results import Records
from common.report.text import number, signed
from common.spec import ARCHIVE_ORDER_KNOWN

NOTHING = "–"


class ScoreView(NamedTuple):
    """A method on a test: its score with its rank, and its accuracy over many-, medium- and few-shot classes."""

    text: str
    key: str
    groups: str


class TestView(NamedTuple):
    """A clean test of a board. gone: a sentence on each lead that is gone."""

    name: str
    images: int
    tau: str
    first: str
    gone: tuple[str, ...]


class CleanView(NamedTuple):
    column: str
    setting: str
    names: tuple[str, ...]
    rows: tuple[tuple[str, tuple[ScoreView, ...]], ...]
    tests: tuple[TestView, ...]
    drops: str
    left_out: str


def clean_view(boards: Sequence[Board], records: Records, hits: Mapping[str, Hits], second: Second | None) -> dict[str, Any]:
    """For the template. second: None where nobody has looked for lists."""
    clean = clean_boards(boards, records, hits, second) if second else ()
    return {"clean": [_board_view(board) for board in clean], "clean_answer": _answer(clean),
            "clean_waits": waits_for(boards, hits, second, clean), "clean_rule": RULE}


def _answer(boards: Sequence[CleanBoard]) -> str:
    clauses = [f"{one.name}: {one.gone} of {one.shown} shown leads are gone ({one.boards} leaderboards)"
               for one in counts_of(boards)]
    return f"{'; '.join(clauses)}." if clauses else ""


def waits_for(boards: Sequence[Board], hits: Mapping[str, Hits], second: Second | None, clean: Sequence[CleanBoard]) -> list[str]:
    """A sentence on each thing that is not here yet."""
    sentences, mine = [], [board for board in boards if board.column.dataset in ARCHIVE_ORDER_KNOWN]
    ranked = [row for board in mine for row in board.rows if row.rank is not None]
    if not clean and not any(key in hits for row in ranked for key in row.keys):
        planned = sum(row.is_main for board in mine for row in board.rows)
        sentences.append(f"This waits for runs with predictions: none of the {planned} main rows of the leaderboards on "
                         f"{' and '.join(ARCHIVE_ORDER_KNOWN)} has any yet. A campaign trains them first.")
    for dataset in ARCHIVE_ORDER_KNOWN:
        if second is None or (missing := [one.file for one in missing_lists(second.tests[dataset], dataset)]):
            which = f" ({', '.join(missing)})" if second else ""
            sentences.append(f"Lists about {dataset} are not here{which}: `prepare second-tests --from FOLDER` reads them; "
                             "data/README.md says where they come from.")
    if second is None or not second.further:
        sentences.append("No finished run has answered a further test set, such as CIFAR-10.1: `answer NAME` lets those do it "
                         "whose weights are here.")
    return sentences


def _board_view(board: CleanBoard) -> CleanView:
    every = (board.usual, *board.results)
    ranks = [_ranks(result) for result in every]
    rows = tuple((name, tuple(_score(result, rank, place) for result, rank in zip(every, ranks, strict=True)))
                 for place, name in enumerate(board.methods))
    names = tuple(f"{result.name}{', nats' if result.unit == 'nats' else ''}" for result in every)
    drops = "; ".join(map(_drop_text, (*board.drops, *([board.more] if board.more else ()))))
    return CleanView(board.column.name, board.setting, names, rows, tuple(_test_view(result, board) for result in board.results),
                     drops, ", ".join(board.left_out))


def _ranks(result: Result) -> list[int | None]:
    """1 + how many methods are better; less is better where the unit is nats."""
    sign = -1 if result.unit == "nats" else 1
    there = [sign * score for score in result.scores if score is not None]
    return [None if score is None else 1 + sum(other > sign * score for other in there) for score in result.scores]


def _score(result: Result, ranks: Sequence[int | None], place: int) -> ScoreView:
    score = result.scores[place]
    if score is None:
        return ScoreView(NOTHING, "", "")
    values = result.groups[place] or ()
    groups = [f"{name} {number(value)}" for name, value in zip(GROUPS, values, strict=False) if value is not None]
    return ScoreView(f"{number(score)} ({ranks[place]})", f"{score:.6g}", ", ".join(groups))


def _test_view(result: Result, board: CleanBoard) -> TestView:
    tau = "fewer than three methods" if result.tau is None else f"{signed(result.tau)} {_within(result.interval)}"
    best, first = _ranks(result), board.methods[0]
    leaders = [name for name, rank in zip(board.methods, best, strict=True) if rank == 1]
    words = f"{first} stays first" if first in leaders else f"{' and '.join(leaders)} is first in the place of {first}"
    return TestView(result.name, result.images, tau, words, tuple(_gone(lead, result.unit) for lead in result.gone))


def _gone(lead: Lead, unit: str) -> str:
    shown = "" if lead.is_shown else ", which the usual test does not show either"
    clean = f"{lead.clean:+.4f} nats" if unit == "nats" else signed(lead.clean)
    return (f"{lead.ahead} led {lead.behind} by {signed(lead.usual)} {_within(lead.usual_interval)}{shown}; "
            f"here {clean} {_within(lead.clean_interval, 4 if unit == 'nats' else 2)}")


def _drop_text(drop: Drop) -> str:
    return f"{drop.group} {signed(drop.drop)} {_within(drop.interval)}"


def _within(interval: Interval | None, digits: int = 2) -> str:
    return f"({interval.low:+.{digits}f} to {interval.high:+.{digits}f})" if interval else ""
