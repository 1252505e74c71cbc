"""What the page shows of guests: from their cards alone, in a section apart from all that papers print. No torch."""

from pathlib import Path
from typing import Any

from common.guests.board import accuracy, groups, in_short, name, words
from common.guests.card import Board, Card, Row, find_cards


def guest_views(guests: Path) -> list[dict[str, Any]]:
    """A view for every card in the folder of the guests, in the order of their names."""
    return [_card_view(path.relative_to(guests).as_posix(), card) for path, card in find_cards(guests)]


def _card_view(place: str, card: Card) -> dict[str, Any]:
    devices = {run.device for board in card.boards for row in board.rows if row.kind == "guest" for run in row.runs}
    return {"name": card.name, "column": card.column.name, "place": f"guests/{place}", "source": card.source.text,
            "sha256": card.source.sha256, "made": f"commit {card.commit}, torch {card.torch}, {', '.join(sorted(devices))}",
            "remarks": card.remarks, "in_short": in_short(card.boards),
            "boards": [{"title": " = ".join(board.names), "words": board.words, "own": own.label, "rows": _rows(board, own)}
                       for board in card.boards for own in board.rows if own.kind == "guest"]}


def _rows(board: Board, own: Row) -> list[dict[str, Any]]:
    against = {one.other: one for one in board.versus if one.guest == own.label}
    return [{"name": name(row), "is_own": row is own, "accuracy": accuracy(row), "n": row.n, "groups": groups(row),
             "compared": ("", "", "") if row is own else words(against.get(name(row)))} for row in board.rows]
